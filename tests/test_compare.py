"""`fedzo compare`: equal budgets and trials, a table that follows from the runs, nothing run twice, kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import psutil
import pytest
from commands import FEDZO, fedzo, refused
from documents import ROOT
from fedzo_simulations.compare.command import comparison_of
from fedzo_simulations.compare.queue import Queue
from fedzo_simulations.compare.result import Point, Result
from fedzo_simulations.compare.summary import markdown, mean_points, summary, table_of
from helpers import TESTS

from fedzo.errors import ConfigError
from fedzo.journal import Commit, Evaluation, read_journal
from fedzo.results.rebuild import check_history

WAIT_S = 300.0
ROWS = """
[[row]]
name = "distinct, 3 directions"
method = "distinct"
directions = 3
[[row]]
method = "momentum"
momentum-window = 3
momentum-decay = 0.5
cohort = 2
rates = [1e-3, 5e-3]
[[row]]
name = "MeZO"
method = "mezo"
[[row]]
method = "fedavg"
local-steps = 2
rates = [1e-2, 1e-1]
"""


def toml(demo, head: str, rows: str = ROWS) -> str:
    base = f'[base]\nmodel = "{demo.model}"\ndata = "{demo.data}"\n'
    base += 'partition = "by:key"\nclients = 4\nbatch-size = 4\nmax-length = 32\nthreads = 1\n'
    return f'title = "a test"\nseeds = [3, 4]\nrates = [1e-3, 1e-2]\nevaluations = 2\n{head}\n{base}{rows}'


@pytest.fixture(scope="module")
def described(demo, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "comparison.toml"
    path.write_text(toml(demo, 'forwards = 100\ntrial-share = 0.5\nreach = "MeZO"'))
    return path


@pytest.fixture(scope="module")
def compared(described) -> tuple[Path, Path, str]:
    """TOML file, output directory and what was printed."""
    out = described.parent / "out"
    return described, out, fedzo("compare", "--config", described, "--out", out).stdout


def queue_of(config: Path, out: Path) -> Queue:
    return Queue(comparison_of([], config, {}, {}), out)


def lines_of(cell) -> list[dict]:
    return [json.loads(line) for line in (cell.path / "metrics.jsonl").read_text().splitlines()]


def test_every_row_has_all_its_trials_and_seeds_within_the_budget(compared):
    config, out, _ = compared
    queue = queue_of(config, out)
    assert queue.missing() == []
    each = {"distinct, 3 directions": 4 * 3 * 2, "momentum": 2 * 2, "MeZO": 2, "fedavg": 4 * 2 * 3}
    for row in queue.comparison.rows:
        assert len(queue.trials(row)) == 2
        for cells, budget in ((queue.trials(row), 50), (queue.seeds(row), 100)):
            for cell in cells:
                spent = cell.result().points[-1].forwards
                assert budget - each[row.name] < spent <= budget
                assert spent == each[row.name] * cell.options().rounds
    directories = {path.name for path in (out / "momentum").iterdir()}
    assert {"lr-0.001-seed-3-trial", "lr-0.005-seed-3-trial"} < directories
    assert len(directories) == 4


def test_the_learning_rate_is_that_of_the_best_trial(compared):
    config, out, _ = compared
    queue = queue_of(config, out)
    for row in queue.comparison.rows:
        found = {cell.rate: lines_of(cell)[-1]["held_out_loss"] for cell in queue.trials(row) if row.is_baseline}
        for cell in queue.trials(row) if not row.is_baseline else []:
            evaluations = [r.body for r in read_journal(cell.run.journal).records if isinstance(r.body, Evaluation)]
            found[cell.rate] = evaluations[-1].loss
        assert queue.rate(row) == min(found, key=found.get)
        assert queue.tried(row) == pytest.approx(found)
        assert {cell.rate for cell in queue.seeds(row)} == {queue.rate(row)}


def test_the_figures_are_those_of_the_runs(compared):
    """Recomputed from the metrics that each run has written while it ran."""
    config, out, said = compared
    queue = queue_of(config, out)
    stated = json.loads((out / "comparison.json").read_text())
    assert stated["missing"] == []
    for row, line, found in zip(queue.comparison.rows, summary(queue), stated["rows"], strict=True):
        runs = [lines_of(cell) for cell in queue.seeds(row)]
        evaluated = [[entry for entry in run if entry["kind"] == "evaluation"] for run in runs]
        losses = [entries[-1]["held_out_loss"] for entries in evaluated]
        assert found["loss"] == line.loss == pytest.approx(mean(losses), rel=1e-9)
        assert found["loss_spread"] == pytest.approx(stdev(losses), rel=1e-9)
        last = [[entry for entry in run if "bytes_up" in entry][-1] for run in runs]
        assert line.bytes == mean(entry["bytes_up"] + entry["bytes_down"] for entry in last)
        held_out_batches = (runs[0][-1]["forwards"] if row.is_baseline else last[0]["forwards"]) - line.forwards
        assert held_out_batches % len(evaluated[0]) == 0, "every evaluation costs the same"
        per_client = line.forwards if row.method == "mezo" else line.forwards / 4
        assert line.forwards_per_client == per_client
        assert f"{mean(losses):.4f} ± {stdev(losses):.4f}" in " ".join(markdown(table_of(queue)).split())
    assert "held-out loss" in said


def test_what_is_reached_is_the_first_evaluation_at_or_below_the_rows_loss(compared):
    config, out, _ = compared
    queue = queue_of(config, out)
    lines = {line.name: line for line in summary(queue)}
    target = lines["MeZO"].loss
    assert lines["MeZO"].reached_forwards == 100
    for row in queue.comparison.rows:
        evaluations = [[e for e in lines_of(cell) if e["kind"] == "evaluation"] for cell in queue.seeds(row)]
        losses = [{e["round"]: e["held_out_loss"] for e in seed} for seed in evaluations]
        each = lines[row.name].forwards / lines[row.name].rounds
        common = sorted(losses[0].keys() & losses[1].keys())
        reached = [number * each for number in common if mean(seed[number] for seed in losses) <= target + 1e-12]
        assert lines[row.name].reached_forwards == (reached[0] if reached else None)


def test_the_mean_over_seeds_is_of_the_same_rounds():
    """One of them had a doubt, and evaluated once more."""
    points = {0: 4.0, 3: 9.0, 20: 2.0, 40: 1.0}
    seeds = [
        Result({}, [Point(number, 2 * number, 8, points[number] + seed, None) for number in rounds], 40, 4, 4, {})
        for seed, rounds in enumerate([(0, 3, 20, 40), (0, 20, 40)])
    ]
    assert [(point.round, point.forwards, point.loss) for point in mean_points(seeds)] == [
        (0, 0, 4.5),
        (20, 40, 2.5),
        (40, 80, 1.5),
    ]
    assert mean_points([]) == []


def test_rows_see_the_same_task(compared):
    """Held-out losses before training agree, and a run's journal is one that `fedzo replay` and others take."""
    config, out, _ = compared
    queue = queue_of(config, out)
    first = [cell.result().points[0].loss for row in queue.comparison.rows for cell in queue.seeds(row)]
    assert first == pytest.approx([first[0]] * 8, rel=1e-5)
    cell = queue.seeds(queue.comparison.rows[1])[0]
    contents = read_journal(cell.run.journal)
    check_history(contents)
    assert contents.genesis.rules.method == "momentum"
    assert sum(isinstance(record.body, Commit) for record in contents.records) == 25
    assert "all equal" in fedzo("replay", cell.path).stdout


def test_what_is_finished_is_not_run_again(compared):
    config, out, said = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("result.json", "journal")}
    done = fedzo("compare", "--config", config, "--out", out)
    assert done.stdout == said
    assert done.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_kill_between_a_runs_end_and_its_result_costs_nothing(compared, tmp_path):
    config, out, _ = compared
    shutil.copytree(out, tmp_path / "out")
    for row in ("momentum", "mezo"):
        for result in (tmp_path / "out" / row).rglob("result.json"):
            result.unlink()
    said = fedzo("compare", "--config", config, "--out", tmp_path / "out")
    assert said.stderr.count("forwards") == 8
    for result in out.rglob("result.json"):
        assert (tmp_path / "out" / result.relative_to(out)).read_bytes() == result.read_bytes()


def test_a_row_that_is_added_is_all_that_is_run(compared, tmp_path):
    config, out, _ = compared
    shutil.copytree(out, tmp_path / "out")
    more = tmp_path / "more.toml"
    more.write_text(config.read_text() + '[[row]]\nname = "new"\nmethod = "sign"\nrates = [1e-3, 1e-2]\n')
    said = fedzo("compare", "--config", more, "--out", tmp_path / "out", "--at-most", 1)
    assert said.stderr.count("forwards") == 1
    assert "missing: new, lr 0.01, seed 3, trial" in said.stdout
    assert "missing: new, best lr, seed 4" in said.stdout
    assert said.stdout.count("missing") == 3
    *_, new = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert (new["rate"], new["tried"], new["trials"], new["seeds"]) == (1e-3, 1, 2, 0)
    assert "0.001 (of 1" in said.stdout


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("batch-size = 4", "batch-size = 8", "batch-size was 4, is 8"),
        ("clients = 4", 'clients = 4\neval-data = "every:3"', "eval-data was 'every:10', is 'every:3'"),
    ],
)
def test_cells_run_with_other_options_are_refused(before, after, difference, compared, tmp_path):
    config, out, _ = compared
    changed = tmp_path / "changed.toml"
    changed.write_text(config.read_text().replace(before, after))
    message = refused("compare", "--config", changed, "--out", out)
    assert "was run with other options than row 'distinct, 3 directions' has now" in message
    assert difference in message


def unfinished(out: Path, kept: Path) -> Path:
    """A copy of a comparison, in which no run of momentum has its result."""
    shutil.copytree(out, kept)
    for result in (kept / "momentum").rglob("result.json"):
        result.unlink()
    return kept


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ("drop = 0.1", "drop was 0.0, is 0.1"),
        ("delay = 1.5", "delay was 0.0, is 1.5"),
        ("attack = 'flip'\nattackers = 0.25", "attack was 'none', is 'flip', attackers was 0.0, is 0.25"),
        ("dtype = 'bfloat16'", "dtype was 'float32', is 'bfloat16'"),
        ("compute-copy = 'bf16'", "compute-copy was 'none', is 'bf16'"),
        ("eval-batch-size = 2", "eval-batch-size was 0, is 2"),
        ("partition = 'iid'", "partition was 'by:key', is 'iid'"),
        ("text-field = 'other'", "text-field was 'text', is 'other'"),
        ("eval-data = 'every:5'", "eval-data was 'every:10', is 'every:5'"),
    ],
)
@pytest.mark.parametrize("knows_its_sources", [True, False])
def test_an_unfinished_cell_is_not_gone_on_with_under_other_options(
    changed, difference, knows_its_sources, compared, tmp_path
):
    """The genesis has none of these. Where sources were not kept, the run's own options still tell."""
    config, out, _ = compared
    kept = unfinished(out, tmp_path / "out")
    if not knows_its_sources:
        for sources in kept.rglob("sources.json"):
            sources.unlink()
    assert len(queue_of(config, kept).missing()) == 2 + 2, "as they are, they would be gone on with"
    other = tmp_path / "changed.toml"
    other.write_text(config.read_text().replace("momentum-decay = 0.5", f"momentum-decay = 0.5\n{changed}"))
    with pytest.raises(ConfigError, match="was run with other options than row 'momentum' has now") as error:
        queue_of(other, kept).missing()
    assert difference in str(error.value)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("changed", ["model", "data"])
def test_cells_run_on_other_data_or_another_base_are_refused(finished, changed, compared, demo, tmp_path):
    """Files count, not where they are; a result that does not say what it came of is taken at its word."""
    config, out, _ = compared
    kept = shutil.copytree(out, tmp_path / "out") if finished else unfinished(out, tmp_path / "out")
    described = tmp_path / "other.toml"
    data, model = tmp_path / Path(demo.data).name, shutil.copytree(demo.model, tmp_path / "model")
    shutil.copy(demo.data, data)
    described.write_text(config.read_text().replace(demo.data, str(data)).replace(demo.model, str(model)))
    assert len(queue_of(described, kept).missing()) == (0 if finished else 4)
    if changed == "model":
        (model / "more.json").write_text("{}")
    else:
        data.write_text(data.read_text().replace("the", "a", 1))
    with pytest.raises(ConfigError, match="has now") as error:
        queue_of(described, kept).missing()
    assert f"({changed} was 'blake3:" in str(error.value)
    for result in kept.rglob("result.json"):
        stated = json.loads(result.read_text())
        assert set(stated.pop("sources")) == {"model", "data", "eval_data"}
        result.write_text(json.dumps(stated))
    if finished:
        assert queue_of(described, kept).missing() == []


def make_results(comparisons: Path, runs: Path, docs: Path) -> subprocess.CompletedProcess[str]:
    """Pages of what is there already."""
    command = [sys.executable, "-m", "benchmarks.results", "--missing", "--comparisons", comparisons]
    command += ["--runs", runs, "--docs", docs]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_make_results_writes_a_page_with_the_table_and_says_what_is_missing(compared, tmp_path):
    config, out, _ = compared
    shutil.copytree(out, tmp_path / "runs" / config.stem)
    (comparisons := tmp_path / "comparisons").mkdir()
    more = '[[row]]\nname = "new"\nmethod = "sign"\nrates = [1e-3, 1e-2]\n'
    (comparisons / config.name).write_text(config.read_text() + more)
    elsewhere = config.read_text().replace("[base]", '[subject]\nmake = "$NO_SUCH"\n[base]')
    (comparisons / "unknown.toml").write_text(elsewhere)
    done = make_results(comparisons, tmp_path / "runs", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "5 missing" in done.stdout, "two trials, two seeds, and the comparison that was left out"
    assert "left out" in done.stdout
    page = (tmp_path / "comparison.md").read_text()
    for line in summary(queue_of(config, out)):
        assert f"| {line.name} | {line.rate:g}" in page
        assert f"{line.loss:.4f} ± {line.loss_spread:.4f}" in page
    assert "4 runs are missing" in page
    assert "missing: new, lr 0.001, seed 3, trial" in done.stdout
    assert not (tmp_path / "unknown.md").exists()


def test_results_are_kept_for_another_checkout_unless_a_row_is_another_by_then(compared, tmp_path):
    """The page of kept results alone is the same; of a changed row nothing is taken over."""
    config, out, _ = compared
    shutil.copytree(out, tmp_path / "runs" / config.stem)
    page, kept = tmp_path / "comparison.md", tmp_path / "comparison.json"
    shutil.copytree(config.parent, described := tmp_path / "described", ignore=shutil.ignore_patterns("out"))
    assert make_results(described, tmp_path / "runs", tmp_path).returncode == 0
    first, known = page.read_text(), kept.read_text()
    again = make_results(described, tmp_path / "empty", tmp_path)
    assert (again.returncode, page.read_text(), kept.read_text()) == (0, first, known), again.stdout
    (changed := tmp_path / "changed").mkdir()
    (changed / config.name).write_text(config.read_text().replace('method = "distinct"', 'method = "shared"', 1))
    done = make_results(changed, tmp_path / "other", tmp_path)
    assert done.returncode == 1
    assert "not what was kept, so it is to be run again: distinct-3-directions/" in done.stdout
    left = set(json.loads(kept.read_text()))
    assert left == {name for name in json.loads(known) if not name.startswith("distinct-3-directions/")}
    kept.write_text(known)
    (tmp_path / "begun" / "comparison" / "momentum" / "lr-0.001-seed-3-trial").mkdir(parents=True)
    begun = tmp_path / "begun" / "comparison" / "momentum" / "lr-0.001-seed-3-trial" / "journal"
    shutil.copy(next(out.rglob("momentum/lr-0.001-seed-3-trial/journal")), begun)
    assert make_results(described, tmp_path / "begun", tmp_path).returncode == 1, "a run that was begun is gone on with"
    assert set(json.loads(kept.read_text())) == set(json.loads(known)), "and what it came to elsewhere stays kept"
    kept.write_text("{")
    damaged = make_results(changed, tmp_path / "other", tmp_path)
    assert damaged.returncode == 1
    assert "holds no results" in damaged.stdout
    assert "Traceback" not in damaged.stderr


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that run its cells."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def running(process: psutil.Process) -> bool:
    """Does it run? One that has ended may wait for a parent to take note."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_that_is_killed_goes_on_to_the_same_results(jobs, compared, tmp_path):
    """kill -9 in the midst of a run of fedzo's and, later, anywhere; the journals are those of the one left alone."""
    config, alone, _ = compared
    out = tmp_path / "out"
    command = [*FEDZO, "compare", "--config", str(config), "--out", str(out), "--jobs", str(jobs)]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}

    def kill_when(ready) -> None:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + WAIT_S
        while not ready() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        theirs = workers_of(process.pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait(WAIT_S) == -signal.SIGKILL
        assert len(theirs) == (jobs if jobs > 1 else 0)
        while any(running(worker) for worker in theirs):
            assert time.monotonic() < deadline + WAIT_S
            time.sleep(0.01)

    begun = out / "momentum" / "lr-0.001-seed-3-trial"
    kill_when(lambda: (begun / "metrics.jsonl").exists() and (begun / "metrics.jsonl").read_text().count("commit") > 3)
    assert not (begun / "result.json").exists()
    kill_when(lambda: (out / "mezo").exists() and len(list((out / "mezo").rglob("metrics.jsonl"))) > 1)
    fedzo("compare", "--config", config, "--out", out, "--jobs", jobs, env=environment)
    for result in alone.rglob("result.json"):
        again = out / result.relative_to(alone)
        assert json.loads(again.read_text()) == json.loads(result.read_text())
        if (result.parent / "journal").exists():
            assert (again.parent / "journal").read_bytes() == (result.parent / "journal").read_bytes()


def kill_a_worker(pid: int) -> None:
    workers_of(pid)[0].kill()


def interrupt(pid: int) -> None:
    os.kill(pid, signal.SIGINT)


@pytest.mark.parametrize(("end", "code", "message"), [(kill_a_worker, 1, "from outside"), (interrupt, 130, "")])
def test_what_ends_a_comparison_of_several_jobs_waits_for_no_run(end, code, message, compared, tmp_path):
    config, _, _ = compared
    command = [*FEDZO, "compare", "--config", str(config), "--out", str(tmp_path / "out"), "--jobs", "2"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(TESTS)}
    ) as run:
        deadline = time.monotonic() + WAIT_S
        while not list(tmp_path.rglob("metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = workers_of(run.pid)
        end(run.pid)
        said = run.communicate(timeout=WAIT_S)[1]
    assert run.returncode == code
    assert message in said
    assert "Traceback" not in said
    assert not any(running(worker) for worker in workers)
    assert len(list(tmp_path.rglob("result.json"))) < 3


def test_methods_may_be_named_on_the_command_line(demo, tmp_path):
    options = ["--model", demo.model, "--data", demo.data, "--clients", 2, "--batch-size", 4, "--max-length", 32]
    said = fedzo(
        "compare", "sign", "adamw", *options, "--forwards-per-client", 12, "--out", tmp_path, "--rates", "1e-3"
    )
    lines = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert [(line["name"], line["forwards"], line["forwards_per_client"]) for line in lines] == [
        ("sign", 24, 12),
        ("adamw", 12, 12),
    ]
    assert "missing" not in said.stdout
