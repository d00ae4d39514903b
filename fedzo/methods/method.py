"""What a federated method is: pure functions on frozen values, so that it reads like its paper's pseudocode."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from fedzo.errors import ConfigError
from fedzo.journal.records import ClientReport, Entry, Genesis, Record, Rules
from fedzo.methods.robust import check_aggregation
from fedzo.noise import COEFFICIENT_BITS

OPTIONS = ("pool_size", "momentum_window", "momentum_decay", "curvature_power")
"""Rules that one method needs and another has no use for, where they stay 0."""


class MethodRound(NamedTuple):
    """A round, as plans and entries follow from it."""

    genesis: Genesis
    number: int
    """From 1; in an asynchronous run a ticket."""
    memory: Any = None
    """What the method remembers of the rounds before; None stands for the memory of a run that begins."""

    @property
    def rules(self) -> Rules:
        """Of the run."""
        return self.genesis.rules

    @property
    def draws(self) -> int:
        """Seeds that a client evaluates, over all its local steps."""
        return self.rules.directions * self.rules.local_steps


class MethodReport(NamedTuple):
    """What a method learns of one client in a round."""

    client: int
    examples: int
    projected_gradients: tuple[float, ...]
    """One scalar for each planned seed, as the method's `scalars` made it; float32 values."""


class Method(ABC):
    """A federated method. Subclass it and name the class in the entry point group `fedzo.methods` to add one."""

    usual: ClassVar[Mapping[str, float]] = {}
    """What those of `OPTIONS` that it needs are where nothing is said, and `directions` where that is not 1."""
    incomparable: ClassVar[str] = "its clients evaluate directions of their own, so that scalars cannot be compared"
    """Why `aggregation` is refused; empty where it is not."""
    needs_rounds: ClassVar[str] = "it does not say that each report can be aggregated by itself"
    """Why it cannot do without rounds; empty where reports can come one by one, and entries are linear in scalars."""

    def check(self, rules: Rules) -> None:
        """Raises ConfigError for rules that the method cannot follow, naming the option."""
        for name in OPTIONS:
            value, option = getattr(rules, name), name.replace("_", "-")
            if name in self.usual and not value:
                raise ConfigError(
                    f"option {option} is 0, but method {rules.method!r} needs it; {self.usual[name]} is usual"
                )
            if name not in self.usual and value:
                raise ConfigError(
                    f"option {option} is {value}, but method {rules.method!r} has no use for it; leave it 0"
                )
        if rules.aggregation and self.incomparable:
            raise ConfigError(
                f"aggregation {rules.aggregation!r} is not for method {rules.method!r}: {self.incomparable}; choose "
                "'mean', which --clip makes robust, or method 'shared'"
            )
        check_aggregation(rules)
        if rules.asynchronous and self.needs_rounds:
            raise ConfigError(
                f"option buffer is {rules.buffer_size}, but method {rules.method!r} needs rounds: {self.needs_rounds}; "
                "leave it 0, or choose distinct, fedkseed, sign, fzoo or spsa15"
            )

    @abstractmethod
    def plan(self, at: MethodRound, client: int) -> list[int]:
        """Seeds that a client evaluates in a round: local step by local step, `directions` each."""

    @abstractmethod
    def aggregate(self, at: MethodRound, learning_rate: float, reports: Sequence[MethodReport]) -> tuple[Entry, ...]:
        """The round's entries, from reports in ascending order of client index."""

    # ── what a client does ──────────────────────────────────────────────────────────────────────────────

    def perturbations(self, rules: Rules) -> tuple[int, ...]:
        """Where along a direction the loss is evaluated, units of 2⁻⁴⁰; 0 is the unperturbed loss, run once a step."""
        return (rules.epsilon, -rules.epsilon)

    def scalars(self, rules: Rules, losses: Sequence[Sequence[float]]) -> list[float]:
        """What a client reports of a local step: one scalar for each direction.

        Args:
            rules: of the run.
            losses: finite, of each direction at its perturbations.
        """
        return [projected_gradient(plus, minus, rules.epsilon) for plus, minus in losses]

    def local_step(self, rules: Rules, learning_rate: float, scalar: float) -> int:
        """Coefficient by which a client's own next local step moves along a direction, units of 2⁻⁴⁰: −η g / P."""
        return to_coefficient(-learning_rate * scalar / rules.directions)

    def forwards(self, rules: Rules) -> int:
        """Forward passes of one client in a round whose directions all differ."""
        perturbations = self.perturbations(rules)
        moved = sum(perturbation != 0 for perturbation in perturbations)
        return rules.local_steps * (rules.directions * moved + (0 in perturbations))

    # ── what a calibration needs to know ────────────────────────────────────────────────────────────────

    def averaged_directions(self, rules: Rules, clients: int) -> int:
        """Directions that a step averages: a client's own, where steps of its own or of one for all limit the rate."""
        return rules.directions

    def rate_of(self, rules: Rules, step: float, slope: float, curvature: float) -> float:
        """The learning rate with which the method moves by about −step · g z along a direction.

        Args:
            rules: of the run.
            step: rate of a method that moves by exactly that.
            slope: root mean square of g at the beginning of the run.
            curvature: root mean square of zᵀHz.
        """
        return step

    # ── what earlier rounds leave ───────────────────────────────────────────────────────────────────────

    def memory(self, genesis: Genesis) -> Any:
        """What the method knows of earlier rounds before there are any; None where it needs nothing of them."""
        return None

    def remember(self, genesis: Genesis, memory: Any, record: Record) -> Any:
        """A new memory, one commit on. The memory of a plan is this fold over the commits that no roll-back undid."""
        return memory


def projected_gradient(loss_plus: float, loss_minus: float, epsilon: int) -> float:
    """g = (L(θ+εz) − L(θ−εz)) / 2ε (SPSA, Spall 1992); epsilon in units of 2⁻⁴⁰."""
    return (loss_plus - loss_minus) / (2 * epsilon / 2.0**COEFFICIENT_BITS)


def to_coefficient(value: float) -> int:
    """A coefficient rounded half to even to units of 2⁻⁴⁰ (docs/numerics.md, "From scalars to coefficients")."""
    return round(value * 2.0**COEFFICIENT_BITS)


def method_reports(reports: Iterable[ClientReport]) -> list[MethodReport]:
    """What a method learns of the reports in a commit."""
    return [MethodReport(report.client, report.examples, report.projected_gradients) for report in reports]
