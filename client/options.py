"""What a client runs with, and what it lets a run ask of it."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from fedzo.coordinator import History, Plan, Purpose
from fedzo.coordinator.calibration import most_directions
from fedzo.errors import ConfigError, ProtocolError
from fedzo.journal import Rules
from fedzo.noise import COEFFICIENT_BITS
from fedzo.options.checks import require_address, require_choice, require_range
from fedzo.options.compute import ComputeOptions
from fedzo.tiers import TIERS

GIB = 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """How a server is reached."""

    address: str
    """HOST:PORT."""
    ca: Path | None = None
    """Authority of the server's certificate, PEM; the system's where not given."""
    token: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    """The client's own certificate and key, where the server asks for one."""

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        require_address("the server's address", self.address)
        if (self.cert is None) is not (self.key is None):
            raise ConfigError("options --cert and --key belong together; give both or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a client does for a run; whoever runs the server cannot raise it."""

    steps: int
    """Perturbations evaluated in a round: directions times local steps."""
    batch: int
    """Examples of a step."""
    epsilon: float
    memory_gib: float = 0.0
    """Resident memory of the process; 0 sets no limit."""

    @property
    def memory_bytes(self) -> float:
        """The same in bytes, inf for none."""
        return self.memory_gib * GIB or inf

    def check(self, rules: Rules) -> None:
        """Raises ConfigError for rules that ask for more."""
        for option, asked, most in (
            ("max-steps", most_directions(rules), self.steps),
            ("max-batch", rules.batch_size, self.batch),
            ("max-epsilon", rules.epsilon / 2.0**COEFFICIENT_BITS, self.epsilon),
        ):
            if asked > most:
                raise ConfigError(
                    f"the run asks for {asked:g}, but --{option} allows {most:g}; raise the limit, or stay out"
                )

    @staticmethod
    def check_plan(plan: Plan, history: History) -> None:
        """Raises ProtocolError for a plan that does not follow from the run so far."""
        rules, highest = history.genesis.rules, history.highest_rate
        if not 0 <= plan.learning_rate <= highest:
            raise ProtocolError(f"a plan has learning rate {plan.learning_rate:g}; the run allows 0 to {highest:g}")
        alone = rules.asynchronous and plan.purpose is Purpose.TRAIN
        most = (rules.rounds + 1) * (rules.buffer_size + 1) if alone else rules.rounds
        if plan.round > most:
            raise ProtocolError(f"a plan is for {'ticket' if alone else 'round'} {plan.round}; the run has {most}")


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How a client's rows are read, and which of them it holds out."""

    eval_data: Annotated[str, "Held-out rows: a source, or every:N of the rows, or none."] = "every:10"
    eval_batch_size: Annotated[int, "Held-out examples of a batch; 0 takes as many as in training."] = 0
    text_field: Annotated[str, "Field that holds the text."] = "text"

    def check_rows(self) -> None:
        """Raises ConfigError, naming the option."""
        require_range("eval-batch-size", self.eval_batch_size, 0, 2**32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOptions(ComputeOptions, RowOptions):
    """How a client takes part, which it decides alone: on its command line, or in its node's config."""

    state: Annotated[
        str, "Where the exact state lives: device (the memory of --device), host (memory), disk (streamed), or auto."
    ] = "auto"
    max_steps: Annotated[int, "Most directions times local steps that a round may ask for."] = 1024
    max_batch: Annotated[int, "Most examples of a step."] = 1024
    max_epsilon: Annotated[float, "Largest perturbation."] = 0.1
    max_memory: Annotated[float, "Most memory of this process, GiB; 0 sets no limit."] = 0.0
    patience: Annotated[float, "Seconds without a server after which the client gives up."] = 3600.0

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        self.check_compute()
        self.check_rows()
        require_choice("state", self.state, TIERS)
        require_range("max-memory", self.max_memory, 0.0, 2.0**20)
        require_range("patience", self.patience, 0.0, 2.0**32)

    @property
    def limits(self) -> Limits:
        """The most that it does."""
        return Limits(steps=self.max_steps, batch=self.max_batch, epsilon=self.max_epsilon, memory_gib=self.max_memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOptions(PartOptions):
    """What a client works with, however it is told what to do."""

    model: str
    data: str
    directory: Path
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(WorkOptions):
    """A client that connects to a server."""

    connection: ConnectionOptions
