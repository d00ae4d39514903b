"""Servers and clients as a user runs them: they survive being killed, and every replica is the journal's."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from federation import OPTIONS
from fedzo_client.home import Home
from journals import payloads_of

from fedzo.base.checkpoint import load_base
from fedzo.errors import ReplicaError
from fedzo.journal import Commit, Enrolment, Journal, read_journal
from fedzo.noise import get_backend
from fedzo.run_directory import RunDirectory
from fedzo.v1 import rounds_pb2 as pb


def test_processes_that_were_left_alone_write_the_journal_of_the_simulation(federation, nursery, demo, tmp_path):
    found = federation().start()
    same = {name: value for name, value in found.options.items() if name != "linger"} | {"threads": 1}
    simulated = nursery.start(
        "simulate",
        *("--model", demo.model, "--data", demo.data, "--partition", "by:key", "--out", tmp_path / "simulated"),
        *(part for name, value in same.items() for part in (f"--{name}", value)),
    )
    assert simulated.wait() == 0, simulated.said
    found.finish()
    assert (found.run / "journal").read_bytes() == (tmp_path / "simulated" / "journal").read_bytes()


def test_answers_that_are_lost_and_reports_that_come_twice_change_nothing(federation, nursery, demo, tmp_path):
    """Everyone is asked in every round, so that the journal is that of the simulation, or something was changed."""
    found = federation(proxied=True)
    found.start_server()
    for number in range(found.count):
        found.start_client(number)
        found.proxies[number].answers_to_lose, found.proxies[number].reports_to_repeat = 3, 5
    same = {name: value for name, value in found.options.items() if name != "linger"} | {"threads": 1}
    simulated = nursery.start(
        "simulate",
        *("--model", demo.model, "--data", demo.data, "--partition", "by:key", "--out", tmp_path / "simulated"),
        *(part for name, value in same.items() for part in (f"--{name}", value)),
    )
    assert simulated.wait() == 0, simulated.said
    found.finish()
    assert {(proxy.answers_lost, proxy.reports_repeated) for proxy in found.proxies.values()} == {(3, 5)}
    assert (found.run / "journal").read_bytes() == (tmp_path / "simulated" / "journal").read_bytes()


def test_a_killed_client_comes_back_from_its_own_state_file(federation):
    found = federation(rounds=40, directions=4, quorum=3, deadline=10).start()
    found.wait_for_position(12)
    found.clients[1].kill()
    held = read_journal(found.directory(1) / "journal").position
    found.start_client(1)
    found.finish()
    at, saved = re.search(r"at position (\d+), from the state file at position (\d+)", found.clients[1].said).groups()
    assert 0 < int(saved) <= int(at) == held
    assert found.joins(1) == [0, held], "it fetched only what came while it was away"
    assert held >= 11
    assert found.committed() == list(range(1, 41))


@pytest.mark.parametrize("method", [{}, {"method": "fedkseed", "pool-size": 16}], ids=["distinct", "fedkseed"])
def test_a_late_joiner_catches_up_and_is_enrolled(federation, method):
    found = federation(rounds=80, directions=8, clients=2, quorum=1, **method).start()
    found.wait_for_position(8)
    found.start_client(2)
    found.finish()
    enrolments = [r.body for r in read_journal(found.run / "journal").records if isinstance(r.body, Enrolment)]
    assert enrolments == [Enrolment(0, ("client-0", "client-1")), Enrolment(2, ("client-2",))]
    copy = read_journal(found.directory(2) / "journal")
    assert (copy.start is None) is (method == {}), "with a pool it begins with totals"
    assert found.joins(2) == [0 if copy.start is None else copy.first + 1]


def test_a_client_that_is_paused_past_the_deadline_holds_nobody_up(federation):
    found = federation(rounds=24, directions=4, clients=3, quorum=1, deadline=3).start()
    found.wait_for_position(6)
    found.clients[2].signal(signal.SIGSTOP)
    before = found.position
    found.wait_for_position(before + 4)
    found.clients[2].signal(signal.SIGCONT)
    found.finish()
    commits = [r.body for r in read_journal(found.run / "journal").records if isinstance(r.body, Commit)]
    assert {2, 3} <= {len(commit.reports) for commit in commits}


def test_a_client_told_to_stop_keeps_its_place(federation):
    found = federation(rounds=30, directions=4, clients=2, quorum=1, deadline=10).start()
    found.wait_for_position(7)
    found.clients[0].signal(signal.SIGTERM)
    assert found.clients[0].wait() == 0
    position = re.search(r"stopped at position (\d+), state digest", found.clients[0].said)[1]
    found.start_client(0).wait_for(f"at position {position}, from the state file at position {position}")
    found.finish()


def test_clients_find_a_server_again_that_was_killed(federation):
    found = federation(rounds=24, directions=4).start()
    for position in (4, 9, 15):
        found.wait_for_position(position)
        found.server.kill()
        found.start_server()
    found.finish()
    assert found.committed() == list(range(1, 25))
    assert "trying again" in found.clients[0].said


def test_a_client_refuses_a_run_that_asks_for_too_much(federation):
    found = federation(clients=1, directions=3, **{"local-steps": 2})
    found.start_server()
    for limit, said in (
        (("--max-steps", 5), "the run asks for 6, but --max-steps allows 5; raise the limit, or stay out"),
        (("--max-batch", 3), "the run asks for 4, but --max-batch allows 3"),
        (("--max-epsilon", 1e-4), "the run asks for 0.001, but --max-epsilon allows 0.0001"),
        (
            ("--max-memory", 0.01),
            "for weights at work), but --max-memory allows 0.01 GiB; raise the limit, or stay out",
        ),
    ):
        client = found.start_client(0, *limit)
        assert client.wait() == 1
        assert said in client.said
    assert "joined" not in found.server.said


def test_a_client_with_another_base_or_tokenizer_is_refused_by_name(federation, tmp_path):
    found = federation(clients=1)
    found.start_server()
    model = tmp_path / "other-base"
    shutil.copytree(found.model, model)
    changed = load_base(str(model)).model
    with torch.no_grad():
        next(iter(changed.parameters())).view(-1)[0] += 1
    changed.save_pretrained(model)
    client = found.start_client(0, model=str(model))
    assert client.wait() == 1
    assert "the journal was made from base" in client.said
    model = tmp_path / "other-tokenizer"
    shutil.copytree(found.model, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    client = found.start_client(0, model=str(model))
    assert client.wait() == 1
    assert "has tokenizer digest" in client.said
    assert "give the client the tokenizer that the run started with" in client.said
    assert found.position == 0


def test_a_client_gives_up_when_its_patience_ends(federation):
    found = federation(clients=1)
    found.server = client = found.start_client(0, "--patience", 1)
    assert client.wait() == 1
    assert "no server for 1 seconds" in client.said


def test_two_clients_in_one_directory_are_refused(federation, nursery):
    found = federation(clients=2, rounds=1)
    found.start_server()
    found.start_client(0)
    found.wait_for_joins(0, 1)
    second = nursery.start(
        *("client", found.address, "--model", found.model, "--data", found.path / "data-1.json"),
        *("--dir", found.directory(0), "--name", "client-1"),
    )
    assert second.wait() == 1
    assert "another process is writing to it" in second.said


# ── repair ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def simulated(nursery, demo, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("simulated") / "run"
    given = OPTIONS | {"clients": 4, "threads": 1, "out": out, "model": demo.model, "data": demo.data}
    parts = [part for name, value in given.items() for part in (f"--{name}", value)]
    assert nursery.start("simulate", "--partition", "by:key", *parts).wait() == 0
    return out


def make_home(directory: Path, simulated: Path, demo) -> tuple[Home, Journal, list[pb.Step], list[str]]:
    payloads = payloads_of(simulated / "journal")
    hashes = read_journal(simulated / "journal").hashes
    steps = [pb.Step(payload=p, record_hash=h) for p, h in zip(payloads[1:], hashes[1:], strict=True)]
    directory.mkdir()
    journal = Journal.create_copy(directory / "journal", payloads[0])
    said: list[str] = []
    base, backend = load_base(demo.model), get_backend("auto")
    home = Home(RunDirectory(directory), journal, base, backend=backend, threads=1, say=said.append)
    return home, journal, steps, said


def test_a_replica_that_differs_is_rebuilt_where_the_journal_states_a_digest(simulated, demo, tmp_path):
    home, journal, steps, said = make_home(tmp_path / "home", simulated, demo)
    home.follow(steps[:2])
    home.replica.state[7] += 1
    home.follow(steps[2:])
    journal.close()
    contents = read_journal(simulated / "journal")
    assert home.replica.digest() == contents.records[-1].state_digest
    assert (home.replica.position, home.replica.record_hash) == (contents.position, contents.hashes[-1])
    assert sum("rebuilding the replica: at position" in line for line in said) == 1


def test_a_replica_that_rebuilding_does_not_mend_is_an_error(simulated, demo, tmp_path, monkeypatch):
    home, journal, steps, _ = make_home(tmp_path / "home", simulated, demo)
    monkeypatch.setattr(type(home.replica), "digest", lambda replica: bytes(32))
    with journal, pytest.raises(ReplicaError, match="rebuild the replica from base and journal"):
        home.follow(steps)
