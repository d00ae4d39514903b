"""What a client runs with, and what it lets a run ask of it."""

from dataclasses import dataclass
from math import inf
from pathlib import Path

from fedzo.coordinator import History, Plan, Purpose
from fedzo.coordinator.calibration import most_directions
from fedzo.errors import ConfigError, ProtocolError
from fedzo.journal import Rules
from fedzo.noise import BACKENDS, COEFFICIENT_BITS
from fedzo.run_options import require_choice, require_range
from fedzo.tiers import COPIES, TIERS

DTYPES = ("float32", "bfloat16", "float16")

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
        if self.address.rpartition(":")[0] == "" or not self.address.rpartition(":")[2].isdigit():
            raise ConfigError(f"the server's address is {self.address!r}; expected HOST:PORT")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOptions:
    """What a client works with, however it is told what to do."""

    limits: Limits
    model: str
    data: str
    directory: Path
    name: str
    eval_data: str
    eval_batch_size: int
    """Held-out examples of a batch; 0 takes as many as in training."""
    text_field: str
    dtype: str
    threads: int
    """CPU threads; 0 takes all cores."""
    backend: str
    state: str
    """Where the exact state lives: one of `fedzo.tiers.TIERS`."""
    device: str
    """Where forward passes run: what `fedzo.device.get_device` takes."""
    compute_copy: str
    """What forward passes read: one of `fedzo.tiers.COPIES`."""
    directions_per_pass: int
    """Directions whose forward passes go through the model together."""

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("state", self.state, TIERS)
        require_choice("compute-copy", self.compute_copy, COPIES)
        require_choice("backend", self.backend, ("auto", *BACKENDS))
        require_range("threads", self.threads, 0, 2**16)
        require_range("eval-batch-size", self.eval_batch_size, 0, 2**32)
        require_range("directions-per-pass", self.directions_per_pass, 1, 2**16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(WorkOptions):
    """A client that connects to a server."""

    connection: ConnectionOptions
    patience_s: float
    """Seconds without a server after which the client gives up."""

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        WorkOptions.__post_init__(self)
        require_range("patience", self.patience_s, 0.0, 2.0**32)
        require_range("max-memory", self.limits.memory_gib, 0.0, 2.0**20)
