"""What a journal says of each client: how far it took part, the size of its scalars, whether it agrees with others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, median

from fedzo.journal import Commit, Enrolment, Genesis, JournalContents
from fedzo.journal.records import ClientReport
from fedzo.methods import MethodRound, get_method


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """Of one client, over all commits of a journal, those undone later among them."""

    client: int
    name: str
    commits: int
    """In which it is."""
    examples: int
    share: float
    """Of the examples of all clients."""
    loss: float | None
    """Mean over its examples; None where it is in no commit."""
    size: float | None
    """Median over commits of the root mean square of its scalars, divided by the median of the cohort's."""
    agreement: float | None
    """Cosine of its scalars with the mean of the others', over all commits together; None where methods give clients
    directions of their own, or nothing can be compared."""


@dataclass(slots=True)
class _Sums:
    commits: int = 0
    examples: int = 0
    loss: float = 0.0
    sizes: list[float] = field(default_factory=list)
    dot: float = 0.0
    own: float = 0.0
    others: float = 0.0


def client_statistics(contents: JournalContents) -> list[ClientStatistics]:
    """Of every client that was ever enrolled, in order of its index.

    Raises:
        ConfigError: the run's method is not installed.
    """
    names: dict[int, str] = {}
    sums: dict[int, _Sums] = {}
    comparable = _same_directions(contents.genesis)
    for record in contents.records:
        match record.body:
            case Enrolment(first, enrolled):
                names |= {first + k: name for k, name in enumerate(enrolled)}
            case Commit(reports=reports):
                _add(sums, reports, comparable)
    total = sum(of.examples for of in sums.values())
    return [_statistics(client, names[client], sums.get(client, _Sums()), total) for client in sorted(names)]


def why_no_agreement(genesis: Genesis) -> str:
    """Why a client's agreement cannot be known, in words."""
    if _same_directions(genesis):
        return "it is in no commit with another client's scalars"
    return f"method {genesis.rules.method!r} has each client evaluate directions of its own, which cannot be compared"


def _same_directions(genesis: Genesis) -> bool:
    """Do all clients evaluate the same directions?"""
    method = get_method(genesis.rules.method)
    first = MethodRound(genesis, 1, method.memory(genesis))
    return method.plan(first, 0) == method.plan(first, 1)


def _add(sums: dict[int, _Sums], reports: Sequence[ClientReport], comparable: bool) -> None:
    sizes = [sqrt(fmean(scalar**2 for scalar in report.projected_gradients)) for report in reports]
    usual = median(sizes)
    columns = (
        [sum(column) for column in zip(*(r.projected_gradients for r in reports), strict=True)] if comparable else []
    )
    for report, size in zip(reports, sizes, strict=True):
        of = sums.setdefault(report.client, _Sums())
        of.commits += 1
        of.examples += report.examples
        of.loss += report.loss * report.examples
        if usual:
            of.sizes.append(size / usual)
        if comparable and len(reports) > 1:
            for scalar, column in zip(report.projected_gradients, columns, strict=True):
                mean = (column - scalar) / (len(reports) - 1)
                of.dot += scalar * mean
                of.own += scalar**2
                of.others += mean**2


def _statistics(client: int, name: str, of: _Sums, total: int) -> ClientStatistics:
    norm = sqrt(of.own * of.others)
    return ClientStatistics(
        client=client,
        name=name,
        commits=of.commits,
        examples=of.examples,
        share=of.examples / total if total else 0.0,
        loss=of.loss / of.examples if of.examples else None,
        size=median(of.sizes) if of.sizes else None,
        agreement=of.dot / norm if norm else None,
    )
