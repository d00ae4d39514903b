"""`fedzo simulate --engine processes` and `fedzo demo --processes`: a real server and clients, none of which stays."""

import os
import re
import signal
from pathlib import Path

import pytest
from commands import FEDZO, fedzo, refused, simulate_options
from engines import UnderWay, counted
from fedzo_simulations.federation import hand_over
from helpers import make_genesis, numbered_record
from network import wait_until

from fedzo.errors import ConfigError
from fedzo.journal import End, Journal, read_journal


def running(path: Path) -> list[int]:
    """Processes whose command line names something under a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            named, state = (entry / "cmdline").read_bytes(), (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(path).encode() in named and state != "Z":
            found.append(int(entry.name))
    return found


def by_processes(demo, out: Path, *more: object, **changed) -> list[str]:
    """The command line of a run of processes."""
    return [*FEDZO, "simulate", *simulate_options(demo, out, engine="processes", **changed), *map(str, more)]


class Started(UnderWay):
    """A `fedzo simulate --engine processes`; all its processes name something in the run directory."""

    def pids(self) -> list[int]:
        return running(self.out)

    def said(self) -> str:
        """On one line."""
        return " ".join(super().said().split())


@pytest.mark.slow
def test_processes_leave_the_run_directory_of_an_inline_run(finished, demo, tmp_path):
    out = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, out, engine="processes"))
    assert running(tmp_path) == []
    assert (out / "journal").read_bytes() == (finished / "journal").read_bytes()
    for name in ("server", *(f"clients/client-{client}" for client in range(4))):
        assert (out / name / "journal").read_bytes() == (finished / "journal").read_bytes()
    here, there = (counted(run) for run in (out, finished))
    assert here == there, "what was measured is counted alike"
    assert (out / "replica.state").read_bytes() == (finished / "replica.state").read_bytes()
    digest = read_journal(out / "journal").records[-1].state_digest.hex()
    assert digest in fedzo("replay", out).stdout
    assert fedzo("evaluate", out).stdout == fedzo("evaluate", finished).stdout
    fedzo("plot", out, "--out", tmp_path / "plot.png")
    fedzo("export", out, "--out", tmp_path / "tuned")
    assert digest in fedzo("simulate", "--resume", "--out", out).stderr, "nothing is left to do, so nothing starts"


@pytest.mark.slow
def test_no_process_outlives_the_run_and_it_goes_on_to_the_same_bytes(demo, tmp_path):
    """Ctrl-C, a client killed -9 and the whole command killed -9, one after the other, then the run to its end."""
    options = {"rounds": 240, "directions": 8, "eval-every": 20, "attest-every": 10, "clients": 2}
    fedzo("simulate", *simulate_options(demo, tmp_path / "inline", **options))
    out = tmp_path / "processes"
    with Started(by_processes(demo, out, **options), out) as run:
        run.wait_for_position(5)
        run.signal(signal.SIGINT)
        run.said()
        assert run.returncode not in (0, None)
        assert running(out) == []
    resume = [*FEDZO, "simulate", "--resume", "--out", str(out)]
    with Started(resume, out) as run:
        run.wait_for_position(read_journal(out / "journal").position + 3)
        victim = next(pid for pid in running(out) if b"client-1" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(victim, signal.SIGKILL)
        assert "process client-1 ended with signal 9" in run.said()
        assert run.returncode == 1
        assert running(out) == []
    with Started(resume, out) as run:
        run.wait_for_position(read_journal(out / "journal").position + 3)
        run.signal(signal.SIGKILL)
        wait_until(lambda: running(out) == [], "that the processes notice")
    assert not isinstance(read_journal(out / "journal").records[-1].body, End), "it had not come to its end"
    with Started(resume, out) as run:
        run.said()
        assert run.returncode == 0
    assert (out / "journal").read_bytes() == (tmp_path / "inline" / "journal").read_bytes()


@pytest.mark.parametrize(("option", "value"), [("drop", 0.3), ("delay", 2.0)])
def test_what_means_nothing_for_processes_is_refused_by_name(demo, tmp_path, option, value):
    options = simulate_options(demo, tmp_path / "run", engine="processes", **{option: value})
    assert f"option {option} is {value}: processes answer as clients do" in refused("simulate", *options)
    assert not (tmp_path / "run").exists()


def test_an_unknown_engine_is_refused(demo, tmp_path):
    said = refused("simulate", *simulate_options(demo, tmp_path / "run", engine="ray"))
    assert "engine 'ray' is unknown; choose one of: inline, processes" in said


@pytest.mark.slow
def test_a_process_that_fails_is_named_with_its_last_words(demo, tmp_path):
    out = tmp_path / "run"
    (out / "clients" / "client-1" / "journal").mkdir(parents=True)
    said = refused("simulate", *simulate_options(demo, out, engine="processes", clients=2))
    assert re.search("process client-1 ended with exit code 1; it said last: error: .*client-1/journal", said)
    assert running(out) == []


@pytest.mark.slow
def test_the_demo_of_processes_ends_with_one_digest_and_leaves_nobody(tmp_path):
    out = tmp_path / "demo"
    said = fedzo("demo", "--processes", "--out", out).stdout
    stated = read_journal(out / "server" / "journal").records[-1].state_digest.hex()
    digests = re.findall(r"^  ([0-9a-f]{64})  ", said, re.MULTILINE)
    assert digests == [stated] * 5, "server, three clients, late joiner"
    assert "the server was given no token" in said
    back = re.search(r"client-1 rebuilt position \d+ from its state file .* was sent the (\d+) records", said)
    assert int(back[1]) >= 10
    assert re.search(r"; [1-9]\d* of 160 rounds were committed without it", said)
    assert running(out) == []
    pids = [int(pid) for pid in re.findall(r"process (\d+),", said)]
    assert len(pids) == 5, "a server, three clients, one of them twice"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _journal(path: Path, *rounds: int) -> Path:
    with Journal.create(path, make_genesis()) as journal:
        for number in rounds:
            journal.append(numbered_record(number))
    return path


@pytest.mark.parametrize(("server", "left"), [((1,), 2), ((1, 2), 2), ((1, 2, 3), 3)])
def test_the_server_gets_the_longer_of_the_run_and_its_own_journal(tmp_path, server, left):
    run = _journal(tmp_path / "run", 1, 2)
    hand_over(run, _journal(tmp_path / "server", *server))
    assert read_journal(tmp_path / "server").position == left


def test_journals_that_went_different_ways_are_not_mixed(tmp_path):
    run, server = _journal(tmp_path / "run", 1, 2), _journal(tmp_path / "server", 1, 3, 4)
    before = server.read_bytes()
    with pytest.raises(ConfigError, match="went different ways before position 2"):
        hand_over(run, server)
    assert server.read_bytes() == before
