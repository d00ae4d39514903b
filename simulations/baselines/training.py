"""Runs a baseline in a directory that looks like a run's, without a journal: `config.toml` and `metrics.jsonl`."""

from math import isfinite

import torch

from fedzo.coordinator.schedule import scheduled_rate
from fedzo.errors import ConfigError
from fedzo.journal import ClientEvaluation, ClientReport, Commit, Evaluation, Record
from fedzo.run_directory import RunDirectory

from ..options import SimulateOptions
from ..simulator import Progress
from . import get_baseline
from .baseline import Subject


def train(name: str, subject: Subject, options: SimulateOptions, run: RunDirectory) -> None:
    """Train from the beginning; metrics that are there are written anew.

    It ends early, with a last evaluation, where a training loss is no longer finite.

    Args:
        name: of the baseline.
        subject: its model is trained.
        options: of a run of fedzo; rounds, rates, batches and evaluations are those.
        run: where metrics go.

    Raises:
        ConfigError: no learning rate is given.
    """
    rules = options.rules()
    if rules.calibrated:
        raise ConfigError(f"lr is 'auto', and baseline {name!r} has no calibration; give a learning rate")
    baseline = get_baseline(name)(subject, rules, options.seed)
    traffic = baseline.traffic(rules, sum(parameter.numel() for parameter in subject.parameters))
    asked = rules.cohort if baseline.federated else 1
    run.metrics.unlink(missing_ok=True)
    progress = Progress()
    records = 0

    def write(record: Record) -> None:
        nonlocal records
        records += 1
        run.append_metrics(records, record, **progress.measured())

    if rules.evaluate_every:
        write(_evaluation(subject, 0, progress))
    for number in range(1, rules.rounds + 1):
        rate = scheduled_rate(rules, rules.learning_rate, number)
        loss = baseline.round(number, rate)
        progress.forwards += baseline.forwards(rules)
        progress.bytes_up += traffic[0]
        progress.bytes_down += traffic[1]
        reports = tuple(ClientReport(client, rules.batch_size, loss, ()) for client in range(asked))
        write(Record(number, Commit((), rate, reports)))
        last = number == rules.rounds or not isfinite(loss)
        if rules.evaluate_every and (last or number % rules.evaluate_every == 0):
            write(_evaluation(subject, number, progress))
        if last:
            break


def _evaluation(subject: Subject, number: int, progress: Progress) -> Record:
    """Every client's held-out data, as fedzo's clients evaluate theirs."""
    found = []
    for client, data in enumerate(subject.clients):
        batches = data.held_out_batches()
        examples = sum(count for _, count in batches)
        if not examples:
            continue
        progress.forwards += len(batches)
        with torch.inference_mode():
            measured = [(*subject.measure(subject.model, batch), count) for batch, count in batches]
        loss = sum(loss * count for loss, _, count in measured) / examples
        metrics = [metric * count for _, metric, count in measured if metric is not None]
        found.append(ClientEvaluation(client, examples, loss, sum(metrics) / examples if metrics else None))
    return Record(number, Evaluation(tuple(found)))
