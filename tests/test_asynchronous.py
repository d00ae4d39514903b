"""Asynchronous runs: every report counts once, with the weight of its staleness, or is refused by name."""

import random

import pytest
from asynchrony import assert_journal, refusal, staleness_at, tickets
from coordination import MAXIMA, NAMES, Run
from helpers import make_genesis, make_rules
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedzo.coordinator import (
    Accept,
    Announce,
    Append,
    Connected,
    Coordinator,
    Disconnected,
    Purpose,
    Tick,
)
from fedzo.errors import ConfigError, ProtocolError
from fedzo.journal import Commit, End, Enrolment, Evaluation, Rollback, Void
from fedzo.journal.codec import decode_record, encode_record
from fedzo.journal.genesis_codec import encode_genesis
from fedzo.methods import MethodRound, get_method
from fedzo.wire.steps import decode_steps, encode_step

DIVERGED = {"diverged": True, "loss": float("nan"), "projected_gradients": ()}

# ── plans and commits ───────────────────────────────────────────────────────────────────────────────


def test_every_client_has_a_plan_of_its_own_and_gets_the_next_with_the_answer():
    run = tickets(3, buffer_size=3)
    assert [(client, plan.round, plan.position) for client, plan in run.plans.items()] == [
        (0, 1, 1),
        (1, 1, 1),
        (2, 1, 1),
    ]
    accepted, announced = run.take(1)
    assert accepted == Accept(1, duplicate=False)
    assert isinstance(announced, Announce)
    assert (announced.plan.cohort, announced.plan.round, announced.plan.position) == ((1,), 2, 1)
    run.take(1)
    assert run.contents.position == 1, "two reports wait for a third"
    run.take(0)
    assert [(r.client, r.ticket, r.staleness) for r in run.commits[0].reports] == [(0, 1, 0), (1, 1, 0), (1, 2, 0)]
    assert [(plan.round, plan.position) for plan in (run.plans[0], run.plans[1], run.plans[2])] == [
        (2, 2),
        (3, 1),
        (1, 1),
    ], "who is at work goes on with what it has"


def test_staleness_is_the_number_of_commits_since_the_report_was_made():
    run = tickets(3, buffer_size=1, max_staleness=3, directions=2, learning_rate=2**-6)
    for _ in range(3):
        run.take(0)
    run.take(2)
    assert [[(r.client, r.ticket, r.staleness) for r in commit.reports] for commit in run.commits] == [
        [(0, 1, 0)],
        [(0, 2, 0)],
        [(0, 3, 0)],
        [(2, 1, 3)],
    ]
    assert_journal(run.contents)
    whole, half = (run.commits[k].entries[0].coefficient for k in (0, 3))
    assert whole == -(2**34) * 3 // 4
    assert half == -(2**34) * 7 // 8, "(1 + 3)^(-1/2) is exact"


def test_reports_of_one_commit_are_weighted_by_examples_and_staleness():
    run = tickets(3, buffer_size=2, directions=3)
    random.seed(3)
    for _ in range(40):
        client = random.choice([0, 0, 0, 1, 1, 2])
        scalars = tuple(random.randint(-9999, 9999) / 1024 for _ in range(3))
        run.take(client, projected_gradients=scalars, examples=random.randint(1, 8))
    assert len(run.commits) > 15
    assert {r.staleness for commit in run.commits for r in commit.reports} >= {0, 1, 2}
    assert_journal(run.contents)


def test_a_report_that_is_too_stale_is_refused_and_its_client_begins_anew():
    run = tickets(2, buffer_size=1, max_staleness=2)
    old = run.report(1)
    for _ in range(3):
        run.take(0)
    decisions = run.send(old)
    assert "too stale: evaluated at record" in refusal(decisions)
    assert "up to 2 commits before the next commit; catch up" in refusal(decisions)
    assert isinstance(decisions[1], Announce)
    assert (decisions[1].plan.cohort, decisions[1].plan.round, decisions[1].plan.position) == ((1,), 1, 4)
    assert run.take(1)[0] == Accept(1, duplicate=False)
    assert "too stale" in refusal(run.take(1, at=bytes(32)))


def test_a_report_sent_again_counts_once_and_one_ahead_of_its_time_not_at_all():
    run = tickets(2, buffer_size=2)
    first = run.report(0)
    run.send(first)
    assert run.send(first) == [Accept(0, duplicate=True)], "while it waits"
    run.take(1)
    assert run.send(first) == [Accept(0, duplicate=True)], "when it is committed"
    assert "ticket 5 is not open; the next of client 0 is 2" in refusal(run.take(0, ticket=5))
    assert [(r.client, r.ticket) for r in run.commits[0].reports] == [(0, 1), (1, 1)]


def test_a_report_that_comes_while_a_commit_is_written_counts_in_the_next():
    run = tickets(3, buffer_size=2, max_staleness=1)
    run.handle(run.report(0))
    (record,) = [d.record for d in run.handle(run.report(1)) if isinstance(d, Append)]
    late = run.report(2)
    assert run.handle(late) == [Accept(2, duplicate=False)]
    assert run.handle(run.report(0, ticket=1)) == [Accept(0, duplicate=True)], "it is being written"
    run.append(record)
    assert run.plans[0].round == run.plans[1].round == run.plans[2].round == 2
    run.take(0)
    assert [(r.client, r.ticket, r.staleness) for r in run.commits[1].reports] == [(0, 2, 1), (2, 1, 1)]
    assert_journal(run.contents)


def test_what_does_not_hold_what_was_asked_for_is_refused_by_name_and_changes_nothing():
    run = tickets(2)
    for changes, said in (
        ({"projected_gradients": ()}, "0 projected gradients; the plan asks for 1"),
        ({"projected_gradients": (float("nan"),)}, "projected gradient 0 is nan"),
        ({"examples": 0}, "0 examples; the plan asks for 1 to 8"),
        ({"loss": float("inf")}, "the loss is inf"),
    ):
        decisions = run.take(0, **changes)
        assert said in refusal(decisions)
        assert len(decisions) == 1
    assert run.take(0)[0] == Accept(0, duplicate=False)


def test_no_client_makes_a_commit_alone_and_as_many_reports_wait_as_leave_room_for_the_others():
    run = tickets(3, buffer_size=4, quorum=2)
    assert [len(run.take(0)) for _ in range(3)] == [2, 2, 1], "a next plan with the answer, but for the third"
    ahead = run.report(0, ticket=4)
    assert "3 of client 0's reports wait for those of others" in refusal(run.send(ahead))
    assert not run.commits
    run.take(1)
    assert [(r.client, r.ticket) for r in run.commits[0].reports] == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert (run.plans[0].round, run.plans[0].position) == (4, 2)
    assert run.take(0)[0] == Accept(0, duplicate=False)
    assert_journal(run.contents)


@pytest.mark.parametrize(("buffer", "quorum"), [(1, 3), (2, 3), (3, 3), (5, 2), (5, 3), (4, 1)])
def test_as_many_clients_as_the_quorum_always_get_to_a_commit(buffer, quorum):
    run = tickets(3, buffer_size=buffer, quorum=quorum, rounds=8)
    least = min(buffer, quorum)
    for _ in range(200):
        for client in range(quorum):
            if run.plan is None:
                run.take(client)
    assert len(run.commits) == 8
    assert all(len({r.client for r in commit.reports}) >= least for commit in run.commits)


def test_one_client_without_scalars_takes_nobody_back_however_often_it_says_so():
    run = tickets(6, buffer_size=4, quorum=3, guard_factor=1.25, rounds=20)
    run.take(1)
    run.take(2)
    for _ in range(80):
        run.take(0, **DIVERGED)
    run.take(1)
    assert [type(record.body) for record in run.records] == [Enrolment, Commit]
    assert {r.client for r in run.commits[0].reports} == {1, 2}


# ── evaluations, the end, restarts ──────────────────────────────────────────────────────────────────


def test_evaluations_attest_the_state_and_what_was_trained_meanwhile_counts_afterwards():
    run = tickets(2, buffer_size=1, max_staleness=4, rounds=4, evaluate_every=2)
    assert (run.plan.purpose, run.plans) == (Purpose.EVALUATE, {})
    for client in (0, 1):
        run.send(run.answer(client))
    slow = run.report(1)
    run.take(0)
    run.take(0)
    assert (run.plan.purpose, run.plan.round, run.plan.attest) == (Purpose.EVALUATE, 2, True)
    assert run.send(slow) == [Accept(1, duplicate=False)], "no commit and no plan while the state is looked at"
    digest = run.digest()
    for client in (0, 1):
        run.send(run.answer(client, state_digest=digest))
    evaluation, late = run.records[-2:]
    assert isinstance(evaluation.body, Evaluation)
    assert (evaluation.state_digest, evaluation.maxima) == (digest, MAXIMA)
    assert [(r.client, r.ticket, r.staleness) for r in late.body.reports] == [(1, 1, 2)]
    run.take(0)
    assert run.plan.purpose is Purpose.EVALUATE
    for client in (0, 1):
        run.send(run.answer(client))
    assert run.plan.purpose is Purpose.ATTEST
    assert "the training is over" in refusal(run.take(1))
    for client in (0, 1):
        run.send(run.answer(client))
    assert run.finished
    assert isinstance(run.records[-1].body, End)
    assert run.records[-1].state_digest == run.digest()
    assert_journal(run.contents)


def test_a_client_that_does_not_evaluate_in_time_holds_nobody_up():
    run = tickets(2, buffer_size=1, rounds=2, evaluate_every=2)
    for _ in range(2):
        run.send(run.answer(0))
        run.now_s += run.genesis.rules.deadline_s
        run.send(Tick())
        if run.plan is None:
            run.take(0)
            run.take(0)
    assert run.plan.purpose is Purpose.ATTEST


def test_a_restarted_coordinator_gives_the_same_tickets_and_counts_no_report_twice():
    run = tickets(3, buffer_size=2, max_staleness=2)
    committed, waiting, at_work = run.report(0), run.report(2), run.report(1)
    run.send(committed)
    run.send(at_work)
    unanswered = run.report(1)
    run.send(waiting)
    again = Run.__new__(type(run))
    again.__init__(contents=run.contents)
    again.send(Connected(NAMES[:3]))
    assert {client: plan.round for client, plan in again.plans.items()} == {0: 2, 1: 2, 2: 1}
    assert again.send(committed) == [Accept(0, duplicate=True)]
    assert again.send(waiting)[0] == Accept(2, duplicate=False), "it had not been committed"
    assert again.send(unanswered)[0] == Accept(1, duplicate=False), "though that coordinator gave no such plan"
    assert [[(r.client, r.ticket, r.staleness) for r in commit.reports] for commit in again.commits] == [
        [(0, 1, 0), (1, 1, 0)],
        [(1, 2, 0), (2, 1, 1)],
    ]
    assert_journal(again.contents)


def test_who_comes_back_is_given_its_plan_again():
    run = tickets(2, buffer_size=1)
    run.take(0)
    run.send(Disconnected(NAMES[1]))
    run.plans.clear()
    run.send(Connected((NAMES[1],)))
    assert [(client, plan.round, plan.position) for client, plan in run.plans.items()] == [(1, 1, 2)]


def test_a_rollback_cuts_off_what_was_made_on_the_states_that_are_no_more(monkeypatch):
    monkeypatch.setattr("fedzo.coordinator.history.training_window", lambda rules: 3)
    run = tickets(3, buffer_size=1, max_staleness=9, guard_factor=1.5)
    for loss in (2.0, 2.0, 2.0):
        run.take(0, loss=loss)
    before = run.report(1)
    run.take(2, loss=9.0)
    cut_off = run.report(2)
    run.take(0, loss=9.0)
    back = run.records[-1].body
    assert isinstance(back, Rollback)
    assert back.position == 1
    assert {plan.position for plan in run.plans.values()} == {run.contents.position}
    assert {plan.learning_rate for plan in run.plans.values()} == {0.0005}
    assert "too stale" in refusal(run.send(cut_off))
    assert run.send(before)[0] == Accept(1, duplicate=False), "the state it was made at is the present one"
    assert [(r.client, r.ticket, r.staleness) for r in run.commits[-1].reports] == [(1, 1, 0)]


def test_reports_without_scalars_are_left_out_and_where_they_are_most_the_run_goes_back():
    run = tickets(3, buffer_size=3, guard_factor=1.5)
    run.take(0)
    run.take(1, **DIVERGED)
    run.take(2)
    assert [r.client for r in run.commits[0].reports] == [0, 2]
    assert run.plans[1].round == 1, "no commit has it, so it is given again"
    for client in (0, 1, 2):
        run.take(client, **DIVERGED)
    assert [type(record.body) for record in run.records[-2:]] == [Void, Rollback]
    assert {plan.position for plan in run.plans.values()} == {run.contents.position}


def test_what_came_after_a_ticket_that_a_commit_left_out_is_dropped_and_begun_anew():
    run = tickets(3, buffer_size=3)
    run.take(0, **DIVERGED)
    run.take(1)
    (record,) = [d.record for d in run.handle(run.report(2)) if isinstance(d, Append)]
    after = run.report(0)
    assert (after.round, run.handle(after)[0]) == (2, Accept(0, duplicate=False))
    run.append(record)
    assert (run.plans[0].round, run.plans[0].position) == (1, 2)
    assert "ticket 2 is not open; the next of client 0 is 1" in refusal(run.send(after))
    for client in (0, 0, 1):
        run.take(client)
    assert [[(r.client, r.ticket) for r in commit.reports] for commit in run.commits] == [
        [(1, 1), (2, 1)],
        [(0, 1), (0, 2), (1, 2)],
    ]
    seeds = [entry.seed for commit in run.commits for entry in commit.entries]
    assert len(seeds) == len(set(seeds)), "no direction is counted twice"


def test_a_ticket_that_was_left_out_before_a_later_one_of_its_client_is_skipped():
    run = tickets(3, buffer_size=3)
    run.take(0, **DIVERGED)
    run.take(0)
    run.take(1)
    assert [(r.client, r.ticket) for r in run.commits[0].reports] == [(0, 2), (1, 1)]
    assert run.take(0)[0] == Accept(0, duplicate=False)
    run.take(1)
    run.take(2)
    assert [(r.client, r.ticket) for r in run.commits[1].reports] == [(0, 3), (1, 2), (2, 1)]


# ── what can be done without rounds ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["shared", "feedsign", "momentum", "fedkseed-pro"])
def test_a_method_that_needs_rounds_is_refused_with_the_reason(name):
    needed = {"momentum": {"momentum_window": 2, "momentum_decay": 0.9}, "fedkseed-pro": {"pool_size": 8}}.get(name, {})
    rules = make_rules(method=name, buffer_size=2, max_staleness=2, **needed)
    with pytest.raises(ConfigError, match=rf"option buffer is 2, but method '{name}' needs rounds: .+; leave it 0"):
        get_method(name).check(rules)
    get_method(name).check(make_rules(method=name, **needed))


def test_seeds_of_a_pool_are_drawn_for_the_ticket():
    run = tickets(2, method="fedkseed", pool_size=4, directions=3, buffer_size=2)
    method = get_method("fedkseed")
    for _ in range(6):
        run.take(0)
    for commit in run.commits:
        (first, second) = commit.reports
        seeds = [set(method.plan(MethodRound(run.genesis, report.ticket), 0)) for report in (first, second)]
        assert [entry.seed in seeds[0] for entry in commit.entries][: len(seeds[0])] == [True] * len(seeds[0])
        assert {entry.seed for entry in commit.entries} == seeds[0] | seeds[1]


def test_a_commit_travels_as_its_reports_and_a_run_of_rounds_has_the_bytes_that_it_had():
    run = tickets(3, buffer_size=1)
    for client in (0, 0, 2):
        run.take(client)
    record = run.records[-1]
    payload = encode_record(record)
    step = encode_step(run.genesis, record, payload, run.head)
    assert list(step.commit.tickets) == [1]
    assert list(step.commit.staleness) == [2]
    assert decode_steps(run.genesis, [step]) == [(payload, run.head)]
    assert decode_record(payload) == record
    assert encode_genesis(make_genesis()) == encode_genesis(make_genesis(buffer_size=0, max_staleness=0))


@pytest.mark.parametrize("column", ["tickets", "staleness"])
def test_a_step_whose_columns_do_not_fit_the_run_is_refused_by_name(column):
    run = tickets(2, buffer_size=1)
    run.take(0)
    record = run.records[-1]
    step = encode_step(run.genesis, record, encode_record(record), run.head)
    step.commit.ClearField(column)
    with pytest.raises(ProtocolError, match="1 clients has [01] tickets and [01] times staleness; expected 1"):
        decode_steps(run.genesis, [step])
    assert decode_steps(make_genesis(), [encode_step(make_genesis(), record, b"", run.head)]) == [(b"", run.head)]


# ── any order of events ─────────────────────────────────────────────────────────────────────────────


class AnyOrder(RuleBasedStateMachine):
    """Reports, late and lost and sent again, records that take their time, clients that go, coordinators that die."""

    clients = st.integers(0, 2)

    @initialize(buffer=st.integers(1, 4), quorum=st.integers(1, 3), staleness=st.integers(1, 3))
    def begin(self, buffer, quorum, staleness):
        self.run = tickets(3, buffer_size=buffer, quorum=quorum, max_staleness=staleness, rounds=30, evaluate_every=5)
        self.bases: dict[tuple[int, int], bytes] = {}
        self.sent = []
        self.undurable = None

    def decided(self, decisions) -> None:
        found = [decision.record for decision in decisions if isinstance(decision, Append)]
        assert len(found) <= 1
        if found:
            assert self.undurable is None
            self.undurable = found[0]

    @precondition(lambda self: self.run.plans)
    @rule(data=st.data(), scalar=st.none() | st.floats(-50, 50, width=32))
    def report(self, data, scalar):
        client = data.draw(st.sampled_from(sorted(self.run.plans)))
        scalars = DIVERGED if scalar is None else {"projected_gradients": (scalar,)}
        self.sent.append(self.run.report(client, **scalars))
        self.deliver(self.sent[-1])

    def deliver(self, report):
        decisions = self.run.handle(report)
        if decisions[0] == Accept(report.client, duplicate=False):
            self.bases[report.client, report.round] = report.record_hash
        self.decided(decisions)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data):
        self.deliver(data.draw(st.sampled_from(self.sent)))

    @precondition(lambda self: self.undurable is not None)
    @rule()
    def becomes_durable(self):
        record, self.undurable = self.undurable, None
        self.decided(self.run.append(record))

    @precondition(lambda self: self.run.plan is not None)
    @rule(client=clients)
    def answer(self, client):
        if client in self.run.plan.cohort:
            self.decided(self.run.handle(self.run.answer(client)))

    @rule(client=clients)
    def leave_and_come_back(self, client):
        self.run.handle(Disconnected(NAMES[client]))
        self.decided(self.run.handle(Connected((NAMES[client],))))

    @rule()
    def deadline(self):
        self.run.now_s += self.run.genesis.rules.deadline_s
        self.decided(self.run.handle(Tick()))

    @rule()
    def crash(self):
        self.run.coordinator, self.undurable = Coordinator(self.run.contents), None
        self.run.plan, self.run.plans = None, {}
        self.decided(self.run.handle(Connected(NAMES[:3])))

    @invariant()
    def the_journal_is_what_it_should_be(self):
        contents = self.run.contents
        assert_journal(contents, left_out=True)
        for position, record in enumerate(contents.records):
            if not isinstance(record.body, Commit):
                continue
            needed = min(contents.genesis.rules.quorum, contents.genesis.rules.buffer_size)
            assert 2 * len({report.client for report in record.body.reports}) > needed
            for report in record.body.reports:
                base = self.bases[report.client, report.ticket]
                assert staleness_at(contents, base, position) == report.staleness

    def teardown(self):
        """Whatever happened, the run comes to its end."""
        steps = 0
        while hasattr(self, "run") and not self.run.finished:
            steps += 1
            assert steps < 1000
            if self.undurable is not None:
                self.becomes_durable()
            elif self.run.plan is not None:
                self.answer(steps % 3)
                self.deadline()
            else:
                self.deliver(self.run.report(steps % 3))


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
