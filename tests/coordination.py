"""A run under a coordinator, driven by hand: what the tests of the coordinator share."""

from collections import Counter
from fractions import Fraction

import torch
from blake3 import blake3
from helpers import MANIFEST, make_genesis
from hypothesis import strategies as st

from fedzo.base.manifest import Manifest
from fedzo.coordinator import (
    Accept,
    Announce,
    Append,
    Appended,
    Connected,
    Coordinator,
    Decision,
    Event,
    Finish,
    Plan,
    Purpose,
    Report,
    Tick,
)
from fedzo.coordinator.calibration import calibration_directions
from fedzo.journal import (
    Genesis,
    Journal,
    JournalContents,
    Record,
    Rollback,
)
from fedzo.journal.codec import decode_record, encode_record
from fedzo.journal.file import HEADER, record_hash
from fedzo.journal.genesis_codec import encode_genesis
from fedzo.noise import Distribution, get_backend
from fedzo.noise.draws import derived_seeds
from fedzo.state.replica import Replica

NAMES = ("anna", "bertl", "carla", "dora", "emil", "franz")
MAXIMA = (2**29, 2**28)
LIMIT = 2.0**20
scalars_of = st.floats(min_value=-50, max_value=50, width=32)


class Run:
    """A coordinator with its journal, and the time it is told.

    Args:
        genesis: of the run; `make_genesis(**rules)` where not given.
        contents: the journal so far.
        journal: a real one to append to; else the same chain of payloads and hashes is kept in memory.
    """

    def __init__(self, genesis=None, *, contents=None, journal: Journal | None = None, **rules) -> None:
        genesis = genesis or (journal or contents).genesis if contents else genesis or make_genesis(**rules)
        self.genesis: Genesis = genesis
        first = record_hash(blake3(HEADER).digest(), encode_genesis(genesis))
        self.contents = contents or JournalContents(genesis=genesis, hashes=[first])
        self.journal = journal
        self.coordinator = Coordinator(self.contents)
        self.plan: Plan | None = None
        """The plan under way."""
        self.next: dict[int, list[Decision]] = {}
        """What was decided as soon as each position was durable."""
        self.now_s = 0.0

    @property
    def records(self) -> list[Record]:
        return self.contents.records

    @property
    def head(self) -> bytes:
        return self.contents.hashes[-1]

    def totals(self, position: int | None = None) -> dict[int, int]:
        """A(s) after some records, added up from the entries; without the zeros."""
        found: Counter[int] = Counter()
        for record in self.records[:position]:
            for seed, coefficient in record.entries:
                found[seed] += coefficient
        return {seed: total for seed, total in found.items() if total}

    def digest(self) -> bytes:
        """Stands for a state digest: a function of the totals."""
        return blake3(repr(sorted(self.totals().items())).encode()).digest()

    def handle(self, event: Event) -> list[Decision]:
        """One event; a record that it leads to is left undurable."""
        decisions = self.coordinator.handle(event, self.now_s)
        self._follow(decisions)
        return decisions

    def send(self, event: Event) -> list[Decision]:
        """One event and all that follows from it, every record made durable at once."""
        queue, done = self.handle(event), []
        while queue:
            assert len(done) < 100, "one event leads to records without end"
            done.append(queue.pop(0))
            if isinstance(done[-1], Append):
                queue += self.append(done[-1].record)
        return done

    def append_by_hand(self, record: Record) -> None:
        """Add what a reader of the journal would see; the coordinator is not told."""
        payload = encode_record(record)
        self.contents.hashes.append(record_hash(self.head, payload))
        self.contents.records.append(decode_record(payload))

    def append(self, record: Record) -> list[Decision]:
        """Make a record durable and say so."""
        self.append_by_hand(record)
        if self.journal is not None:
            assert self.journal.append(record) == self.head
        decisions = self.coordinator.handle(Appended(record, self.head), self.now_s)
        self.next[len(self.records)] = list(decisions)
        self._follow(decisions)
        return decisions

    def answer(self, client: int, /, **changes) -> Report:
        """A good report of a client on the plan under way, but for the changes."""
        plan = self.plan
        assert plan is not None
        values = {"purpose": plan.purpose, "round": plan.round, "client": client, "record_hash": plan.record_hash}
        if plan.purpose is Purpose.TRAIN:
            count = self.genesis.rules.directions * self.genesis.rules.local_steps
            values |= {"examples": 4, "loss": 2.0, "projected_gradients": (1.5 + client,) * count}
        if plan.purpose is Purpose.EVALUATE:
            values |= {"examples": 100, "loss": 2.0}
        if plan.purpose is Purpose.CALIBRATE:
            count = calibration_directions(self.genesis.rules)
            values |= {"examples": 4, "loss": 2.0, "projected_gradients": (1.5,) * count + (20.0 + client,) * count}
        if plan.attest:
            values |= {"state_digest": self.digest(), "maxima": MAXIMA}
        return Report(**(values | changes))

    def play(self, answers=None, *, until=lambda run: False) -> None:
        """Let every client of every cohort answer in time, to the end; `answers(run, client)` gives the changes."""
        while not until(self) and self.plan is not None:
            plan = self.plan
            for client in plan.cohort:
                accepted = self.send(self.answer(client, **(answers(self, client) if answers else {})))
                assert accepted[0] == Accept(client, duplicate=False)

    def past_deadline(self) -> list[Decision]:
        """The deadline passes."""
        self.now_s += self.genesis.rules.deadline_s
        return self.send(Tick())

    def _follow(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Append | Finish):
                self.plan = None
            if isinstance(decision, Announce):
                assert self.plan is None
                self.plan = decision.plan


def started(clients: int = 2, **rules) -> Run:
    """A run whose first plan is announced to its clients."""
    run = Run(**({"cohort": clients} | rules))
    run.send(Connected(NAMES[:clients]))
    assert run.plan is not None
    return run


def kinds(run: Run) -> list[str]:
    """The records of a run, as `Commit3` for that of round 3."""
    return [f"{type(record.body).__name__}{record.round}" for record in run.records]


def assert_entries(run: Run, record: Record, learning_rate: float) -> None:
    """−η (n_c/n) g / P for every direction of every client, half a unit of 2⁻⁴⁰ and a float64's rounding off."""
    reports, rules = record.body.reports, run.genesis.rules
    total = sum(report.examples for report in reports)
    expected = []
    for report in reports:
        count = rules.directions * rules.local_steps
        seeds = derived_seeds(run.genesis.run_seed, record.round, report.client, count)
        for seed, scalar in zip(seeds, report.projected_gradients, strict=True):
            exact = -Fraction(learning_rate) * Fraction(scalar) * report.examples / total / rules.directions * 2**40
            expected.append((seed, exact))
    assert [entry.seed for entry in record.entries] == [seed for seed, _ in expected]
    for entry, (_, exact) in zip(record.entries, expected, strict=True):
        assert abs(entry.coefficient - exact) <= Fraction(1, 2) + abs(exact) / 2**50


def drain(run: Run, *batches: list[Decision]) -> None:
    """Make records durable in the order in which they were decided on, after all the events that gave them."""
    queue = [decision for batch in batches for decision in batch]
    while queue:
        decision = queue.pop(0)
        if isinstance(decision, Append):
            queue += run.append(decision.record)


class ReplicaRun(Run):
    """A run with a real replica that follows the journal; `digests[p]` is that at position p."""

    def __init__(self, manifest: Manifest = MANIFEST, start: int = 2**20, **rules) -> None:
        super().__init__(make_genesis(manifest=manifest, **rules))
        state = torch.full((manifest.elements,), start, dtype=torch.int32)
        self.replica = Replica(manifest, state, Distribution.RADEMACHER, backend=get_backend("reference"))
        self.digests = [self.replica.digest()]

    def append(self, record: Record) -> list[Decision]:
        self.replica.apply(record, record_hash(self.head, encode_record(record)))
        self.digests.append(self.replica.digest())
        return super().append(record)

    def digest(self) -> bytes:
        return self.replica.digest()

    def answer(self, client: int, /, **changes) -> Report:
        maxima = {"maxima": self.replica.maxima()} if self.plan.attest else {}
        return super().answer(client, **(maxima | changes))


def replica_run(clients: int = 2, **rules) -> ReplicaRun:
    """Its first plan is announced."""
    run = ReplicaRun(**({"cohort": clients, "rounds": 20, "attest_every": 1, "learning_rate": 0.01} | rules))
    run.send(Connected(NAMES[:clients]))
    return run


def assert_rolled_back(run: ReplicaRun, position: int) -> Rollback:
    """The last record returns to a position: entries, totals and the replica's digest say so."""
    body = run.records[-1].body
    assert isinstance(body, Rollback)
    assert body.position == position
    undone: Counter[int] = Counter(run.totals(len(run.records) - 1))
    undone.subtract(run.totals(position))
    assert dict(body.entries) == {seed: -total for seed, total in undone.items() if total}
    assert run.totals() == run.totals(position)
    assert run.digests[-1] == run.digests[position]
    return body
