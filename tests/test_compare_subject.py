"""`fedzo compare` of a module and datasets that a function makes."""

import shutil
import subprocess
import sys

import pytest
from commands import fedzo
from fedzo_simulations.compare.command import comparison_of, run_comparison
from fedzo_simulations.compare.summary import summary
from helpers import TESTS
from rich.console import Console
from test_compare import queue_of

from fedzo.errors import ConfigError


def test_a_function_makes_module_and_datasets(tmp_path):
    config = tmp_path / "made.toml"
    config.write_text("""
        forwards = 400
        seeds = [0, 1]
        rates = [1e-2]
        [subject]
        make = "compared:make"
        examples = 20
        [base]
        clients = 2
        batch-size = 4
        threads = 1
        [[row]]
        method = "distinct"
        directions = 4
        [[row]]
        method = "sgd"
    """)
    fedzo("compare", "--config", config, "--out", tmp_path / "out")
    ours, sgd = summary(queue_of(config, tmp_path / "out"))
    queue = queue_of(config, tmp_path / "out")
    starts = [queue.results(row)[0].points[0].loss for row in queue.comparison.rows]
    assert starts[0] == pytest.approx(starts[1], rel=1e-6)
    assert ours.loss < starts[0]
    assert sgd.loss < starts[0]
    assert ours.metric == sgd.metric == 0.5


def test_a_users_module_is_found_in_the_current_directory(tmp_path):
    """As the installed command finds it, whose own path does not begin there."""
    shutil.copy(TESTS / "compared.py", tmp_path / "mine.py")
    (tmp_path / "made.toml").write_text("""
        forwards = 4
        rates = [1e-2]
        [subject]
        make = "mine:make"
        examples = 20
        [[row]]
        method = "sgd"
        clients = 2
        batch-size = 4
        threads = 1
    """)
    command = [sys.executable, "-P", "-m", "fedzo.cli", "compare", "--config", "made.toml", "--out", "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert list(tmp_path.glob("out/*/*/result.json"))


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ("examples = 20", "drop was 0.1, is 0.0"),
        ("examples = 21\n[base]\ndrop = 0.1", "subject was {'make': 'compared:make', 'examples': 20}, is"),
    ],
)
def test_an_unfinished_cell_of_a_module_is_not_gone_on_with_under_other_options(now, difference, tmp_path):
    """An option that goes back to its default, and a subject with other arguments."""
    head = 'forwards = 80\nrates = [1e-2]\n[[row]]\nmethod = "distinct"\nclients = 2\nbatch-size = 4\nthreads = 1\n'
    config, other = tmp_path / "made.toml", tmp_path / "other.toml"
    subject = '[subject]\nmake = "compared:make"\n'
    config.write_text(f"{head}{subject}examples = 20\n[base]\ndrop = 0.1\n")
    other.write_text(f"{head}{subject}{now}\n")
    run_comparison(comparison_of([], config, {}, {}), tmp_path / "out", Console(quiet=True))
    (result,) = tmp_path.rglob("result.json")
    result.unlink()
    assert len(queue_of(config, tmp_path / "out").missing()) == 1
    with pytest.raises(ConfigError) as error:
        queue_of(other, tmp_path / "out").missing()
    assert difference in str(error.value)
    run_comparison(comparison_of([], config, {}, {}), tmp_path / "out", Console(quiet=True))
    assert result.exists()
