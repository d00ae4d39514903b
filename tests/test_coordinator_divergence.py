"""The coordinator: divergence, the range guard, and roll-backs."""

from collections import Counter
from math import nan

import numpy as np
import pytest
from coordination import (
    NAMES,
    ReplicaRun,
    Run,
    assert_rolled_back,
    kinds,
    replica_run,
)
from helpers import make_rules
from hypothesis import given
from hypothesis import strategies as st

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.coordinator import (
    Connected,
    Coordinator,
    Purpose,
    rollback_entries,
)
from fedzo.coordinator.divergence import Doubt, LossWatch, Setbacks, training_window
from fedzo.coordinator.range_guard import RangeGuard
from fedzo.journal import (
    ClientEvaluation,
    ClientReport,
    Commit,
    Entry,
    Evaluation,
    Record,
    Rollback,
    Void,
)
from fedzo.noise import Distribution
from fedzo.noise.directions import symbols
from fedzo.noise.draws import derived_seeds

# ── divergence ──────────────────────────────────────────────────────────────────────────────────────


def test_training_losses_that_blow_up_are_rolled_back_exactly_and_the_rate_halves():
    run = replica_run(8, guard_factor=1.25)
    losses = {1: 2.0, 2: 1.9, 3: 1.8, 4: 9.0, 5: 9.0}
    run.play(lambda run, client: {"loss": losses[run.plan.round]}, until=lambda run: len(run.records) == 5)
    assert kinds(run)[-1] == "Commit4", "one loss alone is no divergence: the median of three is compared"
    run.play(lambda run, client: {"loss": losses[run.plan.round]}, until=lambda run: run.plan.round == 6)
    assert kinds(run)[-2:] == ["Commit5", "Rollback5"]
    body = assert_rolled_back(run, 3)
    assert len(set(run.digests[1:6])) == 5, "the rounds moved the state"
    assert body.learning_rate_scale == 0.5
    assert "training loss 9" in body.reason
    assert (run.plan.round, run.plan.learning_rate, run.plan.position) == (6, 0.005, 7)
    run.play(lambda run, client: {"loss": 1.8}, until=lambda run: run.plan.round == 9)
    assert kinds(run)[-3:] == ["Commit6", "Commit7", "Commit8"]
    assert run.records[-1].body.learning_rate == 0.005


def test_the_training_loss_is_weighted_by_examples():
    run = replica_run(guard_factor=1.25)
    weighted = {0: {"loss": 1.0, "examples": 7}, 1: {"loss": 25.0, "examples": 1}}
    run.play(lambda run, client: {"loss": 4.0}, until=lambda run: run.plan.round == 4)
    run.play(lambda run, client: weighted[client], until=lambda run: run.plan.round == 9)
    assert "Rollback" not in " ".join(kinds(run)), "their mean is 4"


def test_held_out_losses_that_blow_up_are_rolled_back_to_the_best_evaluation():
    run = replica_run(guard_factor=1.5, evaluate_every=2)
    losses = {0: 2.0, 2: 1.0, 4: 1.4, 6: 1.6}

    def answers(run, client):
        return {"loss": losses[run.plan.round]} if run.plan.purpose is Purpose.EVALUATE else {"loss": 1.0}

    run.play(answers, until=lambda run: run.plan.round == 7)
    best = kinds(run).index("Evaluation2")
    assert kinds(run)[-2:] == ["Evaluation6", "Rollback6"]
    assert "held-out loss 1.6 is above 1.5" in assert_rolled_back(run, best).reason
    assert run.plan.learning_rate == 0.005


def test_a_round_of_losses_that_are_not_numbers_is_rolled_back_and_lowers_the_rate_by_more_each_time():
    run = replica_run(guard_factor=1.25)
    run.play(until=lambda run: run.plan.round == 3)
    for lowered in (2, 8, 64, 128):
        for client in (0, 1):
            run.send(run.answer(client, diverged=True, loss=nan, examples=0, projected_gradients=()))
        void = run.records[-2]
        assert (void.entries, void.body.diverged, void.body.reported) == ((), True, (0, 1))
        assert "not finite" in void.body.reason
        assert_rolled_back(run, 0)
        assert run.totals() == {}
        assert run.plan.learning_rate == 0.01 / lowered
    assert [kind for kind in kinds(run) if "Rollback" in kind] == [f"Rollback{number}" for number in (3, 4, 5, 6)]


def test_training_losses_that_blow_up_from_the_first_step_on_are_found_by_an_evaluation_before_its_time():
    """One client a round: a window of 24 commits, not one of them with a good loss."""
    run = replica_run(3, cohort=1, guard_factor=1.25, evaluate_every=100, rounds=100)

    def answers(run, client):
        if run.plan.purpose is Purpose.EVALUATE:
            return {"loss": 2.0 if run.plan.round == 0 else 19.0}
        return {"loss": 9.0 if run.plan.learning_rate > 0.01 / 50 else 2.0}

    run.play(answers, until=lambda run: run.plan.round == 20)
    rolled_back = [f"{kind}{number}" for number in (5, 10, 15) for kind in ("Evaluation", "Rollback")]
    assert [kind for kind in kinds(run) if "Commit" not in kind] == ["Enrolment0", "Evaluation0", *rolled_back]
    assert run.plan.learning_rate == 0.01 / 64


def test_a_doubt_that_an_evaluation_does_not_share_is_not_raised_again():
    """The training data is harder than what is held out."""
    run = replica_run(guard_factor=1.25, evaluate_every=20, rounds=40)
    run.play(lambda run, client: {"loss": 2.0 if run.plan.purpose is Purpose.EVALUATE else 2.6})
    assert [kind for kind in kinds(run) if "Evaluation" in kind] == [f"Evaluation{number}" for number in (0, 5, 20, 40)]


def rounds_but_commits(run: Run) -> list[str]:
    return [kind for kind in kinds(run) if "Commit" not in kind]


def test_one_client_that_makes_up_losses_can_raise_a_doubt_that_nobody_shares():
    """One of four, alone in every round."""
    run = replica_run(4, cohort=1, guard_factor=1.25, evaluate_every=100, rounds=60)

    def answers(run, client):
        if run.plan.purpose is Purpose.EVALUATE:
            return {"loss": 1e6 if client == 0 and run.plan.round else 2.0}
        return {"loss": 1e6}

    run.play(answers, until=lambda run: run.plan.round == 24)
    assert rounds_but_commits(run) == ["Enrolment0", "Evaluation0", "Evaluation5"]


def test_a_doubt_is_shared_though_another_client_has_come():
    run = replica_run(2, guard_factor=1.25, evaluate_every=100, rounds=100)
    run.play(until=lambda run: run.plan.round == 1)
    run.send(Connected(("new",)))
    run.play(lambda run, client: {"loss": 19.0}, until=lambda run: "Rollback5" in kinds(run))
    assert rounds_but_commits(run) == ["Enrolment0", "Evaluation0", "Enrolment1", "Evaluation5", "Rollback5"]
    assert len(run.records[-2].body.clients) == 3
    assert "most clients' held-out losses are above 1.25 × their best" in assert_rolled_back(run, 1).reason


@pytest.mark.parametrize("every", [2, 4, 5, 6])
def test_a_newcomer_does_not_hide_a_divergence_at_an_evaluation_in_its_time(every):
    """With it a new series begins, whose first loss has nothing before it."""
    run = replica_run(2, guard_factor=1.25, evaluate_every=every, rounds=40)
    run.play(until=lambda run: run.plan.round == 1)
    run.send(Connected(("new",)))
    run.play(lambda run, client: {"loss": 19.0}, until=lambda run: run.plan.round == 16)
    number = min(every, 5)
    assert rounds_but_commits(run)[:5] == [
        *("Enrolment0", "Evaluation0", "Enrolment1"),
        *(f"Evaluation{number}", f"Rollback{number}"),
    ]
    assert len([kind for kind in kinds(run) if "Rollback" in kind]) >= 3, "and again"


def evaluated(*losses: float) -> Evaluation:
    return Evaluation(tuple(ClientEvaluation(client, 100, loss) for client, loss in enumerate(losses)))


def test_most_clients_share_a_doubt_or_it_is_none():
    doubt = Doubt(1.5, early=True)
    doubt.passed(evaluated(2.0, 2.0, 4.0, 4.0), 1)
    assert not doubt.is_shared(evaluated(3.0, 3.1, 6.0, 6.1)), "half of them"
    assert doubt.is_shared(evaluated(3.1, 3.1, 6.0, 6.1))
    assert doubt.is_shared(evaluated(nan, nan, nan, 4.0))
    assert not doubt.is_shared(Evaluation(()))
    assert doubt.is_shared(evaluated(*([9.0] * 8)))
    assert not doubt.is_shared(evaluated(*([9.0] * 9))), "too few are known"
    doubt.passed(evaluated(1.0, 1.0, 1.0, 1.0), 5)
    assert doubt.is_shared(evaluated(2.0, 2.0, 2.0, 2.0))
    doubt.went_back(5)
    assert doubt.is_shared(evaluated(2.0, 2.0, 2.0, 2.0))
    doubt.went_back(4)
    assert not doubt.is_shared(evaluated(2.0, 2.0, 4.0, 4.0)), "the best was undone too"


def test_losses_that_are_not_numbers_are_a_divergence_in_doubt_too():
    run = replica_run(2, guard_factor=1.25, evaluate_every=100, rounds=20)
    run.play(lambda run, client: {"loss": 2.0 if run.plan.purpose is Purpose.EVALUATE else 2.6}, until=doubted)
    run.send(run.answer(0))
    run.send(run.answer(1, diverged=True, loss=nan))
    assert kinds(run)[-2:] == ["Evaluation5", "Rollback5"]


def doubted(run: Run) -> bool:
    return run.plan.purpose is Purpose.EVALUATE and run.plan.round > 0


def test_a_doubt_of_which_no_client_can_say_anything_is_not_raised_again():
    run = replica_run(2, quorum=1, guard_factor=1.25, evaluate_every=100, rounds=20)

    def answers(run, client):
        evaluating = run.plan.purpose is Purpose.EVALUATE
        return {"loss": 2.0 if run.plan.round == 0 else 2.6} | (
            {"examples": 0} if evaluating and run.plan.round else {}
        )

    run.play(answers)
    assert rounds_but_commits(run) == ["Enrolment0", "Evaluation0", "Evaluation5", "Evaluation20", "End20"]


def test_roll_backs_soon_after_each_other_are_a_row():
    setbacks = Setbacks(window=3, soon=20)
    assert setbacks.scale(1, 10) == 0.5
    setbacks.add(1, 10)
    assert [setbacks.scale(target, 20) for target in (1, 12, 13)] == [0.25, 0.25, 0.5]
    assert [setbacks.scale(1, position) for position in (30, 31)] == [0.25, 0.5]
    setbacks.add(1, 20)
    assert setbacks.scale(1, 30) == 0.125
    setbacks.add(1, 30)
    assert setbacks.scale(1, 40) == 0.5, "a row has three"
    setbacks.add(33, 40)
    assert setbacks.scale(1, 41) == 0.25, "a row began anew"


def test_a_roll_back_that_was_asked_for_begins_no_row():
    run = replica_run(guard_factor=1.25)
    run.play(until=lambda run: run.plan.round == 3)
    for target, scale in ((0, 0.5), (0, 1.0)):
        run.append_by_hand(Record(2, Rollback(target, rollback_entries(run.records[target:]), scale, "by hand")))
    history = Coordinator(run.contents).history
    assert (history.rate_scale, history.setbacks.scale(0, history.position + 1)) == (0.5, 0.5)


def test_one_client_that_diverges_does_not_stop_a_round_with_a_quorum():
    run = replica_run(3, quorum=2, guard_factor=1.25)
    for client in range(3):
        changes = {"diverged": True, "loss": nan, "projected_gradients": ()} if client == 0 else {}
        run.send(run.answer(client, **changes))
    assert kinds(run) == ["Enrolment0", "Commit1"]
    assert [report.client for report in run.records[-1].body.reports] == [1, 2]
    assert run.plan.learning_rate == 0.01


def test_a_held_out_loss_that_is_not_a_number_is_a_divergence():
    run = replica_run(guard_factor=1.25, evaluate_every=1)
    run.play(until=lambda run: run.plan.round == 1 and run.plan.purpose is Purpose.EVALUATE)
    run.send(run.answer(0))
    run.send(run.answer(1, diverged=True, loss=nan))
    assert kinds(run)[-2:] == ["Evaluation1", "Rollback1"]
    assert_rolled_back(run, 1)


def test_a_newcomer_whose_held_out_loss_is_not_a_number_does_not_undo_the_whole_run():
    """One such client of three is left out."""
    run = replica_run(2, guard_factor=1.25, evaluate_every=2)
    run.play(until=lambda run: run.plan.round == 4 and run.plan.purpose is Purpose.TRAIN)
    run.send(Connected(("new",)))
    run.play(until=lambda run: run.plan.purpose is Purpose.EVALUATE)
    assert run.plan.cohort == (0, 1, 2)
    for client in run.plan.cohort:
        run.send(run.answer(client, **({"diverged": True, "loss": nan} if client == 2 else {})))
    assert isinstance(run.records[-1].body, Evaluation)


def test_folding_many_roll_backs_takes_a_reasonable_number_of_steps(monkeypatch):
    """A run that is rolled back again and again restarts in time: each record is folded a few times, not 2^n."""
    steps = []
    apply = RangeGuard.apply
    monkeypatch.setattr(RangeGuard, "apply", lambda guard, record: (steps.append(record), apply(guard, record)))
    run = Run(quorum=9)
    for number in range(1, 13):
        entries = (Entry(number, 5),)
        run.append_by_hand(Record(number, Commit(entries, 1.0, (ClientReport(0, 1, 1.0, (1.0,)),))))
        back = rollback_entries(run.records[-1:])
        run.append_by_hand(Record(number, Rollback(len(run.records) - 1, back, 1.0, "asked for")))
    Coordinator(run.contents)
    assert run.totals() == {}
    assert len(steps) <= len(run.records) ** 2


def test_a_guard_factor_of_zero_never_rolls_back():
    run = replica_run(guard_factor=0.0, evaluate_every=2, rounds=8)

    def answers(run, client):
        if run.plan.purpose is Purpose.TRAIN and run.plan.round == 6:
            return {"diverged": True, "loss": nan, "projected_gradients": ()}
        return {"loss": 10.0**run.plan.round}

    run.play(answers)
    assert [kind for kind in kinds(run) if kind[:-1] not in {"Commit", "Evaluation"}] == ["Enrolment0", "Void6", "End8"]


# ── the range guard ─────────────────────────────────────────────────────────────────────────────────


ONE = Manifest((TensorSpec("w", (1,), 29, 0),))


def one_element_run(**rules) -> ReplicaRun:
    """One client, one weight that starts at 0 and may go to ±2; the rate is 1, so a scalar is a step."""
    run = ReplicaRun(ONE, 0, **({"rounds": 20, "cohort": 1, "learning_rate": 1.0} | rules))
    run.send(Connected(NAMES[:1]))
    return run


def step(run: ReplicaRun, by: float, **changes) -> Record:
    """A round in which the client's scalar asks the weight to move by so much."""
    (seed,) = derived_seeds(run.genesis.run_seed, run.plan.round, 0, 1)
    z = 1 - 2 * int(symbols(Distribution.RADEMACHER, seed, 0, 0, 1)[0])
    position = len(run.records)
    run.send(run.answer(0, projected_gradients=(-by * z,), **changes))
    return run.records[position]


def test_a_step_that_could_leave_the_range_is_void_and_changes_nothing():
    run = one_element_run()
    assert isinstance(step(run, 0.75).body, Commit)
    assert run.replica.weights(0).item() == 0.75
    refused = step(run, 1.375)
    assert isinstance(refused.body, Void)
    assert "'w'" in refused.body.reason
    assert "2^30" in refused.body.reason
    assert (refused.entries, refused.body.reported, refused.body.diverged) == ((), (0,), False)
    assert run.replica.weights(0).item() == 0.75
    assert run.plan.round == 3
    assert isinstance(step(run, 1.25).body, Commit)
    assert run.replica.weights(0).item() == 2.0
    assert isinstance(step(run, 2.0**-29).body, Void)


def test_measured_maxima_restart_the_guard():
    """The guard's sum grows with every step though the weight goes to and fro; maxima say how it really is."""
    run = one_element_run()
    assert not run.plan.attest
    step(run, 0.875)
    step(run, -0.875)
    assert run.plan.attest, "more than half of the room is used"
    third = step(run, 0.875)
    assert isinstance(third.body, Commit), "0 and 0.875: far from 2, though the steps add up to 2.6"
    assert third.maxima == (0,)
    assert not run.plan.attest
    step(run, -0.875)
    assert run.plan.attest
    fifth = step(run, 3.0)
    assert isinstance(fifth.body, Void)
    assert fifth.maxima == (0,)
    assert not run.plan.attest, "a void record's maxima count as well"
    assert isinstance(step(run, -2.0).body, Commit)
    assert run.replica.weights(0).item() == -2.0
    assert Coordinator(run.contents).history.range_guard.share_used == run.coordinator.history.range_guard.share_used


@pytest.mark.parametrize("held_out", [2.0, 9.0])
def test_three_rounds_in_a_row_that_the_range_guard_refuses_raise_a_doubt(held_out):
    run = one_element_run(guard_factor=1.25, evaluate_every=100)
    run.send(run.answer(0, loss=2.0))
    for by in (1.875, 1.0, 1.0, -0.125, 1.0, 1.0, 1.0):
        step(run, by)
    assert kinds(run)[2:] == ["Commit1", "Void2", "Void3", "Commit4", "Void5", "Void6", "Void7"], "two are none"
    assert run.plan.purpose is Purpose.EVALUATE
    run.send(run.answer(0, loss=held_out))
    if held_out > 2.0:
        assert_rolled_back(run, 1)
        assert run.plan.learning_rate == 0.5
        step(run, 1.0)
        assert run.plan.purpose is Purpose.TRAIN, "what was undone is not counted"
        return
    for _ in range(3):
        step(run, 1.0)
    assert kinds(run)[-4:] == ["Evaluation7", "Void8", "Void9", "Void10"]
    assert run.plan.purpose is Purpose.EVALUATE, "after twice as many"
    assert "Rollback" not in " ".join(kinds(run))


def test_rounds_without_a_quorum_are_no_divergence():
    run = replica_run(quorum=2, guard_factor=1.25)
    for _ in range(4):
        run.send(run.answer(0))
        run.past_deadline()
    assert kinds(run) == ["Enrolment0", "Void1", "Void2", "Void3", "Void4"]


def test_a_roll_back_is_never_out_of_range():
    """The state that it returns to was in range, whatever maxima were measured since."""
    run = one_element_run(guard_factor=100.0)
    step(run, 0.875, loss=1.0)
    step(run, 0.875, loss=2.0)
    assert run.plan.attest
    assert step(run, -0.125, loss=3.0).maxima == (round(1.75 * 2**29),)
    run.send(run.answer(0, diverged=True))
    assert kinds(run)[-2:] == ["Void4", "Rollback4"]
    assert_rolled_back(run, 0)
    assert run.replica.weights(0).item() == 0.0
    Coordinator(run.contents)


# ── roll-back by hand ───────────────────────────────────────────────────────────────────────────────


entries_of = st.lists(st.builds(Entry, st.integers(0, 4), st.integers(-(2**41), 2**41)), max_size=4).map(tuple)


@given(st.lists(entries_of, max_size=8), st.data())
def test_rollback_entries_undo_exactly_what_came_after(steps, data):
    records = [Record(number, Commit(entries, 1.0, ())) for number, entries in enumerate(steps)]
    position = data.draw(st.integers(0, len(records)))
    back = rollback_entries(records[position:])
    totals: Counter[int] = Counter()
    for entries in (*steps[position:], back):
        for seed, coefficient in entries:
            totals[seed] += coefficient
    assert not any(totals.values())
    assert all(coefficient for _, coefficient in back)
    assert len({seed for seed, _ in back}) == len(back)


def test_a_run_that_was_rolled_back_by_hand_goes_on_from_there():
    run = replica_run(rounds=6, guard_factor=1.25)
    run.play(until=lambda run: run.plan.round == 5)
    record = Record(4, Rollback(2, rollback_entries(run.records[2:]), 1.0, "asked for"))
    run.append_by_hand(record)
    run.replica.apply(record, run.head)
    run.digests.append(run.replica.digest())
    assert_rolled_back(run, 2)
    run.coordinator, run.plan = Coordinator(run.contents), None
    run.send(Connected(NAMES[:2]))
    assert (run.plan.round, run.plan.learning_rate, run.plan.record_hash) == (5, 0.01, run.head)
    run.play()
    assert kinds(run)[-4:] == ["Rollback4", "Commit5", "Commit6", "End6"]
    assert run.records[-1].state_digest == run.digests[-1]


@pytest.mark.parametrize(("usual", "spread", "blown_up"), [(0.69, 0.1, 1.2), (1.1, 0.35, 3.0)])
@pytest.mark.parametrize(("clients", "window"), [(1, 24), (2, 12), (4, 6), (8, 3), (1000, 3)])
def test_noise_of_single_batches_is_no_divergence_and_a_blow_up_is(clients, window, usual, spread, blown_up):
    """Losses of a batch spread as those of sixteen labels do, of two and of six classes; a commit has their mean."""
    assert training_window(make_rules(cohort=clients)) == window
    for seed in range(20):
        draw, watch = np.random.default_rng(seed), LossWatch("training", window, 1.25)
        losses = usual + spread * draw.standard_normal((300, min(clients, 100))).mean(axis=1)
        assert [watch.observe(loss, position) for position, loss in enumerate(losses)] == [None] * 300
        assert [watch.observe(blown_up, position) for position in range(300, 300 + window)][-1] is not None


@pytest.mark.parametrize(("window", "seen_below"), [(3, 3.0), (6, 3.2), (24, 4.2)])
def test_a_loss_that_fell_is_not_taken_for_noise(window, seen_below):
    """It falls from 4 to 2 in 24 commits, then climbs as it fell; the longer the window, the later that is seen."""
    draw, watch = np.random.default_rng(0), LossWatch("training", window, 1.25)
    falling = np.linspace(4, 2, 24) + 0.02 * draw.standard_normal(24)
    assert [watch.observe(loss, position) for position, loss in enumerate(falling)] == [None] * 24
    climbing = enumerate(np.linspace(2, 6, 49), start=24)
    found = next(loss for position, loss in climbing if watch.observe(loss, position) is not None)
    assert found < seen_below


def test_an_asynchronous_commit_has_as_many_reports_as_its_buffer():
    assert training_window(make_rules(cohort=8, buffer_size=2, max_staleness=16)) == 12


def test_a_roll_back_that_was_asked_for_is_not_undone_by_the_guard():
    """The best loss was left behind with the state that had it."""
    watch = LossWatch("training", 3, 1.25)
    for position, loss in enumerate([4.4, 4.3, 4.0, 3.6, 3.5, 3.4, 3.4]):
        assert watch.observe(loss, position) is None
    watch.restart(1)
    assert [watch.observe(4.35, position) for position in range(8, 14)] == [None] * 6
    assert [watch.observe(6.0, position) for position in range(14, 17)][-1].position >= 8
