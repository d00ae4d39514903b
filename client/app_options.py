"""What a node takes part with: its SuperNode's --node-config. Whoever starts a run cannot change it."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from fedzo.config import option_name, parse_options
from fedzo.errors import ConfigError
from fedzo.wire.invitation import Invitation, require_run_name

from .options import ClientOptions, ConnectionOptions, PartOptions, WorkOptions
from .virtual import VirtualOptions

FLOWERS_OWN = ("partition-id", "num-partitions")
"""Keys that nodes of Flower usually have, and that are of no use here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions(PartOptions):
    """As those of `fedzo client`; only patience is shorter, since the server invites anew a node that gave up."""

    model: Annotated[str, "The run's base: checkpoint directory or hub name."]
    data: Annotated[str, "Rows that stay here."]
    dir: Annotated[str, "Directory of this node: for each run, its journal and replica."]
    patience: Annotated[float, "Seconds without the server after which the session ends."] = 60.0

    def client(self, invitation: Invitation) -> ClientOptions:
        """The client that follows an invitation; what it needs of it is put into the run's directory."""
        directory = self._directory(invitation.run)
        directory.mkdir(parents=True, exist_ok=True)
        ca, token = directory / "ca.pem", directory / "token"
        ca.write_text(invitation.ca)
        _write_secret(token, invitation.token)
        connection = ConnectionOptions(address=invitation.address, ca=ca, token=token)
        return ClientOptions(connection=connection, **self._work(invitation.run, invitation.name))

    def work(self, run: str, name: str) -> WorkOptions:
        """What the client works with that takes single turns.

        Raises:
            ProtocolError: the run's name could lead out of the directory that a client has for it.
        """
        require_run_name(run)
        return WorkOptions(**self._work(run, name))

    def _work(self, run: str, name: str) -> dict[str, Any]:
        part = {field.name: getattr(self, field.name) for field in fields(PartOptions)}
        return part | {"model": self.model, "data": self.data, "directory": self._directory(run), "name": name}

    def _directory(self, run: str) -> Path:
        return Path(self.dir) / run


def options_of_node(config: Mapping[str, Any]) -> NodeOptions:
    """Raises ConfigError for a missing or unknown key (names the nearest known one) or a value of another type."""
    own = {key: value for key, value in config.items() if key not in FLOWERS_OWN}
    given = parse_options(NodeOptions, own, "node config")
    for field in fields(NodeOptions):
        if field.default is MISSING and field.name not in given:
            raise ConfigError(
                f"node config: {field.name} is missing; start the SuperNode with --node-config "
                '\'model="…" data="…" dir="…"\''
            )
    return NodeOptions(**given)


def virtual_options(config: Mapping[str, Any]) -> VirtualOptions:
    """What the nodes of Flower's simulation work with: there the run config names the data.

    Raises:
        ConfigError: the run config names no data, or a value is of another type.
    """
    own = {option_name(field.name) for field in fields(VirtualOptions)}
    given = {key: value for key, value in config.items() if key in own}
    if not given.get("data"):
        raise ConfigError("option data must be given: in a simulation the run config names the rows of all nodes")
    return VirtualOptions(**parse_options(VirtualOptions, given, "run config"))


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
