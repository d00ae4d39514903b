"""Rounds in Flower's messages, over a grid made by hand: who answers, from which process, and what if nobody does."""

import asyncio
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from fedzo_client import virtual
from fedzo_client.virtual import VirtualOptions, take_virtual_turn
from fedzo_server import hosting, nodes, turns
from fedzo_server.turns import Turns
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from journals import payloads_of

from fedzo.errors import JournalBehindError, ServerUnreachableError
from fedzo.journal import Commit, End, Journal, JournalContents, Void, read_journal
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1 import turns_pb2
from fedzo.wire.turns import TURN_FIELD, TURN_RECORD, parse_turn

CLIENTS = 4
OVER_S = 240.0
DEADLINE_S = 4.0
"""Of a round in which someone is missing: what it costs, and what the others have on a busy machine."""
Answer = RecordDict | Error


class Process:
    """A process of a simulation: the seats that it has, put in place for each turn."""

    def __init__(self, options: VirtualOptions) -> None:
        self._options = options
        self.seats: dict = {}

    def take(self, turn: turns_pb2.Turn, client: int) -> pb.ClientMessage:
        virtual._SEATS = self.seats
        return take_virtual_turn(turn, self._options, client, CLIENTS, lambda said: None)


class HandGrid:
    """Flower's grid over some processes, which take messages in turn; `answer` may say something else instead."""

    def __init__(self, options: VirtualOptions, processes: int) -> None:
        self.processes = [Process(options) for _ in range(processes)]
        self.names = dict.fromkeys(range(100, 100 + CLIENTS), "")
        self.answer: Callable[[int, str, turns_pb2.Turn], Answer | None] = lambda client, kind, turn: None
        self.kinds: list[str] = []
        self.turns: list[turns_pb2.Turn] = []
        self._ids = (f"message-{number}" for number in count())
        self._waiting: dict[str, Message] = {}

    def get_nodes(self):
        return [SimpleNamespace(node_id=node_id, name=name) for node_id, name in self.names.items()]

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = next(self._ids)
            self._waiting[message.metadata.message_id] = message
            yield message.metadata.message_id

    def pull_messages(self, message_ids):
        for message_id in set(message_ids) & self._waiting.keys():
            reply = self._reply(self._waiting[message_id])
            if reply is not None:
                del self._waiting[message_id]
                yield Message(reply, reply_to=self._message(message_id))

    def _message(self, message_id: str) -> Message:
        message = Message(RecordDict(), 1, "query")
        message.metadata.__dict__["_message_id"] = message_id
        return message

    def _reply(self, message: Message) -> Answer | None:
        client, kind = message.metadata.dst_node_id - 100, message.metadata.message_type
        turn = parse_turn(message.content.config_records[TURN_RECORD][TURN_FIELD])
        self.kinds.append(kind)
        self.turns.append(turn)
        said = self.answer(client, kind, turn)
        if said is NEVER:
            return None
        return said or as_reply(self.processes[len(self.kinds) % len(self.processes)].take(turn, client))


NEVER = Error(0, "no answer comes")


def as_reply(message: pb.ClientMessage | bytes) -> RecordDict:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return RecordDict({TURN_RECORD: ConfigRecord({TURN_FIELD: data})})


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Of the process, without which Flower makes no message; and shorter looks."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(turns, "LOOK_S", 0.01)
    monkeypatch.setattr(virtual, "_SEATS", {})


@pytest.fixture
def grid(demo) -> HandGrid:
    options = VirtualOptions(model=demo.model, data=demo.data, partition="by:key", threads=1)
    return HandGrid(options, processes=2)


def carry(grid: HandGrid, journal: Path, *, patience_s: float = OVER_S, until: int | None = None) -> list[str]:
    """Host the run over a grid until it ends, or stop it at a position; what was said."""
    said: list[str] = []

    async def host() -> None:
        stop = asyncio.Event()

        def watch(position: int, record: object) -> None:
            if until is not None and position >= until:
                stop.set()

        with Journal.open(journal) as opened:
            started = hosting.hosting(opened, start_with=CLIENTS, gather_s=OVER_S, watch=watch, say=said.append)
            async with started as (hosted, task):
                carried = Turns(grid, hosted, "meadow", patience_s=patience_s, say=said.append)
                async with asyncio.timeout(OVER_S):
                    await carried.until_over(task, stop, OVER_S)

    asyncio.run(host())
    return said


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """The journal of the finished run, as it began."""
    path = tmp_path / "journal"
    Journal.create_copy(path, payloads_of(finished / "journal")[0]).close()
    return path


def test_any_process_answers_for_any_client_and_each_loads_the_base_once(grid, begun, finished, monkeypatch):
    loads = []
    load = virtual.load_base
    monkeypatch.setattr(virtual, "load_base", lambda *given: loads.append(threading.get_ident()) or load(*given))
    said = carry(grid, begun)
    assert begun.read_bytes() == (finished / "journal").read_bytes()
    assert len(loads) == len(grid.processes) == 2, "four clients, two processes, a replica each"
    end = read_journal(begun).hashes[-1].hex()
    assert sum(line.endswith(f"finished at position 18, record {end}") for line in said) == CLIENTS
    rounds = [(turn.news.plan.purpose, kind) for turn, kind in zip(grid.turns, grid.kinds, strict=True)]
    assert set(rounds) == {
        (pb.PURPOSE_UNSPECIFIED, "query"),
        (pb.PURPOSE_TRAIN, "train"),
        (pb.PURPOSE_EVALUATE, "evaluate"),
        (pb.PURPOSE_ATTEST, "query"),
    }


def test_a_process_that_has_nothing_rebuilds_from_the_base_by_the_records_it_is_sent(grid, begun, finished):
    fresh: list[int] = []

    def replace_one(client: int, kind: str, turn: turns_pb2.Turn) -> None:
        if turn.news.plan.round == 7 and not fresh:
            fresh.append(len(grid.turns))
            grid.processes[0].seats.clear()

    grid.answer = replace_one
    carry(grid, begun)
    assert begun.read_bytes() == (finished / "journal").read_bytes()
    sent_whole = [turn for turn in grid.turns[fresh[0] :] if turn.HasField("genesis")]
    assert sent_whole
    assert all(turn.position == 0 and len(turn.news.steps) == turn.news.plan.position for turn in sent_whole)
    assert not any(turn.HasField("genesis") for turn in grid.turns[-CLIENTS:]), "and then it has it"


LOST = {2: (0, 0), 4: (1, 2), 6: (2, 3), 8: (3, 5), 10: (0, 8)}
"""By round: the client that is lost in it, and Flower's error code."""


@pytest.mark.slow
def test_a_lost_client_is_a_missing_report_and_is_asked_again(grid, begun, monkeypatch):
    monkeypatch.setattr(nodes, "STABLE_S", 0.0)

    def lose_one(client: int, kind: str, turn: turns_pb2.Turn) -> Answer | None:
        lost, code = LOST.get(turn.news.plan.round, (None, 0))
        return Error(code, "the process died") if kind == "train" and client == lost else None

    grid.answer = lose_one
    said = carry(grid, with_rules(begun, deadline_s=DEADLINE_S))
    contents = read_journal(begun)
    assert isinstance(contents.records[-1].body, End)
    for number, (client, code) in LOST.items():
        assert client not in reporters(contents, number)
        assert len(reporters(contents, number)) >= 2
        assert any(f"lost, asked again in 1 s: the process died (Flower's error {code})" in line for line in said)
    assert {1, 2, 3} <= reporters(contents, 12), "those that had the time are back"


def reporters(contents: JournalContents, number: int) -> set[int]:
    """Clients whose reports a round was committed with."""
    (body,) = (r.body for r in contents.records if r.round == number and isinstance(r.body, Commit))
    return {report.client for report in body.reports}


def with_rules(path: Path, **rules: object) -> Path:
    """Begin a journal anew with other rules."""
    from dataclasses import replace

    genesis = read_journal(path).genesis
    path.unlink()
    Journal.create(path, replace(genesis, rules=replace(genesis.rules, **rules))).close()
    return path


def test_a_client_that_never_answers_costs_rounds_their_deadline_and_no_more(grid, begun):
    grid.answer = lambda client, kind, turn: NEVER if client == 3 and turn.news.plan.round >= 11 else None
    carry(grid, with_rules(begun, deadline_s=DEADLINE_S, evaluate_every=0), until=13)
    commits = {r.round: r.body for r in read_journal(begun).records if isinstance(r.body, Commit)}
    assert [len(commits[number].reports) for number in (10, 11, 12)] == [4, 3, 3]


BAD = {
    2: (2, "too few scalars", "0 projected gradients; the plan asks for 1"),
    3: (2, "not finite", "the loss is nan; it must be finite"),
    4: (2, "another round", "no train plan of round 5 is open"),
    6: (0, "no message", "2 bytes that are no ClientMessage"),
    8: (1, "a join of another", "is 'client-1' here, but says that it is 'client-7'"),
}
"""By round: the client that says it, what it says, and how that is refused."""


@pytest.mark.slow
def test_a_bad_reply_is_refused_and_the_journal_is_that_of_a_round_without_it(grid, begun):
    def spoil(client: int, kind: str, turn: turns_pb2.Turn) -> Answer | None:
        bad, what, _ = BAD.get(turn.news.plan.round, (None, "", ""))
        return as_reply(spoilt_report(grid, turn, client, what)) if kind == "train" and client == bad else None

    grid.answer = spoil
    said = "\n".join(carry(grid, with_rules(begun, deadline_s=DEADLINE_S)))
    contents = read_journal(begun)
    assert not any(isinstance(record.body, Void) for record in contents.records)
    for number, (client, _, refusal) in BAD.items():
        assert client not in reporters(contents, number)
        assert refusal in said
    assert reporters(contents, 5) == {0, 1, 2, 3}, "a refused report does not send its client away"
    assert contents.records[-1].state_digest is not None, "the replicas agree at the end"


def spoilt_report(grid: HandGrid, turn: turns_pb2.Turn, client: int, what: str) -> pb.ClientMessage | bytes:
    if what == "no message":
        return b"\xff\xff"
    if what == "a join of another":
        return pb.ClientMessage(join=pb.Join(name="client-7"))
    message = next(found for process in grid.processes if (found := process.take(turn, client)).HasField("report"))
    if what == "too few scalars":
        del message.report.projected_gradients[:]
    elif what == "not finite":
        message.report.loss = float("nan")
    else:
        message.report.round += 1
    return message


def test_a_stopped_run_goes_on_to_the_same_bytes(grid, begun, finished):
    carry(grid, begun, until=7)
    stopped = read_journal(begun).position
    assert 7 <= stopped < 18
    grid.processes = [Process(process._options) for process in grid.processes]
    carry(grid, begun)
    assert begun.read_bytes() == (finished / "journal").read_bytes()


def test_a_client_that_holds_more_than_the_journal_halts_the_run(grid, begun):
    carry(grid, begun, until=6)
    rest = payloads_of(begun)[0]
    begun.unlink()
    Journal.create_copy(begun, rest).close()
    with pytest.raises(JournalBehindError, match="committed records were lost here"):
        carry(grid, begun)
    assert read_journal(begun).position == 0


def test_a_registered_node_cannot_take_another_name(grid, begun):
    grid.names = {100: "anna"}
    with pytest.raises(ServerUnreachableError, match="no node was at work for 1 seconds"):
        carry(grid, begun, patience_s=1.0)


def test_the_run_config_of_a_simulation_must_name_data():
    from fedzo_client.app_options import virtual_options

    from fedzo.errors import ConfigError

    with pytest.raises(ConfigError, match="option data must be given: in a simulation the run config names the rows"):
        virtual_options({"model": "m", "rounds": 3})
    given = {"model": "m", "data": "d", "rounds": 3, "text-field": "said"}
    assert virtual_options(given) == VirtualOptions(model="m", data="d", text_field="said")
