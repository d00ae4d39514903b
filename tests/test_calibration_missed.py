"""A calibration that too few clients answer in time: the first is made again, a later one leaves the rate as it is."""

from asynchrony import tickets
from coordination import kinds, started

from fedzo.coordinator import Accept, Coordinator, Purpose, Report
from fedzo.coordinator.calibration import calibration_directions
from fedzo.journal import Calibration, Void
from fedzo.results.rebuild import check_history


def calibrate(run) -> None:
    """All answer, of a loss so curved that steps are small."""
    count = calibration_directions(run.genesis.rules)
    for client in run.plan.cohort:
        run.send(run.answer(client, projected_gradients=(1.5,) * count + (2000.0 + client,) * count))


def test_in_rounds_a_later_one_that_is_missed_counts_as_made_and_nothing_is_made_of_the_reports_that_came():
    run = started(3, rounds=12, quorum=2, directions=4, calibrated=True, learning_rate=0.0, schedule="constant")
    run.play(until=lambda run: run.plan.purpose is Purpose.CALIBRATE and run.plan.round == 5)
    rate = run.coordinator.history.learning_rate
    run.send(run.answer(1))
    run.past_deadline()
    assert kinds(run)[-2:] == ["Commit5", "Calibration5"]
    missed = run.records[-1].body
    assert (missed.learning_rate, missed.reports) == (rate, ())
    assert (run.plan.purpose, run.plan.round) == (Purpose.TRAIN, 6)
    assert not Coordinator(run.contents).history.calibration_is_due
    run.play()
    check_history(run.contents)
    assert [record.round for record in run.records if isinstance(record.body, Calibration)] == [0, 5, 10]


def test_the_first_spends_rounds_until_enough_answer():
    run = started(3, rounds=12, quorum=2, calibrated=True, learning_rate=0.0)
    run.past_deadline()
    run.send(run.answer(0))
    run.past_deadline()
    assert kinds(run) == ["Enrolment0", "Void1", "Void2"]
    assert run.plan.purpose is Purpose.CALIBRATE
    calibrate(run)
    assert run.plan.purpose is Purpose.TRAIN


def test_without_rounds_a_missed_one_drops_no_report_that_waits_and_spends_no_round():
    run = tickets(3, buffer_size=2, max_staleness=10, quorum=2, directions=3, learning_rate=0.0, calibrated=True)
    calibrate(run)
    while run.plan is None:
        run.take(0)
        run.take(1)
    assert (run.plan.purpose, run.plan.round) == (Purpose.CALIBRATE, 5)
    assert run.take(2) == [Accept(2, duplicate=False)]
    run.past_deadline()
    assert run.records[-1].body == Calibration(run.coordinator.history.learning_rate, ())
    assert run.plan is None
    run.take(1)
    assert [r.client for r in run.commits[-1].reports] == [1, 2]
    assert (run.records[-1].round, len(run.commits)) == (6, 6)


def test_a_report_that_waits_outlasts_a_void_of_the_first():
    run = tickets(2, quorum=2, learning_rate=0.0, calibrated=True)
    early = Report(
        purpose=Purpose.TRAIN,
        round=1,
        client=0,
        record_hash=run.head,
        examples=1,
        loss=2.0,
        projected_gradients=(1.5,),
    )
    assert run.send(early) == [Accept(0, duplicate=False)]
    run.past_deadline()
    assert isinstance(run.records[-1].body, Void)
    assert run.send(early) == [Accept(0, duplicate=True)]


def test_without_rounds_first_ones_that_are_missed_are_no_refusals_of_the_range_guard():
    rules = {"quorum": 2, "buffer_size": 3, "guard_factor": 1.25, "evaluate_every": 50}
    run = tickets(3, learning_rate=0.0, calibrated=True, **rules)
    for client in range(3):
        run.send(run.answer(client))
    for _ in range(4):
        assert run.plan.purpose is Purpose.CALIBRATE
        run.send(run.answer(0))
        run.past_deadline()
    assert kinds(run) == ["Enrolment0", "Evaluation0", "Void1", "Void2", "Void3", "Void4"]
