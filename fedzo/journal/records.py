"""What a journal says: the genesis and the records, as frozen values.

These are the terms of `protos/fedzo/v1/journal.proto` without protobuf, so that the rest of the library speaks in
them. A position is a number of records applied: record n (counted from 1) leads from position n − 1 to n.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, nan
from typing import NamedTuple

from fedzo.base.manifest import Manifest
from fedzo.noise import Distribution
from fedzo.scopes import ALL, Scope

PROTOCOL_VERSION = 1
NUMERICS_VERSION = 1


class Entry(NamedTuple):
    """θ moves by coefficient · z(seed); the coefficient in units of 2⁻⁴⁰."""

    seed: int
    coefficient: int


def add_entries(totals: dict[int, int], entries: Iterable[Entry]) -> None:
    """A(s) += coefficient for each entry; seeds whose total returns to 0 are forgotten."""
    for seed, coefficient in entries:
        total = totals.get(seed, 0) + coefficient
        if total:
            totals[seed] = total
        else:
            totals.pop(seed, None)


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
    pool_size: int = 0
    warmup_rounds: int = 0
    momentum_window: int = 0
    """Commits whose entries a commit has, its own among them."""
    momentum_decay: float = 0.0
    """What a commit's entries are multiplied by from one commit to the next."""
    curvature_power: float = 0.0
    """Power of the curvature that a scalar is divided by."""
    buffer_size: int = 0
    """Reports that make a commit of an asynchronous run; 0 is rounds."""
    max_staleness: int = 0
    """Commits since the state that a report of an asynchronous run was made at, at most."""
    clip: float = 0.0
    """Scalars are brought into ± this before anything is made of them; 0 leaves them."""
    aggregation: str = ""
    """How clients' scalars along one direction become one: a name of `fedzo.methods.robust`; empty is the mean."""
    tolerate: float = 0.0
    """Share of the clients that may be hostile, where the aggregation needs it."""
    calibrated: bool = False
    """The learning rate is found by calibrations; `learning_rate` is 0."""

    @property
    def asynchronous(self) -> bool:
        """Clients work without rounds, each on its own plan."""
        return self.buffer_size > 0

    @property
    def commit_reports(self) -> int:
        """Reports that a commit is made of where nobody fails; of an asynchronous run the fewest."""
        return self.buffer_size or self.cohort


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, as far as all clients must agree; empty where a task has no use for a field."""

    name: str
    tokenizer_digest: bytes
    max_length: int
    """Most tokens of an example."""
    prompt: str = ""
    """A row's prompt, with {field} for its fields."""
    response: str = ""
    """A row's response, likewise."""
    label_field: str = ""
    """Which field holds a row's label."""
    labels: tuple[str, ...] = ()
    """The label values as text; their order numbers the classes."""
    candidates: tuple[str, ...] = ()
    """How each label is said after the prompt, likewise a template."""
    head: bool = False
    """The model has a classification head, one output a label."""
    choices: str = ""
    """Which field holds a row's own candidates; then `label_field` holds those that are right."""
    references: str = ""
    """Which field holds the answers that count as right, where it is not the response alone."""
    final_mark: str = ""
    """An answer is what follows this."""
    stop: str = ""
    """A generated answer ends before this."""
    answer_tokens: int = 0
    """Most tokens of a generated answer."""
    metrics: tuple[str, ...] = ()
    """What answers are judged by; names of `fedzo.tasks.metrics`."""
    objective: str = ""
    """1 − this metric is minimised; empty for the task's own loss."""
    group: str = ""
    """A row's group, with {field} for its fields; rows with the same are judged together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """The first frame of a journal."""

    base_digest: bytes
    manifest: Manifest
    distribution: Distribution
    run_seed: int
    scope: Scope = ALL
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
    """The method's scalars, float32 values, in order of the plan's directions."""
    ticket: int = 0
    """Of an asynchronous run: which of the client's plans it answers, counted from 1."""
    staleness: int = 0
    """Of an asynchronous run: commits between the state it was made at and this one."""


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
    metric: float | None = None
    """Mean over the examples, where the task has a metric."""


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

    @property
    def metric(self) -> float | None:
        """Mean over the examples of clients that have one; None where none has."""
        measured = [(c.metric * c.examples, c.examples) for c in self.clients if c.metric is not None]
        return sum(m for m, _ in measured) / sum(n for _, n in measured) if measured else None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The clients measured how curved the loss is, and what follows from it."""

    learning_rate: float
    """What the schedule multiplies from here on."""
    reports: tuple[ClientReport, ...]
    """Their scalars are the slope along each direction, then the curvature along each."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What an excerpt has in place of the records up to a position: all that a client needs of them."""

    position: int
    record_hash: bytes
    """At that position."""
    entries: tuple[Entry, ...]
    """The totals there that are not zero, of seeds of the run's pool."""
    highest_rate: float
    """Learning rate that a plan of the run had so far, at most."""
    client: str = ""
    """Name of the excerpt's owner; empty where it was not enrolled."""
    index: int = 0
    """Its index."""


Body = Enrolment | Commit | Void | Evaluation | Calibration | Rollback | End


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
