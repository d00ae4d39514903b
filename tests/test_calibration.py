"""The learning rate that finds itself: the formula where the answer is known, its records, its refusals."""

from dataclasses import replace
from math import inf, nan

import pytest
import test_methods_quadratic as quadratic
import torch
from commands import fedzo as command
from commands import refused, simulate_options
from coordination import Run, kinds, started
from fedzo_client.options import Limits
from test_methods_quadratic import DIRECTIONS, A, Quadratic
from test_methods_runs import NEEDED, simulate

from fedzo.coordinator import Accept, Coordinator, Purpose, Refuse
from fedzo.coordinator.calibration import (
    MOST,
    RANK,
    SHARE,
    calibrated_rate,
    calibration_directions,
    calibration_due,
    measured,
)
from fedzo.errors import ConfigError, ProtocolError
from fedzo.journal import Calibration, ClientReport, Commit, Rollback, Void, read_journal
from fedzo.methods import METHODS, get_method
from fedzo.results.rebuild import check_history

CURVATURES = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])


def calibrations(journal) -> list[Calibration]:
    return [record.body for record in journal.records if isinstance(record.body, Calibration)]


def bowl(model: Quadratic, batch: torch.Tensor) -> torch.Tensor:
    """½ Σ h x²: along any z of ±1 the curvature is Σ h, 31."""
    return (CURVATURES * (model.x.double()[:5] - batch.mean(0)[:5]) ** 2).sum() / 2


# ── the formula ─────────────────────────────────────────────────────────────────────────────────────


def test_the_rate_is_a_share_of_the_largest_that_descends():
    """Along diagonals of a diagonal Hessian every curvature is its trace, none of it is spread; it may double yet."""
    done = quadratic.run("distinct", objective=bowl, lr="auto", directions=1)
    (found,) = calibrations(done.journal)
    assert found.learning_rate == pytest.approx(SHARE * 2 / (62 / 3 + 62 / RANK), rel=1e-3)
    for report in found.reports:
        assert report.projected_gradients[3:] == pytest.approx([31.0] * 3, rel=1e-3)
    assert done.losses[-1][1] < done.losses[0][1]


def test_it_rests_on_the_median_over_clients_and_directions_and_their_spread():
    """zᵀAz for the matrix of the other tests, by hand."""
    done = quadratic.run("shared", lr="auto")
    (found,) = calibrations(done.journal)
    reported = sorted(scalar for report in found.reports for scalar in report.projected_gradients[DIRECTIONS:])
    assert reported[0] < A.trace() < reported[-1]
    middle = sum(reported[5:7]) / 2
    deviations = sorted(abs(scalar - middle) for scalar in reported)
    upper = middle + 1.4826 * sum(deviations[5:7]) / 2
    assert upper > 1.1 * middle
    assert found.learning_rate == pytest.approx(SHARE / (upper / DIRECTIONS + upper / RANK), rel=1e-6)


EIGHT, ONE = (2 * SHARE / (200 / directions + 200 / RANK) for directions in (8, 1))
"""Rates for so many directions averaged, after a first calibration that finds 100."""
USUAL = 1.4826 * 3
"""Standard deviation of normal slopes whose absolute values have the median 3."""


def rate_of(name, rules, reports) -> float:
    """What one calibration gives."""
    return calibrated_rate(get_method(name), rules, measured(rules, reports), len(reports))


def reports_of(curvatures, slope=3.0) -> list[ClientReport]:
    """One direction each."""
    return [ClientReport(k, 1, 0.0, (slope, curvature)) for k, curvature in enumerate(curvatures)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("distinct", EIGHT),
        ("shared", ONE),
        ("fedkseed", EIGHT),
        ("sign", EIGHT * USUAL),
        ("feedsign", ONE * USUAL),
        ("momentum", EIGHT / (1 + 0.5 + 0.25)),
        ("spsa15", EIGHT * 10),
    ],
)
def test_methods_move_as_far_as_a_plain_step(name, expected):
    """Eight clients with one direction each; the curvature is 100."""
    options = {"momentum": {"momentum_window": 3, "momentum_decay": 0.5}, "spsa15": {"curvature_power": 0.5}}
    rules = replace(Run(cohort=8, directions=1).genesis.rules, method=name, **options.get(name, {}))
    rate = rate_of(name, rules, reports_of([100.0] * 8))
    assert rate == pytest.approx(expected)


def test_fzoo_divides_by_the_spread_that_the_slope_makes():
    rules = replace(Run(cohort=4, directions=2).genesis.rules, method="fzoo")
    reports = [ClientReport(k, 1, 0.0, (3.0, 3.0, 100.0, 100.0)) for k in range(4)]
    epsilon = rules.epsilon / 2**40
    assert rate_of("fzoo", rules, reports) == pytest.approx(EIGHT * USUAL * epsilon / 2)


def test_local_steps_are_limited_by_a_clients_own_directions():
    rules = replace(Run(cohort=8, directions=2).genesis.rules, local_steps=4)
    assert get_method("distinct").averaged_directions(rules, 8) == 2


def test_a_minority_of_liars_hardly_moves_it():
    honest = [90.0, 95.0, 100.0, 105.0, 110.0, 100.0, 98.0, 102.0]
    rules = Run(cohort=8, directions=1).genesis.rules
    rate = rate_of("distinct", rules, reports_of(honest))
    for lie in (0.0, 1e30, -1e30):
        lied = rate_of("distinct", rules, reports_of([*honest[:6], lie, lie]))
        assert lied == pytest.approx(rate, rel=0.5)


@pytest.mark.parametrize("name", ["sign", "feedsign", "fzoo"])
def test_nor_does_one_slope_move_the_rate_of_a_method_that_goes_by_it(name):
    rules = replace(Run(cohort=8, directions=2).genesis.rules, method=name)
    honest = [ClientReport(k, 1, 0.0, (3.0, -3.0, 100.0, 100.0)) for k in range(8)]
    rate = rate_of(name, rules, honest)
    for lie in (2.0**20, 0.0):
        lied = [*honest[:7], ClientReport(7, 1, 0.0, (lie, lie, 100.0, 100.0))]
        assert rate_of(name, rules, lied) == pytest.approx(rate)


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_flat_to_its_last_digit_gives_a_finite_rate_above_zero(name):
    needed = {name: value for name, value in NEEDED.get(name, {}).items() if name != "lr"}
    rules = replace(Run(cohort=2, directions=4).genesis.rules, method=name, **needed)
    flat = [ClientReport(0, 1, 4.0, (0.0,) * 8)]
    assert 0 < rate_of(name, rules, flat) <= MOST
    if name == "distinct":
        noise = 4 * 2.0**-24 * 4.0 / (rules.epsilon / 2**40) ** 2
        assert rate_of(name, rules, flat) == pytest.approx(SHARE / (noise / 4 + noise / RANK))


def test_at_least_eight_directions_in_all():
    for cohort, directions, expected in ((1, 1, 8), (3, 1, 3), (8, 1, 1), (100, 1, 1), (2, 16, 16)):
        assert calibration_directions(Run(cohort=cohort, directions=directions).genesis.rules) == expected


def test_it_is_made_first_and_whenever_the_rounds_have_doubled():
    made, last = [], None
    for done in range(100):
        if calibration_due(done, last):
            made.append(last := done)
    assert made == [0, 5, 10, 20, 40, 80]


# ── in a run ────────────────────────────────────────────────────────────────────────────────────────


def test_the_coordinator_asks_first_and_steps_at_the_rate_it_found():
    run = started(2, rounds=12, calibrated=True, learning_rate=0.0, schedule="constant", directions=4)
    assert run.plan.purpose is Purpose.CALIBRATE
    assert run.plan.learning_rate == 0
    run.play()
    assert kinds(run)[:4] == ["Enrolment0", "Calibration0", "Commit1", "Commit2"]
    assert kinds(run)[6:9] == ["Commit5", "Calibration5", "Commit6"]
    rate = calibrations(run.contents)[0].learning_rate
    assert rate == pytest.approx(SHARE / ((upper := 20.5 + 1.4826 * 0.5) / 8 + upper / RANK))
    assert run.records[2].body.learning_rate == rate
    again = Coordinator(run.contents).history
    assert again.learning_rate == run.coordinator.history.learning_rate == calibrations(run.contents)[-1].learning_rate
    assert not again.calibration_is_due


def test_the_largest_curvature_counts_and_less_is_expected_to_come_each_time():
    curvatures = {0: 40.0, 5: 20.0, 10: 80.0, 20: 60.0}
    run = started(2, rounds=30, calibrated=True, learning_rate=0.0, directions=4)
    run.play(
        lambda run, client: (
            {"projected_gradients": (1.0,) * 4 + (curvatures[run.plan.round],) * 4}
            if run.plan.purpose is Purpose.CALIBRATE
            else {}
        )
    )
    found = [body.learning_rate for body in calibrations(run.contents)]
    step = 2 * SHARE / (1 / 8 + 1 / RANK)
    expected = [40 * 2, 40 * (1 + 1 / 2), 80 * (1 + 1 / 3), 80 * (1 + 1 / 4)]
    assert found == pytest.approx([step / curvature for curvature in expected])


def test_a_method_of_constant_step_length_goes_by_the_median_of_the_first_three_slopes():
    run = started(2, rounds=42, calibrated=True, learning_rate=0.0, directions=4, method="sign")
    slopes = {0: 8.0, 5: 2.0, 10: 4.0, 20: 1.0, 40: 1.0}
    run.play(
        lambda run, client: (
            {"projected_gradients": (slopes[run.plan.round],) * 4 + (20.0,) * 4}
            if run.plan.purpose is Purpose.CALIBRATE
            else {"projected_gradients": (1.0,) * 4}
        )
    )
    found = [body.learning_rate for body in calibrations(run.contents)]
    step = 1.4826 * 2 * SHARE / (20 / 8 + 20 / RANK)
    usual = [8 / 2, 5 / (1 + 1 / 2), 4 / (1 + 1 / 3), 4 / (1 + 1 / 4), 4 / (1 + 1 / 5)]
    assert found == pytest.approx([step * slope for slope in usual])


def test_without_it_nothing_is_asked():
    run = started(2, rounds=12, calibrated=False)
    run.play()
    assert not calibrations(run.contents)


@pytest.mark.parametrize("scalars", [(1.0,) * 7, (1.0,) * 9, (1.0,) * 7 + (nan,), (1.0,) * 7 + (inf,), ()])
def test_a_wrong_report_is_refused_and_changes_nothing(scalars):
    run = started(2, calibrated=True, directions=4)
    before = len(run.records)
    (refusal,) = run.send(run.answer(0, projected_gradients=scalars))
    assert isinstance(refusal, Refuse)
    assert "the plan asks for 8, all finite" in refusal.reason
    (refusal,) = run.send(run.answer(0, examples=10**6))
    assert isinstance(refusal, Refuse)
    assert len(run.records) == before
    assert run.send(run.answer(0)) == [Accept(0, duplicate=False)]


def test_a_slope_beyond_what_a_scalar_may_be_is_refused():
    run = started(2, calibrated=True, directions=4)
    (refusal,) = run.send(run.answer(0, projected_gradients=(1.0, 3e38, 1.0, 1.0) + (1.0,) * 4))
    assert isinstance(refusal, Refuse)
    assert "projected gradient 1 is 3e+38; it must lie within" in refusal.reason


def test_a_client_takes_a_plan_that_is_older_than_the_last_calibration():
    curvatures = {0: 20.0, 5: 20.0 * 4 * 2 / 1.5}
    run = started(2, rounds=8, calibrated=True, learning_rate=0.0, directions=4, schedule="constant")
    plans = []

    def answer(run, client):
        plans.append(run.plan)
        if run.plan.purpose is not Purpose.CALIBRATE:
            return {}
        return {"projected_gradients": (1.0,) * 4 + (curvatures[run.plan.round],) * 4}

    run.play(answer)
    history = run.coordinator.history
    assert history.learning_rate == pytest.approx(history.highest_rate / 4)
    for plan in plans:
        Limits.check_plan(plan, history)
    with pytest.raises(ProtocolError, match="the run allows 0 to"):
        Limits.check_plan(replace(plans[2], learning_rate=history.highest_rate * 1.01), history)


def test_a_report_sent_twice_counts_once_and_a_restart_knows_it():
    run = started(2, calibrated=True)
    report = run.answer(0)
    run.send(report)
    assert run.send(report) == [Accept(0, duplicate=True)]
    run.send(run.answer(1))
    assert len(calibrations(run.contents)) == 1
    assert run.send(report) == [Accept(0, duplicate=True)]
    assert Run(contents=run.contents).send(report) == [Accept(0, duplicate=True)]


def test_where_no_loss_is_finite_the_rounds_are_spent_and_the_run_ends():
    run = started(2, calibrated=True, rounds=4, guard_factor=0.0)
    run.play(lambda run, client: {"diverged": True, "projected_gradients": ()})
    assert [record.round for record in run.records if isinstance(record.body, Void)] == [1, 2, 3, 4]
    assert not any(isinstance(record.body, Commit) for record in run.records)
    assert kinds(run)[-1] == "End4"


def test_after_a_roll_back_the_rate_is_found_anew_and_stays_halved():
    run = started(8, calibrated=True, rounds=30, guard_factor=1.5, directions=4, schedule="constant")
    run.play(lambda run, client: {"loss": 9.0 if run.plan.round in (4, 5) else 2.0})
    back = next(k for k, record in enumerate(run.records) if isinstance(record.body, Rollback))
    assert isinstance(run.records[back + 1].body, Calibration)
    commit = run.records[back + 2].body
    assert commit.learning_rate == run.records[back + 1].body.learning_rate / 2
    first, second = calibrations(run.contents)[:2]
    assert second is run.records[back + 1].body
    assert second.learning_rate == pytest.approx(first.learning_rate * 2 / 1.5), "how many there were stays known"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_rate_and_is_resumed_to_its_journal(method, tiny_model, tmp_path):
    def stop(position, record, progress):
        if isinstance(record.body, Calibration):
            raise KeyboardInterrupt

    given = {"lr": "auto", "rounds": 7} | {k: v for k, v in NEEDED.get(method, {}).items() if k != "lr"}
    alone = simulate(tiny_model, method, **given)
    assert len(calibrations(alone.journal)) == 2
    check_history(alone.journal)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            simulate(tiny_model, method, **given, out=tmp_path / "run", callbacks=[stop], resume=resume)
    assert (
        simulate(tiny_model, method, **given, out=tmp_path / "run", resume=True).journal.hashes == alone.journal.hashes
    )


def test_it_descends_where_a_hundred_times_its_rate_does_not():
    options = {"rounds": 40, "objective": bowl, "method": "distinct", "directions": 1}
    auto = quadratic.run(lr="auto", **options)
    spread = torch.tensor(quadratic.DATA[:, :5]).var(0, correction=0)
    least = float((CURVATURES * spread).sum() / 2)
    first, last = (loss - least for _, loss in (auto.losses[0], auto.losses[-1]))
    assert last < 0.2 * first
    wild = quadratic.run(lr=100 * calibrations(auto.journal)[0].learning_rate, **options)
    assert not wild.losses, "the range guard refuses every step"


# ── as an option ────────────────────────────────────────────────────────────────────────────────────


def test_only_auto_is_a_word_for_a_rate(demo, tmp_path):
    assert "option lr is 'quick'; expected 'auto', or a number" in refused(
        "simulate", *simulate_options(demo, tmp_path / "run", lr="quick")
    )
    with pytest.raises(ConfigError, match="option 'lr' is None; expected float or str"):
        quadratic.run("distinct", lr=None)


def test_an_objective_that_rises_in_steps_needs_a_rate(demo, tmp_path):
    options = simulate_options(demo, tmp_path / "run", task="trec", objective="accuracy", guard=0, lr="auto")
    assert "option lr is 'auto'" in refused("simulate", *options)


@pytest.mark.slow
def test_processes_on_the_network_find_the_same_rates(demo, tmp_path):
    inline, network = tmp_path / "inline", tmp_path / "network"
    given = {"clients": 2, "rounds": 6, "lr": "auto"}
    assert "calibrated, learning rate" in command("simulate", *simulate_options(demo, inline, **given)).stderr
    command("simulate", *simulate_options(demo, network, engine="processes", **given))
    assert (network / "journal").read_bytes() == (inline / "journal").read_bytes()
    assert len(calibrations(read_journal(network / "journal"))) == 2
    shown = command("journal", "show", network).stdout
    assert "calibration" in shown
