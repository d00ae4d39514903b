"""What the Flower apps do by themselves: options, invitations, and who is invited again."""

import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from fedzo_client.app_options import NodeOptions, options_of_node
from fedzo_client.options import PartOptions
from fedzo_client.virtual import VirtualOptions
from fedzo_server import invitations, nodes
from fedzo_server.access import token_hash
from fedzo_server.app_options import FOR_NODES, AppOptions, options_of_app
from fedzo_server.invitations import Invitations
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedzo.config import default_of, option_name, write_toml
from fedzo.errors import ConfigError, ProtocolError, ServerUnreachableError
from fedzo.journal import Journal
from fedzo.wire.invitation import Invitation, decode_invitation, encode_invitation

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
CONFIG = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
TEMPLATE = Invitation(address="127.0.0.1:1", ca="PEM", token="", name="", run="meadow")

# ── options ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_run_config_has_the_options_of_both_apps_with_their_defaults():
    both = [*fields(AppOptions), *(field for field in fields(VirtualOptions) if field.name != "model")]
    defaults = {option_name(field.name): default_of(field) for field in both}
    assert {name: "" if default is MISSING else default for name, default in defaults.items()} == CONFIG
    assert {name: type(value) for name, value in CONFIG.items()} == {
        name: str if default is MISSING else type(default) for name, default in defaults.items()
    }
    assert set(FOR_NODES) == {option_name(field.name) for field in fields(VirtualOptions)} - {"model"}


def test_a_nodes_options_but_patience_have_the_defaults_of_the_command_line():
    node, command = (
        {field.name: field.default for field in fields(options) if field.default is not MISSING}
        for options in (NodeOptions, PartOptions)
    )
    assert node | {"patience": command["patience"]} == command


def test_a_run_is_named_after_flowers_number_of_it():
    run, options = options_of_app(CONFIG | {"model": "some/model"}, 4711)
    assert (options.name, run.path) == ("4711", Path("runs/4711"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": ""}, "option model must be given: flwr run"),
        ({"run-name": "meadow"}, "run config: option 'run-name' is unknown; the nearest known one is 'name'"),
        ({"rounds": "many"}, "run config: option 'rounds' is 'many'; expected int"),
        ({"name": "../meadow"}, "option name is '../meadow'; expected up to 64 letters"),
        ({"transport": "post"}, "transport 'post' is unknown; choose one of: session, messages"),
        ({"listen": "8470"}, "option listen is '8470'; expected HOST:PORT"),
        ({"listen": "0.0.0.0:8470"}, "option host must be given: the nodes cannot reach 0.0.0.0"),
    ],
)
def test_a_wrong_run_config_is_refused_by_name(changed, said):
    with pytest.raises(ConfigError, match=said):
        options_of_app(CONFIG | {"model": "some/model"} | changed, 1)


def test_a_resumed_run_has_its_own_options_and_is_hosted_as_asked(tmp_path):
    from helpers import make_genesis

    given = CONFIG | {"model": "some/model", "out": str(tmp_path)}
    _, began = options_of_app(given | {"rounds": 7, "name": "meadow"}, 1)
    write_toml(tmp_path / "config.toml", began)
    Journal.create(tmp_path / "journal", make_genesis()).close()
    _, resumed = options_of_app(CONFIG | {"out": str(tmp_path), "resume": True, "linger": 3.0}, 2)
    assert (resumed.rounds, resumed.name, resumed.model) == (7, "meadow", "some/model")
    assert (resumed.resume, resumed.linger) == (True, 3.0)
    with pytest.raises(ConfigError, match="holds a run already"):
        options_of_app(given, 3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model": "m", "data": "d"}, "node config: dir is missing; start the SuperNode with --node-config"),
        (
            {"model": "m", "data": "d", "dir": "r", "max-step": 3},
            "'max-step' is unknown; the nearest known one is 'max-",
        ),
        ({"model": "m", "data": "d", "dir": 3}, "node config: option 'dir' is 3; expected str"),
    ],
)
def test_a_wrong_node_config_is_refused_by_name(config, said):
    with pytest.raises(ConfigError, match=said):
        options_of_node(config)


def test_what_a_node_is_given_lies_in_the_directory_of_the_run_and_the_token_is_its_own_to_read(tmp_path):
    config = {"model": "m", "data": "d", "dir": str(tmp_path), "max-batch": 5, "partition-id": 1, "num-partitions": 2}
    for token in ("first", "second"):
        invitation = decode_invitation(encode_invitation(replace(TEMPLATE, name="anna", token=token)))
        options = options_of_node(config).client(invitation)
        assert options.connection.token is not None
        assert options.connection.token.read_text() == token
        assert options.connection.token.stat().st_mode & 0o777 == 0o600
    assert (options.name, options.directory, options.limits.batch) == ("anna", tmp_path / "meadow", 5)


@pytest.mark.parametrize("run", ["", "..", ".hidden", "a/b", "x" * 65])
def test_an_invitation_cannot_lead_out_of_a_nodes_directory(run):
    with pytest.raises(ProtocolError, match="the run's name is"):
        decode_invitation(encode_invitation(TEMPLATE) | {"run": run})


def test_an_invitation_with_a_field_missing_is_none():
    with pytest.raises(ProtocolError, match="the invitation's token is None; expected text"):
        decode_invitation({name: text for name, text in encode_invitation(TEMPLATE).items() if name != "token"})


def test_neither_the_library_nor_the_command_line_needs_flower():
    parts = "fedzo.cli, fedzo_client.runner, fedzo_server.runner, fedzo_simulations.runner"
    code = f"import sys; sys.modules['flwr'] = None; import {parts}"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


# ── invitations ─────────────────────────────────────────────────────────────────────────────────────


class HandGrid:
    """Flower's grid, with nodes that answer what they are told to."""

    def __init__(self) -> None:
        self.nodes: dict[int, str] = {}
        self.pushed: dict[str, Message] = {}
        self._ids = (f"message-{number}" for number in count())
        self._replies: list[Message] = []

    def get_nodes(self):
        return [SimpleNamespace(node_id=node_id, name=name) for node_id, name in self.nodes.items()]

    def push_messages(self, messages):
        made = {next(self._ids): message for message in messages}
        self.pushed |= made
        for message_id, message in made.items():
            message.metadata.__dict__["_message_id"] = message_id
        return list(made)

    def pull_messages(self, message_ids):
        replies = [reply for reply in self._replies if reply.metadata.reply_to_message_id in message_ids]
        self._replies = [reply for reply in self._replies if reply not in replies]
        return replies

    def answer(self, content: RecordDict | Error) -> None:
        """On the latest invitation."""
        self._replies.append(Message(content, reply_to=list(self.pushed.values())[-1]))

    def invited(self) -> list[Invitation]:
        return [decode_invitation(message.content.config_records["session"]) for message in self.pushed.values()]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have passed, to be set."""
    passed = SimpleNamespace(s=1000.0)
    for name in ("_run_id", "_node_id", "_task_id"):  # of the process, without which Flower makes no message
        monkeypatch.setattr(TaskIdentity, name, 1)
    for module in (invitations, nodes):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: passed.s))
    return passed


class Inviting:
    def __init__(self) -> None:
        self.grid, self.tokens, self.said = HandGrid(), {}, []
        self.invitations = Invitations(self.grid, self.tokens, TEMPLATE, patience_s=60, say=self.said.append)

    def look(self) -> list[str]:
        """One look at the nodes; names of all that were invited so far."""
        self.invitations.collect()
        self.invitations.invite()
        return [invitation.name for invitation in self.grid.invited()]


def test_each_node_is_invited_once_with_a_token_of_its_own(clock):
    found = Inviting()
    assert found.look() == []
    found.grid.nodes = {11: "anna", 12: ""}
    assert found.look() == ["anna", "node-12"]
    assert found.look() == ["anna", "node-12"]
    invited = found.grid.invited()
    assert found.tokens == {token_hash(invitation.token): invitation.name for invitation in invited}
    assert len(found.tokens) == 2
    assert {(invitation.address, invitation.run) for invitation in invited} == {("127.0.0.1:1", "meadow")}
    assert [message.metadata.dst_node_id for message in found.grid.pushed.values()] == [11, 12]


def test_a_node_whose_session_died_is_invited_again_and_one_that_cannot_take_part_ever_more_rarely(clock):
    found = Inviting()
    found.grid.nodes = {11: "anna"}
    found.look()
    clock.s += 3600
    found.look()
    found.grid.answer(Error(8, "the process died"))
    found.look()
    assert "its session is dead, invited again in 1 s: the process died (Flower's error 8)" in found.said[-1]
    clock.s += 1
    assert found.look() == ["anna"] * 2
    for delay_s in (2, 4, 8):
        found.grid.answer(Error(2, "option model is wrong"))
        found.look()
        invited = len(found.grid.pushed)
        clock.s += delay_s - 0.5
        assert len(found.look()) == invited
        clock.s += 0.5
        assert len(found.look()) == invited + 1


def test_a_node_that_is_gone_is_invited_when_it_is_back(clock):
    found = Inviting()
    found.grid.nodes = {11: "anna"}
    found.look()
    found.grid.answer(Error(5, "node unavailable"))
    found.grid.nodes = {}
    for _ in range(5):
        clock.s += 10
        assert found.look() == ["anna"]
    found.grid.nodes = {11: "anna"}
    assert found.look() == ["anna"] * 2


def test_a_second_node_of_a_name_is_left_out(clock):
    found = Inviting()
    found.grid.nodes = {11: "anna", 12: "anna"}
    assert found.look() == ["anna"]
    assert found.said[-1] == "node 12 is left out: another one is registered as 'anna'"


def test_without_any_node_at_work_it_gives_up_when_patience_ends(clock):
    found = Inviting()
    found.grid.nodes = {11: "anna"}
    found.look()
    clock.s += 3600
    found.look()
    found.grid.answer(Error(5, "node unavailable"))
    found.grid.nodes = {}
    found.look()
    clock.s += 59
    found.look()
    clock.s += 2
    with pytest.raises(ServerUnreachableError, match="no node was at work for 60 seconds; start SuperNodes"):
        found.look()


def test_nodes_that_can_never_take_part_do_not_keep_a_run_alive(clock):
    found = Inviting()
    found.grid.nodes = {11: "anna"}
    until_s = clock.s + 60
    while clock.s < until_s:
        if found.look() and found.invitations.open:
            found.grid.answer(Error(2, "option model is wrong"))
        clock.s += 1
    found.invitations.collect()
    clock.s += 1
    with pytest.raises(ServerUnreachableError, match="their logs say why a session failed"):
        found.invitations.invite()


def test_an_answer_is_said_and_closes_the_session(clock):
    found = Inviting()
    found.grid.nodes = {11: "anna"}
    found.look()
    assert found.invitations.open == 1
    answer = ConfigRecord({"position": 12, "state_digest": "ab" * 32})
    found.grid.answer(RecordDict({"session": answer}))
    found.invitations.collect()
    assert found.invitations.open == 0
    assert found.said[-1] == f"anna: finished at position 12, state digest {'ab' * 32}"
