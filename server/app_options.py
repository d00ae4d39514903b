"""The options of a run that Flower starts: its run config, whose defaults are in pyproject.toml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fedzo.config import parse_options
from fedzo.errors import ConfigError
from fedzo.run_directory import RunDirectory
from fedzo.run_options import MOST, RunOptions, options_of_run, require_choice, require_range
from fedzo.wire.invitation import RUN_NAME

TRANSPORTS = ("session", "messages")
FOR_NODES = (
    *("data", "eval-data", "eval-batch-size", "text-field", "partition"),
    *("dtype", "compute-copy", "directions-per-pass", "device", "threads", "backend"),
)
"""Keys of the run config that are the nodes' in Flower's simulation (`virtual_options`), and of no use elsewhere."""
HOSTING = ("transport", "listen", "host", "gather", "linger", "patience", "resume")
"""Options that say how a run is hosted, not what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions(RunOptions):
    """What the ServerApp runs with."""

    name: Annotated[str, "Names the run, also on the nodes; by default Flower's number of it."]
    transport: Annotated[
        str, "How rounds reach the nodes: session, over gRPC at listen; messages, in Flower's own, slower."
    ] = "session"
    listen: Annotated[str, "Where to listen for rounds, HOST:PORT; port 0 takes a free one."] = "127.0.0.1:8470"
    host: Annotated[str, "Name or address at which the nodes reach this machine; by default that of listen."] = ""
    gather: Annotated[
        float, "Seconds that a resumed run waits for all its clients before it goes on without the missing ones."
    ] = 10.0
    linger: Annotated[float, "Seconds that the nodes have to finish when the run has ended."] = 60.0
    patience: Annotated[float, "Seconds without any node at work after which the run is given up."] = 600.0
    resume: Annotated[bool, "Go on with the run in out, with its own options; those of hosting may be new."] = False

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        if not self.model:
            raise ConfigError("option model must be given: flwr run . CONNECTION --run-config 'model=\"…\"'")
        RunOptions.__post_init__(self)
        require_choice("transport", self.transport, TRANSPORTS)
        if self.buffer and self.transport == "messages":
            raise ConfigError(
                f"option buffer is {self.buffer}, but transport 'messages' carries rounds, a message each; "
                "leave it 0, or choose transport 'session'"
            )
        for name in ("gather", "linger", "patience"):
            require_range(name, getattr(self, name), 0.0, MOST)
        if RUN_NAME.fullmatch(self.name) is None:
            raise ConfigError(f"option name is {self.name!r}; expected up to 64 letters, digits, '.', '_', '-'")
        if self.listen.rpartition(":")[0] == "" or not self.listen.rpartition(":")[2].isdigit():
            raise ConfigError(f"option listen is {self.listen!r}; expected HOST:PORT")
        if self.reached_at in ("0.0.0.0", "[::]"):
            raise ConfigError(f"option host must be given: the nodes cannot reach {self.reached_at}")

    @property
    def reached_at(self) -> str:
        """Host that the nodes connect to."""
        return self.host or self.listen.rpartition(":")[0]


def options_of_app(config: Mapping[str, Any], run_id: int) -> tuple[RunDirectory, AppOptions]:
    """A run's directory and options.

    Args:
        config: Flower's run config: defaults and what `flwr run` was given, all of them.
        run_id: Flower's.

    Raises:
        ConfigError: an option is unknown (names the nearest known one) or wrong.
    """
    own = {key: value for key, value in config.items() if key not in FOR_NODES}
    given = parse_options(AppOptions, own, "run config")
    given["name"] = given.get("name") or str(run_id)
    given["out"] = given.get("out") or f"runs/{given['name']}"
    changeable = ("out", "model", *HOSTING)
    resume = bool(given.get("resume"))
    if resume:
        given = {name: given[name] for name in changeable if given.get(name, "") != ""}
    return options_of_run(AppOptions, given, None, resume=resume, places=("model",), changeable=changeable)
