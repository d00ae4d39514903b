"""How many rounds a comparison's budget pays for: of bytes, with calibrations, of runs without rounds, of baselines."""

from pathlib import Path

import pytest
from commands import fedzo
from fedzo_simulations.compare.cells import Cell
from fedzo_simulations.compare.summary import Line, summary
from test_compare import lines_of, queue_of, toml

from fedzo.journal import Calibration, Commit, read_journal
from fedzo.journal.codec import encode_record, report_size


def run_alone(demo, place: Path, budget: str, options: str) -> tuple[Cell, Line]:
    """The one cell of a comparison of `distinct` with one seed, and its line."""
    config = place / "alone.toml"
    rows = f'[[row]]\nmethod="distinct"\n{options}\n'
    config.write_text(toml(demo, budget, rows).replace("seeds = [3, 4]", "seeds = [3]"))
    fedzo("compare", "--config", config, "--out", place / "out")
    queue = queue_of(config, place / "out")
    (row,) = queue.comparison.rows
    (cell,), (line,) = queue.seeds(row), summary(queue)
    return cell, line


def test_a_budget_of_bytes_is_nearly_spent(demo, tmp_path):
    config = tmp_path / "bytes.toml"
    rows = '[[row]]\nmethod="momentum"\nmomentum-window=4\nmomentum-decay=0.9\n[[row]]\nmethod="shared"\n'
    config.write_text(toml(demo, "bytes = 40000", rows).replace("rates = [1e-3, 1e-2]", "rates = [1e-3]"))
    fedzo("compare", "--config", config, "--out", tmp_path / "out")
    for line in summary(queue_of(config, tmp_path / "out")):
        assert 0.75 * 40000 < line.bytes < 1.05 * 40000
        assert line.seeds == 2


@pytest.mark.parametrize("budget", ["forwards = 300", "forwards-per-client = 75", "bytes = 20000"])
def test_calibrations_are_paid_for_from_the_budget(budget, demo, tmp_path):
    """What a run spent, calibrations included, and that one more round would not have been paid for."""
    cell, line = run_alone(demo, tmp_path, budget, 'rates=["auto"]\ncohort=2')
    evaluated = [entry["forwards"] for entry in lines_of(cell) if entry["kind"] == "evaluation"]
    records = read_journal(cell.run.journal).records
    calibrations = [record for record in records if isinstance(record.body, Calibration)]
    assert len(calibrations) > 1
    assert line.forwards == evaluated[-1] - len(evaluated) * evaluated[0], "what was measured, without evaluations"
    paid = [record for record in records if isinstance(record.body, Commit | Calibration)]
    sent = sum(report_size(report) for record in paid for report in record.body.reports)
    assert line.bytes == sent + 2 * sum(len(encode_record(record)) + 40 for record in paid)
    spent = {"forwards": line.forwards, "forwards-per-client": line.forwards_per_client, "bytes": line.bytes}
    kind, amount = budget.split(" = ")
    most = {"forwards": 4 + 2 * 9, "forwards-per-client": 1 + 9 / 2, "bytes": 0.15 * 20000}[kind]
    assert int(amount) - most < spent[kind] <= int(amount) * (1.05 if kind == "bytes" else 1)


def test_fedavgs_bytes_are_all_weights_there_and_back(demo, tmp_path):
    config = tmp_path / "bytes.toml"
    rows = '[[row]]\nmethod="fedavg"\n'
    config.write_text(toml(demo, "bytes = 4000000", rows).replace("rates = [1e-3, 1e-2]", "rates = [1e-1]"))
    fedzo("compare", "--config", config, "--out", tmp_path / "out")
    (line,) = summary(queue_of(config, tmp_path / "out"))
    assert (line.rounds, line.bytes) == (2, 2 * 2 * 4 * 48576 * 4)


@pytest.mark.parametrize("budget", ["forwards = 120", "bytes = 20000"])
def test_a_run_without_rounds_pays_for_the_reports_of_its_commits(budget, demo, tmp_path):
    """Not for those of all clients, which are at work on later ones; every record goes to all of them."""
    cell, line = run_alone(demo, tmp_path, budget, "rates=[1e-3]\nbuffer=2")
    paid = [r for r in read_journal(cell.run.journal).records if isinstance(r.body, Commit)]
    reports = [report for record in paid for report in record.body.reports]
    assert line.forwards == 2 * len(reports)
    sent = sum(map(report_size, reports))
    assert line.bytes == sent + 4 * sum(len(encode_record(record)) + 40 for record in paid)
    kind, amount = budget.split(" = ")
    assert 0.85 * int(amount) <= getattr(line, kind) <= 1.05 * int(amount)
