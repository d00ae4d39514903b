"""A server's own replica: it follows the journal as records come, checks what clients attest, and evaluates.

Nothing of it goes into the journal, whose bytes are those of a run without it. Evaluations are lines of
`evaluations.jsonl` in the run's directory; a digest that differs is said, with the clients that attested it.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from fedzo.base.checkpoint import head_of, load_base, load_tokenizer, tokenizer_digest
from fedzo.coordinator import History
from fedzo.errors import BaseMismatchError, FedzoError, ReplicaError, StateFileError
from fedzo.estimate import Estimator
from fedzo.journal import Commit, End, Enrolment, Evaluation, JournalContents, Record, Void
from fedzo.results.rebuild import replay_from_base
from fedzo.run_directory import RunDirectory
from fedzo.scopes.base import scoped
from fedzo.state.replica import Replica
from fedzo.state.statefile import load_state, save_state
from fedzo.tasks import get_task
from fedzo.worker import Worker

from .evaluations import Evaluations, load_held_out
from .options import ServerOptions

Say = Callable[[str], None]


class Follower:
    """Follows a journal in a thread of its own, from its start until it is closed.

    Args:
        contents: the journal's, which grows as records become durable.
        replica: at the base.
        source: where the base is.
        evaluations: made on that replica.
        state: its state file.
        say: told what an operator should see.
    """

    def __init__(
        self,
        contents: JournalContents,
        replica: Replica,
        source: str,
        evaluations: Evaluations,
        state: Path,
        say: Say,
    ) -> None:
        self._contents = contents
        self._replica = replica
        self._source = source
        self._evaluations = evaluations
        self._state = state
        self._say = say
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fedzo-follower")

    def moved(self) -> None:
        """The journal has one more record."""
        self._news.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Where the journal has ended, what is left of it is followed first."""
        self._closing = True
        self._news.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._restore()
            while not self._done():
                self._news.wait()
                self._news.clear()
                self._advance()
            save_state(self._state, self._replica)
        except (FedzoError, OSError) as error:
            self._say(f"the server's own replica is given up, the run goes on: {error}")

    def _restore(self) -> None:
        """Begin at the state file where that is clean, else at the base."""
        replica, contents = self._replica, self._contents
        with suppress(StateFileError):
            load_state(self._state, replica, contents.hashes)
        replica.resume(contents.records[: replica.position], contents.hashes[: replica.position + 1])
        self._news.set()

    def _done(self) -> bool:
        records = self._contents.records
        ended = bool(records) and isinstance(records[-1].body, End)
        return self._closing and not (ended and self._replica.position < len(records))

    def _advance(self) -> None:
        """Follow to the journal's end, with a stop at every evaluation."""
        records, hashes, replica = self._contents.records, self._contents.hashes, self._replica
        while replica.position < (end := len(hashes) - 1) and not self._done():
            low = replica.position
            until = next((p for p in range(low + 1, end) if isinstance(records[p - 1].body, Evaluation)), end)
            try:
                replica.replay(records[low:until], hashes[low + 1 : until + 1])
            except ReplicaError:
                self._differ(records[replica.position], hashes[replica.position + 1])
                continue
            if isinstance(records[until - 1].body, Evaluation) and until > self._evaluations.position:
                self._say(self._evaluations.evaluate(replica, records[until - 1].round))
                save_state(self._state, replica)

    def _differ(self, record: Record, record_hash: bytes) -> None:
        """Apply a record that states another digest or other maxima than this replica has, also when made anew."""
        replica = self._replica
        self._rebuild()
        if record.state_digest in (None, replica.digest()) and record.maxima in (None, replica.maxima()):
            self._say("the server's own replica was wrong and is rebuilt from base and journal")
        else:
            stated = "none" if record.state_digest is None else f"{record.state_digest.hex()[:16]}…"
            self._say(
                f"round {record.round}: {self._who(record)} attest state digest {stated}, but "
                f"{replica.digest().hex()[:16]}… follows from base and journal; end them, delete their replica.state, "
                "and start them again"
            )
        replica.apply(_silent(record), record_hash)

    def _rebuild(self) -> None:
        """Make the replica anew, whatever the records state of it."""
        contents, position = self._contents, self._replica.position
        silent = [_silent(record) for record in contents.records[:position]]
        so_far = JournalContents(contents.genesis, contents.hashes[: position + 1], silent)
        replay_from_base(self._replica, self._source, so_far)

    def _who(self, record: Record) -> str:
        """Names of the clients whose attestation a record holds."""
        match record.body:
            case Commit(reports=reports):
                indices = [report.client for report in reports]
            case Void(reported=reported):
                indices = list(reported)
            case _:
                return "most of the clients"
        enrolments = (r.body for r in self._contents.records if isinstance(r.body, Enrolment))
        names = [name for enrolment in enrolments for name in enrolment.clients]
        return ", ".join(names[index] for index in indices)


def _silent(record: Record) -> Record:
    """A record that states nothing of the state before it."""
    return replace(record, state_digest=None, maxima=None)


def make_follower(run: RunDirectory, contents: JournalContents, options: ServerOptions, say: Say) -> Follower:
    """A follower of a run's journal, with the base and the rows that the options name.

    Raises:
        FedzoError: base or rows cannot be used; by name.
    """
    genesis = contents.genesis
    tokenizer = load_tokenizer(options.model)
    if tokenizer_digest(tokenizer) != genesis.task.tokenizer_digest:
        raise BaseMismatchError(f"{options.model}: its tokenizer is not the run's; give the run's with --model")
    task = get_task(genesis.task.name)(genesis.task, tokenizer, options.text_field)
    data = load_held_out(genesis, task, options.evaluate_on)
    base = load_base(options.model, head_of(genesis.task, genesis.run_seed))
    base = scoped(base, genesis.scope, genesis.run_seed)
    replica = Replica.from_base(base, genesis.distribution, scope=genesis.scope, threads=torch.get_num_threads())
    replica.start_at(genesis, base.digest, contents.hashes[0])
    worker = Worker(History(contents), replica, Estimator(base.model, replica, loss=task.loss), task.measure)
    evaluations = Evaluations(run.path / "evaluations.jsonl", worker, data)
    return Follower(contents, replica, base.source, evaluations, run.state, say)
