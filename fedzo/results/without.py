"""A run's model as if one client's reports had not counted.

Every commit that no roll-back undid is aggregated again from the reports of the others, with the rate that it had, and
the difference is added to the replica: exact, as every entry is. What this does not undo: the others' scalars were
measured on a model that the client had moved, and so were the learning rate's halvings, the roll-backs and which seeds
were drawn. It is not the run that would have been without the client, and no promise that nothing of its data is left.
"""

from collections.abc import Sequence

from fedzo.coordinator.aggregation import commit_entries
from fedzo.coordinator.history import History
from fedzo.coordinator.range_guard import RangeGuard
from fedzo.errors import ConfigError, ExcerptError, RangeGuardError
from fedzo.journal import Commit, Entry
from fedzo.journal.records import add_entries
from fedzo.methods import get_method
from fedzo.state.replica import Replica


def remove_client(replica: Replica, history: History, name: str) -> int:
    """Take a client's part out of a replica at its journal's end; the number of commits that it was in.

    Args:
        replica: it no longer is at any position of the journal afterwards.
        history: of the journal, to its end.
        name: of the client.

    Raises:
        ConfigError, ExcerptError: as `check_removable`.
        RangeGuardError: the others' parts alone would leave the range of the integers.
    """
    check_removable(history, [name])
    entries, found = entries_without(history, name)
    check_range(history, entries, replica.maxima())
    replica.add(entries)
    return found


def check_removable(history: History, names: Sequence[str]) -> None:
    """Refuse what cannot be taken out.

    Raises:
        ConfigError: the journal does not know a client, or the method's commits rest on each other.
        ExcerptError: the journal is an excerpt.
    """
    genesis = history.genesis
    if history.first:
        raise ExcerptError(
            f"no client's part can be taken out: this copy of the journal begins with the totals at position "
            f"{history.first}, which all clients made together; the run's server has all records"
        )
    for name in names:
        if name not in history.clients:
            raise ConfigError(f"{name!r}: no such client; the journal knows {', '.join(history.clients)}")
    if get_method(genesis.rules.method).memory(genesis) is not None:
        raise ConfigError(
            f"no client's part can be taken out: commits of method {genesis.rules.method!r} rest on the reports of "
            "earlier ones and cannot be aggregated again one by one; choose a position before the client's first with "
            "fedzo rollback"
        )


def entries_without(history: History, name: str) -> tuple[list[Entry], int]:
    """What takes a client's part out of the state at the journal's end, and the number of commits that it was in.

    Args:
        history: of the journal, to its end; `check_removable` holds.
        name: of the client.
    """
    genesis, client = history.genesis, history.clients[name]
    memory = get_method(genesis.rules.method).memory(genesis)
    entries: list[Entry] = []
    found = 0
    for record in history.commits:
        assert isinstance(record.body, Commit)
        others = [report for report in record.body.reports if report.client != client]
        if len(others) < len(record.body.reports):
            found += 1
            entries += [Entry(seed, -coefficient) for seed, coefficient in record.entries]
            if others:
                entries += commit_entries(genesis, record.round, record.body.learning_rate, others, memory)
    return entries, found


def check_range(history: History, entries: Sequence[Entry], maxima: Sequence[int]) -> None:
    """May these entries be added to the state at the journal's end?

    The range guard's bound is taken from that state, and where it is too coarse, as it is of a client that moved the
    state far, from the base.

    Args:
        history: of the journal, to its end.
        entries: as `entries_without` gives them.
        maxima: of the state at the journal's end.

    Raises:
        RangeGuardError: no; names the tensor or the seed.
    """
    genesis = history.genesis
    try:
        history.range_guard.check(entries, maxima)
    except RangeGuardError:
        left = history.range_guard.totals
        add_entries(left, entries)
        from_base = RangeGuard(genesis.manifest, genesis.distribution, genesis.scope)
        from_base.check([Entry(seed, total) for seed, total in left.items()])
