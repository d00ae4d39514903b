"""How many rounds a budget pays for."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.coordinator.calibration import calibration_directions, calibration_forwards, next_calibration
from fedzo.errors import ConfigError
from fedzo.journal import Calibration, ClientReport, Commit, Record, Rules, Task
from fedzo.journal.codec import encode_record, report_size
from fedzo.methods import MethodRound, get_method, method_reports

from ..baselines import get_baseline
from ..options import SimulateOptions

_FRAME_BYTES = 40
"""What a journal's frame is longer than its payload."""
_TYPICAL_GRADIENT = 1.0
_TYPICAL_RATE = 1e-3
"""Of a run whose rate is found by calibrations; an entry's bytes follow from its size."""


def round_forwards(method: str, rules: Rules, *, baseline: bool) -> int:
    """Forward passes of a round's training, all clients together; those of evaluations are not counted."""
    if baseline:
        return get_baseline(method).forwards(rules)
    return get_method(method).forwards(rules) * rules.commit_reports


def forwards_per_client(method: str, forwards: int, clients: int, *, baseline: bool) -> float:
    """Mean over the clients; where one place trains, it does them all."""
    return forwards if baseline and not get_baseline(method).federated else forwards / clients


def rounds_for(
    budget: tuple[str, int], options: SimulateOptions, method: str, *, baseline: bool, parameters: Callable[[], int]
) -> int:
    """The most rounds that stay within a budget, with the calibrations of a run whose rate is found by them.

    Bytes are those of rounds with projected gradients near 1. Calibrations after a roll-back are not foreseen.

    Args:
        budget: as `Comparison`.
        options: of a run.
        method: or baseline.
        baseline: which of the two it is.
        parameters: of the model; called where weights are sent.

    Raises:
        ConfigError: not even one, or a budget of bytes for what sends none.
    """
    kind, amount = budget
    rules = options.rules()
    if kind == "bytes":
        cost: float = sum(get_baseline(method).traffic(rules, parameters())) if baseline else _method_bytes(options)
        if not cost:
            raise ConfigError(f"baseline {method!r} sends nothing, so bytes do not limit it; give a budget of forwards")
    else:
        cost = round_forwards(method, rules, baseline=baseline)
        if kind == "forwards_per_client":
            cost = forwards_per_client(method, int(cost), options.clients, baseline=baseline)
    calibration = _calibration_cost(kind, options) if rules.calibrated else 0
    rounds = _calibrated_rounds(amount, cost, calibration, rules) if calibration else int(amount // cost)
    if not rounds:
        said = f"{cost:g} of {kind.replace('_', ' ')}" + (f", a calibration {calibration:g}" if calibration else "")
        raise ConfigError(f"a round of {method!r} takes {said}, the budget is {amount}")
    return rounds


def frame_bytes(record: Record) -> int:
    """Of a record in the journal."""
    return len(encode_record(record)) + _FRAME_BYTES


def _calibrated_rounds(amount: int, cost: float, calibration: float, rules: Rules) -> int:
    """Rounds up to the first calibration that cannot be paid for together with the round after it."""
    done = 0
    last: int | None = None
    for calibrations in count(1):
        last = next_calibration(rules, last)
        paid = int((amount - calibrations * calibration) // cost)
        if paid <= last:
            break
        done = min(paid, next_calibration(rules, last))
    return done


def _calibration_cost(kind: str, options: SimulateOptions) -> float:
    """Of one calibration to which all of the cohort report, in the budget's unit."""
    rules = options.rules()
    if kind == "bytes":
        scalars = (_TYPICAL_GRADIENT,) * (2 * calibration_directions(rules))
        reports = tuple(ClientReport(client, rules.batch_size, 1.0, scalars) for client in range(rules.cohort))
        return sum(map(report_size, reports)) + frame_bytes(Record(0, Calibration(1.0, reports))) * rules.cohort
    forwards = calibration_forwards(rules) * rules.cohort
    return forwards / options.clients if kind == "forwards_per_client" else forwards


def _method_bytes(options: SimulateOptions) -> int:
    """Bytes up and down of a round in which all of the cohort report, once a method's memory is full."""
    rules = replace(options.rules(), rounds=1)
    rate = _TYPICAL_RATE if rules.calibrated else rules.learning_rate
    method = get_method(rules.method)
    manifest = Manifest((TensorSpec("w", (1,), 29, 0),))
    genesis = options.genesis(bytes(32), manifest, Task(name=options.task, tokenizer_digest=b"", max_length=2))
    memory = method.memory(genesis)
    scalars = (_TYPICAL_GRADIENT,) * (rules.directions * rules.local_steps)
    examples, ticket = rules.batch_size * rules.local_steps, int(rules.asynchronous)
    reports = tuple(ClientReport(k, examples, 1.0, scalars, ticket) for k in range(rules.commit_reports))
    size = 0
    for number in range(1, max(1, rules.momentum_window) + 1):
        entries = method.aggregate(MethodRound(genesis, number, memory), rate, method_reports(reports))
        record = Record(number, Commit(entries, rate, reports))
        memory = method.remember(genesis, memory, record)
        size = frame_bytes(record)
    return sum(map(report_size, reports)) + size * rules.cohort
