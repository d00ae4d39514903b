"""The learning rate that finds itself: the formula where the answer is known, its records, its refusals."""

from dataclasses import replace
from math import inf, nan, sqrt
from statistics import fmean, variance

import numpy as np
import pytest
import test_methods_quadratic as quadratic
import torch
from commands import fedzo as command
from commands import refused, simulate_options
from coordination import Run, kinds, started
from fedzo_client.options import Limits
from test_methods_quadratic import DIRECTIONS, A, Quadratic
from test_methods_runs import NEEDED, simulate

from fedzo.base.manifest import Manifest
from fedzo.coordinator import Accept, Coordinator, Purpose, Refuse
from fedzo.coordinator.calibration import (
    MOST,
    calibrated_rate,
    calibration_directions,
    calibration_due,
    measured,
    share,
)
from fedzo.errors import ConfigError, ProtocolError
from fedzo.journal import Calibration, ClientReport, Commit, Genesis, Rollback, Void, read_journal
from fedzo.methods import METHODS, get_method
from fedzo.results.rebuild import check_history

CURVATURES = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])


def calibrations(journal) -> list[Calibration]:
    return [record.body for record in journal.records if isinstance(record.body, Calibration)]


def bowl(model: Quadratic, batch: torch.Tensor) -> torch.Tensor:
    """½ Σ h x²: along any z of ±1 the curvature is Σ h, 31."""
    return (CURVATURES * (model.x.double()[:5] - batch.mean(0)[:5]) ** 2).sum() / 2


# ── the formula ─────────────────────────────────────────────────────────────────────────────────────


def rounding(rules, loss: float) -> float:
    """What the last digit of a float32 loss makes of a second difference."""
    return 4 * 2.0**-24 * loss / (rules.epsilon / 2**40) ** 2


def limit(trace: float, norm: float, directions: int) -> float:
    """Rate below which a step along so many gaussian directions descends."""
    return 2 / (trace / directions + norm * (1 + 1 / directions))


@pytest.mark.parametrize("directions", [1, 4])
def test_at_the_limit_a_step_descends_no_more_in_expectation(directions):
    """Where the gradient lies along the largest eigenvalue of A; that one stands where the formula has the norm."""
    draws = np.random.default_rng(0).standard_normal((400_000, directions, len(A)))
    eigenvalues, vectors = np.linalg.eigh(A)
    gradient = vectors[:, -1]
    step = -limit(A.trace(), eigenvalues[-1], directions) * (draws * (draws @ gradient)[..., None]).mean(1)
    descent, rise = (step @ gradient).mean(), (step @ A * step).sum(1).mean() / 2
    assert rise == pytest.approx(-descent, rel=0.03)
    assert eigenvalues[-1] < np.linalg.norm(A)


def test_trace_and_norm_are_those_of_the_hessian():
    draws = np.random.default_rng(0).standard_normal((5000, len(A)))
    rules = Run(cohort=5000, directions=1).genesis.rules
    found = measured(rules, reports_of((draws @ A * draws).sum(1)))
    assert found.trace == pytest.approx(A.trace(), rel=0.1)
    assert (norm := found.norm(6)) == pytest.approx(np.linalg.norm(A), rel=0.2), "the tail of what is so skewed is cut"
    assert found.limit(4, 6) == pytest.approx(limit(2 * found.trace, norm, 4)), "the trace may double yet"


def test_the_longer_the_run_the_smaller_the_share():
    assert [share(rounds) for rounds in (1, 16, 256, 4096)] == [0.5, 0.5, 0.25, 0.125]


def test_the_rate_is_a_share_of_the_largest_that_descends():
    """Along diagonals of a diagonal Hessian every curvature is its trace; the norm is tr/√d at least."""
    done = quadratic.run("distinct", objective=bowl, lr="auto", directions=1)
    (found,) = calibrations(done.journal)
    rules = done.journal.genesis.rules
    assert found.learning_rate == pytest.approx(share(rules.rounds) * limit(62, 31 / sqrt(6), 3), rel=1e-3)
    assert 31 / sqrt(6) < np.linalg.norm(CURVATURES)
    for report in found.reports:
        assert report.projected_gradients[3:] == pytest.approx([31.0] * 3, rel=1e-3)
    assert done.losses[-1][1] < done.losses[0][1]


def test_it_rests_on_mean_and_spread_over_clients_and_directions():
    """zᵀAz for the matrix of the other tests, by hand."""
    done = quadratic.run("shared", lr="auto")
    (found,) = calibrations(done.journal)
    reported = [scalar for report in found.reports for scalar in report.projected_gradients[DIRECTIONS:]]
    assert min(reported) < A.trace() < max(reported)
    norm = max(sqrt(variance(reported) / 2), fmean(reported) / sqrt(6))
    part = share(done.journal.genesis.rules.rounds)
    assert found.learning_rate == pytest.approx(part * limit(2 * fmean(reported), norm, DIRECTIONS), rel=1e-6)


def test_where_the_loss_curves_downwards_the_spread_limits_the_rate():
    rules = Run(cohort=8, directions=1).genesis.rules
    found = measured(rules, reports_of([-100.0, -300.0] * 4))
    assert found.trace == 0
    assert found.limit(8, 10**6) == pytest.approx(2 / (sqrt(100**2 * 8 / 7 / 2) * 9 / 8))


def test_of_a_single_curvature_the_trace_stands_for_the_norm_until_more_is_known():
    rules = Run(cohort=8, directions=1).genesis.rules
    alone, all_of_them = measured(rules, reports_of([100.0])), measured(rules, reports_of(HUNDRED))
    assert alone.norm(10**6) == 100
    assert alone.followed_by(all_of_them).norm(10**6) == pytest.approx(100)
    assert alone.followed_by(measured(rules, reports_of([110.0, 90.0] * 4))).norm(10**6) < 10
    few = measured(rules, reports_of([1100.0, 900.0]))
    both = few.followed_by(all_of_them)
    assert both.trace == pytest.approx((2 * 1000 + 8 * 100) / 10)
    assert both.followed_by(all_of_them).trace == pytest.approx((2 * 300 + 16 * 100) / 18), "three times the median"


def test_equal_values_of_most_leave_the_others_their_spread():
    """Losses in coarse steps: most second differences are 0."""
    rules = Run(cohort=8, directions=1).genesis.rules
    values = [0.0] * 5 + [700.0, -500.0, 300.0]
    assert measured(rules, reports_of(values)).norm(10**6) == pytest.approx(sqrt(variance(values) / 2))


@pytest.mark.parametrize("lie", [1e160, -1e308])
def test_a_loss_beyond_all_bounds_is_no_error(lie):
    rules = Run(cohort=8, directions=1).genesis.rules
    reports = [ClientReport(0, 1, 2.0, (3.0, 100.0)), ClientReport(1, 1, lie, (3.0, 90.0))]
    assert measured(rules, reports).norm(10**6) > 0
    assert rate_of("distinct", genesis_of("distinct"), reports) > 0


@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("lie", [0.0, 2.0**20, -3e38, 3e38])
def test_a_calibration_of_lies_moves_slope_and_curvature_by_little(before, lie):
    """From the third on; two can only be told apart by which of them does less harm."""
    rules = Run(cohort=1, directions=8).genesis.rules
    honest = measured(rules, [ClientReport(0, 1, 2.0, (3.0,) * 8 + tuple(HUNDRED))])
    lied = measured(rules, [ClientReport(0, 1, 2.0, (min(abs(lie), 2.0**20),) * 8 + (lie,) * 8)])
    together = honest
    for _ in range(before - 1):
        together = together.followed_by(honest)
    for found in (together.followed_by(lied), lied.followed_by(together)):
        assert found.slope <= 3 * honest.slope
        if before > 1:
            assert honest.slope / 2 < found.slope
            ratio = found.limit(8, 10**6) / honest.limit(8, 10**6)
            assert 0.4 < ratio < 2.5


EIGHT, ONE = (share(30) * limit(200, 100, directions) for directions in (8, 1))
"""Rates for so many directions averaged, after a first calibration that finds 100 and 100."""


HUNDRED = [100 + sign * sqrt(2 * 100**2 * 7 / 8) for sign in (1, -1)] * 4
"""Eight curvatures whose mean is 100 and whose variance is that of a norm of 100."""


def rate_of(name, genesis, reports) -> float:
    """What one calibration gives."""
    return calibrated_rate(get_method(name), genesis, measured(genesis.rules, reports), len(reports))


def genesis_of(name, **changes) -> Genesis:
    """Of a run with enough weights that trace and norm have nothing to do with each other."""
    genesis = Run(cohort=8, directions=1, rounds=30).genesis
    wide = replace(next(iter(genesis.manifest)), shape=(10**6,))
    return replace(genesis, manifest=Manifest((wide,)), rules=replace(genesis.rules, method=name, **changes))


def reports_of(curvatures, slope=3.0) -> list[ClientReport]:
    """One direction of each client."""
    return [ClientReport(k, 1, 0.0, (slope, curvature)) for k, curvature in enumerate(curvatures)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("distinct", EIGHT),
        ("shared", ONE),
        ("fedkseed", EIGHT),
        ("sign", EIGHT * 3),
        ("feedsign", ONE * 3),
        ("momentum", EIGHT / (1 + 0.5 + 0.25)),
        ("spsa15", EIGHT * sqrt(100 * sqrt(3))),
    ],
)
def test_methods_move_as_far_as_a_plain_step(name, expected):
    """Eight clients with one direction each; trace and norm are 100."""
    options = {"momentum": {"momentum_window": 3, "momentum_decay": 0.5}, "spsa15": {"curvature_power": 0.5}}
    rate = rate_of(name, genesis_of(name, **options.get(name, {})), reports_of(HUNDRED))
    assert rate == pytest.approx(expected)


def test_fzoo_divides_by_the_spread_that_the_slope_makes():
    genesis = genesis_of("fzoo", cohort=4, directions=2)
    reports = [ClientReport(k, 1, 0.0, (3.0, 3.0, *HUNDRED[2 * k : 2 * k + 2])) for k in range(4)]
    epsilon = genesis.rules.epsilon / 2**40
    assert rate_of("fzoo", genesis, reports) == pytest.approx(EIGHT * 3 * epsilon / 2)


def test_local_steps_are_limited_by_a_clients_own_directions():
    rules = replace(Run(cohort=8, directions=2).genesis.rules, local_steps=4)
    assert get_method("distinct").averaged_directions(rules, 8) == 2


def test_a_minority_of_liars_hardly_moves_it():
    honest = [90.0, 95.0, 100.0, 105.0, 110.0, 100.0, 98.0, 102.0]
    genesis = genesis_of("distinct")
    rate = rate_of("distinct", genesis, reports_of(honest))
    for lie in (0.0, 1e30, -1e30):
        lied = rate_of("distinct", genesis, reports_of([*honest[:6], lie, lie]))
        assert lied == pytest.approx(rate, rel=0.3)


@pytest.mark.parametrize("name", ["sign", "feedsign", "fzoo"])
def test_nor_does_one_slope_move_the_rate_of_a_method_that_goes_by_it(name):
    genesis = genesis_of(name, directions=2)
    honest = [ClientReport(k, 1, 0.0, (3.0, -3.0, 100.0, 100.0)) for k in range(8)]
    rate = rate_of(name, genesis, honest)
    for lie in (2.0**20, 0.0):
        lied = [*honest[:7], ClientReport(7, 1, 0.0, (lie, lie, 100.0, 100.0))]
        assert 0.9 * rate < rate_of(name, genesis, lied) < 2 * rate


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_flat_to_its_last_digit_gives_a_finite_rate_above_zero(name):
    needed = {name: value for name, value in NEEDED.get(name, {}).items() if name != "lr"}
    genesis = genesis_of(name, cohort=2, directions=4, **needed)
    flat = [ClientReport(0, 1, 4.0, (0.0,) * 8)]
    assert 0 < rate_of(name, genesis, flat) <= MOST
    if name == "distinct":
        expected = share(30) * limit(0, rounding(genesis.rules, 4.0), 4)
        assert rate_of(name, genesis, flat) == pytest.approx(expected)


def test_at_least_eight_directions_in_all():
    for cohort, directions, expected in ((1, 1, 8), (3, 1, 3), (8, 1, 1), (100, 1, 1), (2, 16, 16)):
        assert calibration_directions(Run(cohort=cohort, directions=directions).genesis.rules) == expected


@pytest.mark.parametrize(
    ("cohort", "directions", "local_steps", "expected"),
    [
        (8, 1, 1, [0, 5, 10, 20, 40, 80]),
        (1, 8, 1, [0, 5, 10, 20, 40, 80]),
        (8, 1, 4, [0, 5, 10, 20, 40, 80]),
        (1, 4, 1, [0, 10, 20, 40, 80]),
        (1, 1, 1, [0, 40, 80]),
        (1, 1, 4, [0, 10, 20, 40, 80]),
    ],
)
def test_it_is_made_first_when_rounds_evaluated_five_times_as_much_and_whenever_they_have_doubled(
    cohort, directions, local_steps, expected
):
    rules = replace(Run(cohort=cohort, directions=directions).genesis.rules, local_steps=local_steps)
    made, last = [], None
    for done in range(100):
        if calibration_due(rules, done, last):
            made.append(last := done)
    assert made == expected


# ── in a run ────────────────────────────────────────────────────────────────────────────────────────


def test_the_coordinator_asks_first_and_steps_at_the_rate_it_found():
    run = started(2, rounds=12, calibrated=True, learning_rate=0.0, schedule="constant", directions=4)
    assert run.plan.purpose is Purpose.CALIBRATE
    assert run.plan.learning_rate == 0
    run.play()
    assert kinds(run)[:4] == ["Enrolment0", "Calibration0", "Commit1", "Commit2"]
    assert kinds(run)[6:9] == ["Commit5", "Calibration5", "Commit6"]
    rate = calibrations(run.contents)[0].learning_rate
    genesis = replace(run.genesis, rules=replace(run.genesis.rules, rounds=12))
    assert rate == rate_of("distinct", genesis, calibrations(run.contents)[0].reports)
    assert run.records[2].body.learning_rate == rate
    again = Coordinator(run.contents).history
    assert again.learning_rate == run.coordinator.history.learning_rate == calibrations(run.contents)[-1].learning_rate
    assert not again.calibration_is_due


def test_of_the_trace_the_last_three_count_and_less_is_expected_to_come_each_time_of_the_spread_all():
    curvatures = {0: 40.0, 5: 20.0, 10: 90.0, 20: 70.0}
    spreads = {0: 80.0, 5: 40.0, 10: 20.0, 20: 10.0}
    run = started(2, rounds=30, calibrated=True, learning_rate=0.0, directions=4)

    def answer(run, client):
        middle, spread = curvatures[run.plan.round], spreads[run.plan.round]
        return {"projected_gradients": (1.0,) * 4 + (middle + spread, middle - spread) * 2}

    run.play(lambda run, client: answer(run, client) if run.plan.purpose is Purpose.CALIBRATE else {})
    found = [body.learning_rate for body in calibrations(run.contents)]
    traces = [40 * 2, 30 * (1 + 1 / 2), 50 * (1 + 1 / 3), 60 * (1 + 1 / 4)]
    norms = [sqrt(square * 8 / 7 / 2) for square in (6400, 8000 / 2, 8400 / 3, 8500 / 4)]
    limits = [limit(trace, norm, 8) for trace, norm in zip(traces, norms, strict=True)]
    assert found == pytest.approx([share(30) * rate for rate in limits], rel=1e-5)


def test_a_method_of_constant_step_length_goes_by_the_first_three_slopes():
    run = started(2, rounds=42, calibrated=True, learning_rate=0.0, directions=4, method="sign")
    slopes = {0: 8.0, 5: 2.0, 10: 4.0, 20: 1.0, 40: 1.0}
    run.play(
        lambda run, client: (
            {"projected_gradients": (slopes[run.plan.round],) * 4 + (60.0, -20.0) * 2}
            if run.plan.purpose is Purpose.CALIBRATE
            else {"projected_gradients": (1.0,) * 4}
        )
    )
    found = [body.learning_rate for body in calibrations(run.contents)]
    usual = [8, sqrt((9 * 4 + 4) / 2), *[sqrt((64 + 4 + 16) / 3)] * 3]
    norm = sqrt(1600 * 8 / 7 / 2)
    expected = [slope * limit(20 * (1 + 1 / (k + 1)), norm, 8) for k, slope in enumerate(usual)]
    assert found == pytest.approx([share(42) * rate for rate in expected])


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
    curvatures = {0: 20.0, 5: 200.0}
    run = started(2, rounds=8, calibrated=True, learning_rate=0.0, directions=4, schedule="constant")
    plans = []

    def answer(run, client):
        plans.append(run.plan)
        if run.plan.purpose is not Purpose.CALIBRATE:
            return {}
        return {"projected_gradients": (1.0,) * 4 + (curvatures[run.plan.round],) * 4}

    run.play(answer)
    history = run.coordinator.history
    assert history.learning_rate < history.highest_rate / 3
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

    def answer(run, client):
        if run.plan.purpose is not Purpose.CALIBRATE:
            return {"loss": 9.0 if run.plan.round in (4, 5) else 2.0}
        size = 1000.0 if any(isinstance(record.body, Rollback) for record in run.records) else 2000.0
        return {"projected_gradients": (1.0,) * 4 + (3 * size, -size) * 2}

    run.play(answer)
    back = next(k for k, record in enumerate(run.records) if isinstance(record.body, Rollback))
    assert isinstance(run.records[back + 1].body, Calibration)
    commit = run.records[back + 2].body
    assert commit.learning_rate == run.records[back + 1].body.learning_rate / 2
    first, second = calibrations(run.contents)[:2]
    assert second is run.records[back + 1].body
    rules, size = run.genesis.rules, run.genesis.manifest.elements
    before, after = (measured(rules, found.reports) for found in (first, second))
    anew = before.forgetting_curvature().followed_by(after)
    assert len(anew.slopes) == 2, "how many there were stays known"
    assert second.learning_rate == pytest.approx(share(30) * anew.limit(24, size))
    assert anew.limit(24, size) > 1.5 * before.followed_by(after).limit(24, size)


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
    given = {"clients": 2, "rounds": 6, "lr": "auto", "directions": 4}
    assert "calibrated, learning rate" in command("simulate", *simulate_options(demo, inline, **given)).stderr
    command("simulate", *simulate_options(demo, network, engine="processes", **given))
    assert (network / "journal").read_bytes() == (inline / "journal").read_bytes()
    assert len(calibrations(read_journal(network / "journal"))) == 2
    shown = command("journal", "show", network).stdout
    assert "calibration" in shown
