"""What a journal says: the genesis and the records, as frozen values.

These are the terms of `protos/fedzo/v1/journal.proto` without protobuf, so that the rest of the library speaks in
them. A position is a number of records applied: record n (counted from 1) leads from position n − 1 to n.
"""

from dataclasses import dataclass
from math import isfinite, nan
from typing import NamedTuple

from fedzo.manifest import Manifest
from fedzo.noise import Distribution

PROTOCOL_VERSION = 1
NUMERICS_VERSION = 1


class Entry(NamedTuple):
    """θ moves by coefficient · z(seed); the coefficient in units of 2⁻⁴⁰."""

    seed: int
    coefficient: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How rounds are planned and aggregated; fixed for a journal."""

    method: str
    rounds: int
    cohort: int
    quorum: int
    deadline_s: float
    directions: int
    local_steps: int
    batch_size: int
    epsilon: int
    """Units of 2⁻⁴⁰."""
    learning_rate: float
    schedule: str
    evaluate_every: int
    attest_every: int
    guard_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained on, as far as all clients must agree."""

    name: str
    tokenizer_digest: bytes
    max_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """The first frame of a journal."""

    base_digest: bytes
    manifest: Manifest
    distribution: Distribution
    run_seed: int
    scope: str
    task: Task
    rules: Rules


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Clients get the indices first_index, first_index + 1, …"""

    first_index: int
    clients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What one client reported in a committed round."""

    client: int
    examples: int
    loss: float
    projected_gradients: tuple[float, ...]
    """float32 values, in order of the plan's directions."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed round."""

    entries: tuple[Entry, ...]
    learning_rate: float
    reports: tuple[ClientReport, ...]

    @property
    def loss(self) -> float:
        """Mean training loss over all examples."""
        return sum(r.loss * r.examples for r in self.reports) / sum(r.examples for r in self.reports)


@dataclass(frozen=True, slots=True)
class Void:
    """A round that changed nothing, and why."""

    reason: str
    reported: tuple[int, ...]
    diverged: bool
    """Clients saw losses that are not finite: the divergence guard acts."""


@dataclass(frozen=True, slots=True)
class ClientEvaluation:
    """One client's loss on data that it holds out."""

    client: int
    examples: int
    loss: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The clients' held-out losses at this position."""

    clients: tuple[ClientEvaluation, ...]

    @property
    def loss(self) -> float:
        """Mean over the examples of clients whose loss is finite; nan where those are not more than half."""
        finite = [c for c in self.clients if isfinite(c.loss)]
        if 2 * len(finite) <= len(self.clients):
            return nan
        return sum(c.loss * c.examples for c in finite) / sum(c.examples for c in finite)


@dataclass(frozen=True, slots=True)
class Rollback:
    """Back to the state after `position` records."""

    position: int
    entries: tuple[Entry, ...]
    learning_rate_scale: float
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The planned rounds are over."""


Body = Enrolment | Commit | Void | Evaluation | Rollback | End


@dataclass(frozen=True, slots=True)
class Record:
    """One step of the journal. `state_digest` and `maxima` speak of the state before it."""

    round: int
    body: Body
    state_digest: bytes | None = None
    maxima: tuple[int, ...] | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What it adds to the state; empty for records that change nothing."""
        return self.body.entries if isinstance(self.body, Commit | Rollback) else ()
