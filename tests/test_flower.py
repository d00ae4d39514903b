"""A run under Flower: a real SuperLink and SuperNodes, and the journal is that of the simulation."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from commands import fedzo
from flower import CONNECTION, Deployment
from network import free_address, wait_until

from fedzo.journal import Commit, End, Evaluation, Void, read_journal

OPTIONS = {
    "method": "distinct",
    "rounds": 8,
    "batch-size": 4,
    "max-length": 32,
    "lr": 5e-3,
    "eval-every": 4,
    "attest-every": 4,
}
OPTIONS |= {"clients": 2, "quorum": 2, "deadline": 60}


@pytest.fixture(scope="module")
def place(demo, tmp_path_factory) -> Path:
    """The text of two farms, and beside it that of each for its node."""
    text = json.loads(Path(demo.data).read_text())
    farms = {key: text[key] for key in sorted(text)[:2]}
    place = tmp_path_factory.mktemp("flower")
    (place / "farms.json").write_text(json.dumps(farms))
    for number, key in enumerate(sorted(farms, key=lambda key: (-sum(map(len, farms[key])), key))):
        (place / f"data-{number}.json").write_text(json.dumps(farms[key]))
    return place


@pytest.fixture(scope="module")
def flower(demo, place):
    """A SuperLink and two SuperNodes."""
    with Deployment(place / "deployment") as started:
        started.start_superlink()
        for number in range(2):
            started.start_supernode(f"client-{number}", node_config(demo, place, number))
        yield started


@pytest.fixture(scope="module")
def durable(demo, place):
    """The same, with a SuperLink that can be killed."""
    with Deployment(place / "durable") as started:
        started.start_superlink(durable=True)
        for number in range(2):
            started.start_supernode(f"client-{number}", node_config(demo, place, number))
        yield started


def node_config(demo, place: Path, number: int) -> str:
    own = {"data": str(place / f"data-{number}.json"), "dir": str(place / f"dir-{number}")}
    return as_config({"model": demo.model, "threads": 1, "patience": 10} | own)


def as_config(values: dict[str, object]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in values.items())


def run_config(demo, out: Path, **changed: object) -> str:
    places = {"model": demo.model, "out": str(out), "name": out.name, "listen": free_address()}
    return as_config(OPTIONS | places | changed)


def position(run: Path) -> int:
    return read_journal(run / "journal").position if (run / "journal").exists() else 0


@pytest.mark.slow
def test_a_run_under_flower_writes_the_journal_of_the_simulation(flower, demo, place, tmp_path):
    config = run_config(demo, tmp_path / "meadow")
    said = flower.flwr("run", ".", CONNECTION, "--stream", "--run-config", config).stdout
    logs = flower.logs()
    contents = read_journal(tmp_path / "meadow" / "journal")
    assert isinstance(contents.records[-1].body, End), said + logs
    digest = contents.records[-1].state_digest
    assert digest is not None
    finished = re.findall(r"(client-\d): finished at position (\d+), state digest ([0-9a-f]{64})", said)
    assert sorted(finished) == [(f"client-{n}", str(contents.position), digest.hex()) for n in range(2)], said + logs
    for record in contents.records:
        if isinstance(record.body, Commit):
            assert f"round {record.round}: loss {record.body.loss:.4f} of 2 clients" in said
        if isinstance(record.body, Evaluation):
            assert f"round {record.round}: held-out loss {record.body.loss:.4f} of 2 clients" in said

    simulated = tmp_path / "simulated"
    same = OPTIONS | {"model": demo.model, "data": place / "farms.json", "partition": "by:key", "threads": 1}
    fedzo("simulate", "--out", simulated, *(part for name, value in same.items() for part in (f"--{name}", value)))
    journals = [tmp_path / "meadow", simulated, *(place / f"dir-{number}" / "meadow" for number in range(2))]
    assert len({(path / "journal").read_bytes() for path in journals}) == 1


@pytest.mark.slow
def test_rounds_in_flowers_messages_write_the_journal_of_the_simulation(flower, demo, place, tmp_path):
    """Only Flower's port is open: the ServerApp listens nowhere, and every turn is a new process on the node."""
    fewer = {"rounds": 3, "eval-every": 0, "attest-every": 2, "transport": "messages"}
    config = run_config(demo, tmp_path / "heath", **fewer)
    said = flower.flwr("run", ".", CONNECTION, "--stream", "--run-config", config).stdout
    contents = read_journal(tmp_path / "heath" / "journal")
    assert isinstance(contents.records[-1].body, End), said + flower.logs()
    assert "listening on" not in said
    end = f"position {contents.position}, record {contents.hashes[-1].hex()}"
    assert sorted(re.findall(r"(client-\d): finished at (.*)", said)) == [(f"client-{n}", end) for n in range(2)]

    simulated = tmp_path / "simulated"
    same = OPTIONS | fewer | {"model": demo.model, "data": place / "farms.json", "partition": "by:key", "threads": 1}
    del same["transport"]
    fedzo("simulate", "--out", simulated, *(part for name, value in same.items() for part in (f"--{name}", value)))
    journals = [tmp_path / "heath", simulated, *(place / f"dir-{number}" / "heath" for number in range(2))]
    assert len({(path / "journal").read_bytes() for path in journals}) == 1


@pytest.mark.slow
def test_a_killed_client_app_is_invited_again_and_a_stopped_run_goes_on(flower, demo, place, tmp_path):
    run = tmp_path / "orchard"
    config = run_config(demo, run, rounds=2000, deadline=2.0, **{"eval-every": 0, "attest-every": 100})
    run_id = flower.start_run(config)
    wait_until(lambda: position(run) >= 5, "the first rounds")

    os.kill(flower.pids("flwr-clientapp")[0], signal.SIGKILL)
    wait_until(lambda: "its session is dead" in flower.log_of(run_id), "the end of the killed session")
    wait_until(lambda: len(re.findall("joined at position", flower.log_of(run_id))) >= 3, "a new session")
    before = position(run)
    assert any(isinstance(record.body, Void) for record in read_journal(run / "journal").records)
    wait_until(lambda: position(run) >= before + 5, "rounds of both")

    flower.flwr("stop", run_id, CONNECTION)
    wait_until(lambda: not flower.pids("flwr-serverapp") + flower.pids("flwr-clientapp"), "the apps' end")
    stopped = read_journal(run / "journal")
    assert not isinstance(stopped.records[-1].body, End)

    resumed = as_config({"out": str(run), "resume": True, "listen": free_address()})
    said = flower.flwr("run", ".", CONNECTION, "--stream", "--run-config", resumed).stdout
    contents = read_journal(run / "journal")
    end = contents.records[-1]
    assert isinstance(end.body, End)
    assert end.state_digest is not None
    assert said.count(f"finished at position {contents.position}, state digest {end.state_digest.hex()}") == 2
    assert contents.hashes[: stopped.position + 1] == stopped.hashes
    for number in range(2):
        assert (place / f"dir-{number}" / "orchard" / "journal").read_bytes() == (run / "journal").read_bytes()


def ended_alike(run: Path, place: Path, said: str) -> bool:
    """Has the run ended, and do both nodes say so with its digest?"""
    contents = read_journal(run / "journal")
    end = contents.records[-1]
    if not isinstance(end.body, End) or end.state_digest is None:
        return False
    stated = f"finished at position {contents.position}, state digest {end.state_digest.hex()}"
    copies = [(place / f"dir-{number}" / run.name / "journal").read_bytes() for number in range(2)]
    return said.count(stated) == 2 and copies == [(run / "journal").read_bytes()] * 2


@pytest.mark.slow
def test_a_killed_supernode_comes_back_and_ends_with_the_same_digest(durable, demo, place, tmp_path):
    run = tmp_path / "paddock"
    config = run_config(demo, run, rounds=100_000, deadline=1.0, quorum=1, **{"eval-every": 0, "attest-every": 100})
    run_id = durable.start_run(config)

    def joins() -> int:
        return len(re.findall("client-1 joined at position", durable.log_of(run_id)))

    wait_until(joins, "the node's first session")  # rounds alone do not show it: one client is a quorum
    durable.kill("client-1")
    joined = joins()

    def is_back() -> bool:
        durable.revive_supernode("client-1", node_config(demo, place, 1))
        return joins() > joined

    wait_until(is_back, "a new session of the node")
    before = position(run)
    wait_until(lambda: position(run) >= before + 5, "rounds of both")
    durable.flwr("stop", run_id, CONNECTION)
    wait_until(lambda: not durable.pids("flwr-serverapp") + durable.pids("flwr-clientapp"), "the apps' end")
    copies = [read_journal(place / f"dir-{number}" / "paddock" / "journal").hashes for number in range(2)]
    hashes = read_journal(run / "journal").hashes
    assert all(copy == hashes[: len(copy)] and len(copy) > before for copy in copies)


@pytest.mark.slow
def test_rounds_go_on_without_the_superlink_and_it_learns_the_end_when_it_is_back(durable, demo, place, tmp_path):
    run = tmp_path / "fallow"
    config = run_config(demo, run, rounds=600, **{"eval-every": 0, "attest-every": 100})
    run_id = durable.start_run(config)
    wait_until(lambda: position(run) >= 5, "the first rounds")
    durable.kill("superlink")
    before = position(run)
    wait_until(lambda: position(run) >= before + 20, "rounds without a SuperLink")
    durable.start_superlink(durable=True)
    wait_until(lambda: ended_alike(run, place, durable.log_of(run_id)), "both nodes at the same end")
    contents = read_journal(run / "journal")
    assert not any(isinstance(record.body, Void) for record in contents.records)
