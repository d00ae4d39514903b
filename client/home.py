"""A client's own copy of a run: journal and replica, kept between its processes.

The copy of the journal is appended to durably before the replica moves, so a state file is never ahead of it. Whatever
is lost or damaged here comes back: the replica from base and journal, the journal from the server.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from fedzo.base.checkpoint import Base
from fedzo.errors import JournalDamageError, JournalFormatError, ReplicaError
from fedzo.journal import Journal
from fedzo.journal.copies import JournalCopy
from fedzo.noise import NoiseBackend
from fedzo.results.rebuild import check_history, replay_from_base, restore
from fedzo.run_directory import RunDirectory
from fedzo.state.replica import Replica
from fedzo.state.statefile import save_state
from fedzo.tiers.choice import CPU, place_of, scratch_place
from fedzo.v1 import rounds_pb2 as pb
from fedzo.wire.steps import decode_steps

Say = Callable[[str], None]


def open_journal(path: Path, say: Say, *, excerpts: bool) -> Journal | None:
    """The client's copy of the journal; None where there is none that can be used.

    Args:
        path: of the file.
        say: told why it is given up.
        excerpts: it may be an excerpt.

    Raises:
        JournalLockedError: another client process works in this directory.
    """
    if not path.exists():
        return None
    try:
        return Journal.open(path, excerpts=excerpts)
    except (JournalDamageError, JournalFormatError) as error:
        say(f"the copy of the journal is given up and fetched again: {error}")
        path.unlink()
        return None


class Home:
    """The client's place in a run.

    Args:
        directory: of this client alone; None keeps the replica in memory only.
        journal: its copy, open for writing.
        base: the run's.
        backend, threads: as `Replica`.
        say: told what an operator should see.
        state: where the exact state lives: one of `fedzo.tiers.TIERS`.
        device: where forward passes run.

    Raises:
        BaseMismatchError: the base is another one.
        ReplicaError, RangeGuardError: the journal does not hold what a server would write.
        ExcerptError: it goes back to where it has no records.
    """

    def __init__(
        self,
        directory: RunDirectory | None,
        journal: JournalCopy,
        base: Base,
        *,
        backend: NoiseBackend,
        threads: int,
        say: Say,
        state: str = "host",
        device: torch.device = CPU,
    ) -> None:
        contents = journal.contents
        self.genesis = contents.genesis
        self.history = check_history(contents)
        self.replica = Replica.from_base(
            base,
            self.genesis.distribution,
            scope=self.genesis.scope,
            backend=backend,
            threads=threads,
            place=scratch_place("host", Path(), device)
            if directory is None
            else place_of(state, directory.state, device),
            defer=directory is not None,
        )
        self.replica.start_at(self.genesis, base.digest, contents.hashes[0])
        self.base_digest = base.digest
        self._state = None if directory is None else directory.state
        self._journal = journal
        self._source = base.source
        self._say = say
        self._saved_position = -1
        if self._state is None:
            self.replica.resume(contents.records, contents.hashes, contents.start)
        else:
            how = restore(self.replica, contents, self._state)
            say(f"at position {self.replica.position}, from {how}")

    @property
    def genesis_hash(self) -> bytes:
        """Names the run."""
        return self._journal.contents.hashes[0]

    def follow(self, steps: Iterable[pb.Step]) -> None:
        """Take records over: into the journal, then into the replica.

        Raises:
            JournalDamageError, ProtocolError: they do not follow on what is here; nothing was changed.
            ExcerptError: they go back to where this copy has no records; it has to be begun anew.
            RangeGuardError, ReplicaError: no server may write such a record, or rebuilding does not help.
        """
        decoded = decode_steps(self.genesis, steps)
        if not decoded:
            return
        records = self._journal.append_copies(decoded)
        hashes = [record_hash for _, record_hash in decoded]
        self.history.catch_up()
        try:
            self.replica.catch_up(records, hashes)
        except ReplicaError as error:
            self.rebuild(str(error))
        if any(record.state_digest is not None for record in records):
            self.save()

    def rebuild(self, reason: str) -> None:
        """Repair the replica by replay from the base.

        Raises:
            ReplicaError: it does not become what the journal states.
        """
        self._say(f"rebuilding the replica: {reason}")
        replayed = replay_from_base(self.replica, self._source, self._journal.contents)
        self._say(f"rebuilt from base and {replayed} records")

    def save(self) -> None:
        """Write the state file, unless it is there already, or nothing is kept on disk."""
        if self._state is not None and self.replica.position != self._saved_position:
            save_state(self._state, self.replica)
            self._saved_position = self.replica.position
