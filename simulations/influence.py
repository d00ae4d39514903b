"""`fedzo influence`: what each client's reports did to the held-out loss of a run's model.

A client's part is taken out of the one replica (`fedzo.results.without`), the model is evaluated, and the part is put
back; both are exact, since entries commute and negated ones undo, and the digest at the end shows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedzo.coordinator.history import History
from fedzo.errors import RangeGuardError, ReplicaError
from fedzo.journal import Entry
from fedzo.results.rebuild import check_history
from fedzo.results.without import check_range, check_removable, entries_without
from fedzo.run_directory import RunDirectory
from fedzo.state.replica import Replica

from .evaluate import Shown, rebuilt, subject_of_run, use_threads
from .measured import Evaluated, Subject, measured


@dataclass(frozen=True, slots=True)
class Influence:
    """Of one client."""

    client: int
    name: str
    commits: int
    """That stand, and in which it is."""
    loss_without: float | None
    """Held-out loss where each of these commits is made of the other clients' reports alone; None where that might
    leave the range of the integers, as it may where who stays is hostile and was outweighed."""
    influence: float | None
    """`loss_without` less the loss of the run's model; positive: the model is better for the client's reports."""


def influences(
    target: Path, given: dict[str, Any], base: str | None, *, rows: int = 0, names: Sequence[str] = ()
) -> tuple[Evaluated, Iterator[Influence]]:
    """The run's model evaluated, and each client's influence, computed as it is asked for.

    Args:
        target: run directory.
        given: options of `fedzo simulate` that say on what, and how.
        base: of the run, where its config does not name it.
        rows: evaluate on the first so many; 0 is all.
        names: of the clients; all where none is given.

    Raises:
        ConfigError, DataError, CheckpointError, JournalError: by name.
        ReplicaError: at the end, the state is not the one before; what was yielded is wrong.
    """
    use_threads(given)
    run = RunDirectory(target).require()
    replica, loaded, contents = rebuilt(run, given, base)
    history = check_history(contents)
    check_removable(history, names)
    subject = subject_of_run(run, (replica, loaded, contents), given, Shown(rows=rows))
    whole = measured(subject, answers_too=False)
    return whole, _influences(replica, history, subject, whole.loss, names or list(history.clients))


def _influences(
    replica: Replica, history: History, subject: Subject, loss: float, names: Sequence[str]
) -> Iterator[Influence]:
    digest, maxima = replica.digest(), replica.maxima()
    for name in names:
        client = history.clients[name]
        entries, commits = entries_without(history, name)
        try:
            check_range(history, entries, maxima)
        except RangeGuardError:
            yield Influence(client, name, commits, None, None)
            continue
        replica.add(entries)
        without = measured(subject, answers_too=False).loss if commits else loss
        replica.add([Entry(seed, -coefficient) for seed, coefficient in entries])
        yield Influence(client, name, commits, without, without - loss)
    if replica.digest() != digest:
        raise ReplicaError(
            f"after every part was put back the state digest is {replica.digest().hex()[:16]}…, before it was "
            f"{digest.hex()[:16]}…; do not trust these figures, and check this machine's memory"
        )
