"""What a node takes part with: its SuperNode's --node-config. Whoever starts a run cannot change it."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from fedzo.config import option_name, parse_options
from fedzo.errors import ConfigError
from fedzo.wire.invitation import Invitation, require_run_name

from .options import ClientOptions, ConnectionOptions, Limits, WorkOptions
from .virtual import VirtualOptions

FLOWERS_OWN = ("partition-id", "num-partitions")
"""Keys that nodes of Flower usually have, and that are of no use here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """As those of `fedzo client`; only patience is shorter, since the server invites anew a node that gave up."""

    model: Annotated[str, "The run's base: checkpoint directory or hub name."]
    data: Annotated[str, "Rows that stay here."]
    dir: Annotated[str, "Directory of this node: for each run, its journal and replica."]
    eval_data: Annotated[str, "Held-out rows: a source, or every:N of the rows, or none."] = "every:10"
    eval_batch_size: Annotated[int, "Held-out examples of a batch; 0 takes as many as in training."] = 0
    text_field: Annotated[str, "Field that holds the text."] = "text"
    dtype: Annotated[str, "Compute type: float32, bfloat16 or float16."] = "float32"
    threads: Annotated[int, "CPU threads; 0 takes all cores."] = 0
    backend: Annotated[str, "Who makes the noise: auto, numba, torch, reference."] = "auto"
    state: Annotated[
        str, "Where the exact state lives: device (the memory of device), host (memory), disk (streamed), or auto."
    ] = "auto"
    device: Annotated[str, "Where forward passes run: cpu, cuda, cuda:N, or auto."] = "cpu"
    compute_copy: Annotated[
        str,
        "What forward passes read: none (the state itself), or a copy of it in bf16, fp16 or int8.",
    ] = "none"
    directions_per_pass: Annotated[
        int,
        "Directions that go through the model together; what is streamed is read once for all of them.",
    ] = 1
    max_steps: Annotated[int, "Most directions times local steps that a round may ask for."] = 1024
    max_batch: Annotated[int, "Most examples of a step."] = 1024
    max_epsilon: Annotated[float, "Largest perturbation."] = 0.1
    max_memory: Annotated[float, "Most memory of the node's process, GiB; 0 sets no limit."] = 0.0
    patience: Annotated[float, "Seconds without the server after which the session ends."] = 60.0

    def client(self, invitation: Invitation) -> ClientOptions:
        """The client that follows an invitation; what it needs of it is put into the run's directory."""
        work = self._work(invitation.run, invitation.name)
        directory = work["directory"]
        directory.mkdir(parents=True, exist_ok=True)
        ca, token = directory / "ca.pem", directory / "token"
        ca.write_text(invitation.ca)
        _write_secret(token, invitation.token)
        connection = ConnectionOptions(address=invitation.address, ca=ca, token=token)
        return ClientOptions(connection=connection, patience_s=self.patience, **work)

    def work(self, run: str, name: str) -> WorkOptions:
        """What the client works with that takes single turns.

        Raises:
            ProtocolError: the run's name could lead out of the directory that a client has for it.
        """
        require_run_name(run)
        return WorkOptions(**self._work(run, name))

    def _work(self, run: str, name: str) -> dict[str, Any]:
        return {
            "limits": Limits(
                steps=self.max_steps, batch=self.max_batch, epsilon=self.max_epsilon, memory_gib=self.max_memory
            ),
            "model": self.model,
            "data": self.data,
            "directory": Path(self.dir) / run,
            "name": name,
            "eval_data": self.eval_data,
            "eval_batch_size": self.eval_batch_size,
            "text_field": self.text_field,
            "dtype": self.dtype,
            "threads": self.threads,
            "backend": self.backend,
            "state": self.state,
            "device": self.device,
            "compute_copy": self.compute_copy,
            "directions_per_pass": self.directions_per_pass,
        }


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
