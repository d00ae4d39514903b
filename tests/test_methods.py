"""Methods: what they need, whom they give which directions, what becomes of the scalars, what earlier rounds leave."""

from collections import Counter
from dataclasses import replace
from decimal import Context, Decimal

import numpy as np
import pytest
from coordination import NAMES, Run, started
from helpers import make_genesis, make_rules

from fedzo.coordinator import Connected, Coordinator, History, rollback_entries
from fedzo.errors import ConfigError
from fedzo.journal import Commit, Entry, Record, Rollback
from fedzo.methods import METHODS, MethodReport, MethodRound, get_method, method_reports
from fedzo.methods.fedkseed_pro import EXPONENTIALS, Importance
from fedzo.noise import COEFFICIENT_BITS
from fedzo.noise.draws import pool_choices, pool_seeds

UNIT = 2**COEFFICIENT_BITS
RATE = 0.125


def reports_of(scalars: dict[int, list[float]], examples: dict[int, int] | None = None) -> list[MethodReport]:
    return [MethodReport(c, (examples or {}).get(c, 8), tuple(values)) for c, values in sorted(scalars.items())]


def test_shared_gives_all_clients_the_same_directions_and_averages_their_scalars():
    """DeComFL: one entry a direction, −η/P times the mean over clients, however many examples each had."""
    genesis = make_genesis(run_seed=5, method="shared", directions=2, local_steps=3)
    method = get_method("shared")
    plans = [method.plan(MethodRound(genesis, 7), client) for client in range(4)]
    assert plans.count(plans[0]) == 4
    assert len(set(plans[0])) == 6
    assert plans[0] != method.plan(MethodRound(genesis, 8), 0)
    scalars = {1: [1.0, 2, 3, 4, 5, 6], 3: [0.5, -2, 7, 0, -5, 8]}
    entries = method.aggregate(MethodRound(genesis, 7), RATE, reports_of(scalars, {1: 100, 3: 1}))
    assert [entry.seed for entry in entries] == plans[0]
    means = np.mean([scalars[1], scalars[3]], axis=0)
    assert [entry.coefficient for entry in entries] == [round(-RATE / 2 * mean * UNIT) for mean in means]


def test_fedkseed_draws_from_its_pool_and_gives_one_total_a_seed():
    """FedKSeed: A(s) −= η Σ (n_c/n) g over all steps of all clients along s."""
    genesis = make_genesis(run_seed=5, method="fedkseed", pool_size=4, local_steps=9)
    method = get_method("fedkseed")
    pool = pool_seeds(5, 4)
    plans = {client: method.plan(MethodRound(genesis, 7), client) for client in (0, 2)}
    assert all(set(plan) <= set(pool) and len(plan) == 9 for plan in plans.values())
    assert plans[0] != plans[2]
    scalars = {client: np.random.default_rng(client).normal(size=9).tolist() for client in plans}
    entries = method.aggregate(MethodRound(genesis, 7), RATE, reports_of(scalars, {0: 30, 2: 10}))
    assert len(entries) == len({entry.seed for entry in entries}) <= 4
    expected: Counter[int] = Counter()
    for client, weight in ((0, 0.75), (2, 0.25)):
        for seed, scalar in zip(plans[client], scalars[client], strict=True):
            expected[seed] += -RATE * weight * scalar
    assert {e.seed: e.coefficient / UNIT for e in entries} == pytest.approx(expected, abs=2 / UNIT)


def test_pool_choices_are_uniform():
    counts = Counter(pool_choices(3, 1, 0, 32_000, 16))
    assert sorted(counts) == list(range(16))
    assert all(abs(count - 2000) < 5 * 2000**0.5 for count in counts.values())


NEEDED = {
    "fedkseed": {"pool_size": 8},
    "fedkseed-pro": {"pool_size": 8},
    "momentum": {"momentum_window": 3, "momentum_decay": 0.5},
    "spsa15": {"curvature_power": 0.1},
}


@pytest.mark.parametrize("name", METHODS)
def test_an_option_is_for_the_methods_that_need_it(name):
    needed = NEEDED.get(name, {})
    rules = make_rules(method=name, directions=2, **needed)
    get_method(name).check(rules)
    for option, value in {**NEEDED["fedkseed"], **NEEDED["momentum"], **NEEDED["spsa15"]}.items():
        wrong = replace(rules, **{option: 0 if option in needed else value})
        wanted = "needs it" if option in needed else "has no use for it"
        with pytest.raises(ConfigError, match=f"option {option.replace('_', '-')} is .*, but method '{name}' {wanted}"):
            get_method(name).check(wrong)


def test_fzoo_needs_losses_to_compare_and_momentum_a_round_to_look_back_on():
    with pytest.raises(ConfigError, match="option directions is 1, but method 'fzoo' divides by the spread"):
        get_method("fzoo").check(make_rules(method="fzoo"))
    with pytest.raises(ConfigError, match="option momentum-window is 1, which is method 'distinct'"):
        get_method("momentum").check(make_rules(method="momentum", momentum_window=1, momentum_decay=0.5))


def test_a_vote_counts_one_whatever_was_sent_and_a_tie_moves_nothing():
    genesis = make_genesis(run_seed=5, method="feedsign", directions=3)
    method = get_method("feedsign")
    scalars = {0: [1.0, 1.0, 1.0], 1: [1.0, -1.0, -1.0], 2: [-1e6, -1e6, 0.0]}
    entries = method.aggregate(MethodRound(genesis, 7), RATE, reports_of(scalars, {0: 1, 1: 1, 2: 10**6}))
    step = round(RATE / 3 * UNIT)
    assert entries == tuple(zip(method.plan(MethodRound(genesis, 7), 0), [-step, step, 0], strict=True))


# ── what earlier rounds leave ───────────────────────────────────────────────────────────────────────


def commits(run: Run) -> list[Record]:
    return [record for record in run.records if isinstance(record.body, Commit)]


def own_entries(run: Run, record: Record, decay: float) -> list[Entry]:
    """What `distinct` would have committed, times a decay."""
    reports = method_reports(record.body.reports)
    return list(get_method("distinct").aggregate(MethodRound(run.genesis, record.round), 0.001 * decay, reports))


def test_momentum_commits_the_entries_of_the_rounds_before_again():
    run = started(method="momentum", rounds=5, **NEEDED["momentum"])
    run.play(lambda run, client: {"projected_gradients": (run.plan.round + client / 4,)})
    done = commits(run)
    for k, record in enumerate(done):
        expected = [own_entries(run, done[k - age], 0.5**age) for age in range(min(k + 1, 3))]
        assert list(record.entries) == [entry for entries in expected for entry in entries]
    assert [len(record.entries) for record in done] == [2, 4, 6, 6, 6]


def test_momentum_of_rounds_that_were_rolled_back_is_forgotten():
    run = started(method="momentum", rounds=6, **NEEDED["momentum"])
    run.play(until=lambda run: run.plan.round == 5)
    kept = commits(run)[:2]
    position = run.records.index(kept[-1]) + 1
    back = rollback_entries(run.records[position:])
    run.append_by_hand(Record(4, Rollback(position, back, 1.0, "asked for")))
    run.coordinator, run.plan = Coordinator(run.contents), None
    run.send(Connected(NAMES[:2]))
    run.play(until=lambda run: run.plan.round == 6)
    last = commits(run)[-1]
    expected = [own_entries(run, record, 0.5**age) for age, record in enumerate([last, *reversed(kept)])]
    assert list(last.entries) == [entry for entries in expected for entry in entries]
    assert run.coordinator.history.memory == (kept[-1], last)


@pytest.mark.parametrize("name", ["momentum", "fedkseed-pro"])
def test_a_restarted_coordinator_goes_on_with_the_same_memory(name):
    def answers(run, client):
        return {"projected_gradients": ((-1.5) ** run.plan.round + client,)}

    alone, stopped = (started(method=name, rounds=8, **NEEDED[name]) for _ in range(2))
    alone.play(answers)
    stopped.play(answers, until=lambda run: run.plan.round == 5)
    again = Run(contents=stopped.contents)
    again.send(Connected(NAMES[:2]))
    again.play(answers)
    assert again.contents.hashes == alone.contents.hashes


def test_fedkseed_pro_begins_as_fedkseed_and_draws_what_everyone_else_draws():
    rules = {"method": "fedkseed-pro", "pool_size": 8, "local_steps": 6}
    run = started(rounds=9, **rules)
    history = run.coordinator.history
    genesis, method = run.genesis, get_method("fedkseed-pro")
    first = MethodRound(genesis, 1, history.memory)
    assert method.plan(first, 0) == get_method("fedkseed").plan(first, 0)
    run.play(lambda run, client: {"projected_gradients": tuple(float(k * client) for k in range(6))})
    fresh = History(run.contents)
    fresh.catch_up()
    assert fresh.memory == history.memory != method.memory(genesis)
    assert sum(history.memory.counts) == 9 * 2 * 6
    assert sum(history.memory.sums) == 9 * sum(range(6)) * UNIT
    pool = pool_seeds(genesis.run_seed, 8)
    for record in commits(run):
        assert {entry.seed for entry in record.entries} <= set(pool)


def test_the_weights_of_fedkseed_pro_are_exponentials_rounded_down():
    for q, weight in enumerate(EXPONENTIALS):
        low, high = (Decimal(value) / 2**16 for value in (weight, weight + 1))
        exact = Context(prec=60).exp(Decimal(q) / 255)
        assert low <= exact < high
    assert Importance((0, 10, 40, 5), (0, 1, 2, 5)).weights == tuple(EXPONENTIALS[q] for q in (0, 127, 255, 12))
    assert Importance((6, 3), (2, 1)).weights == (2**16, 2**16)


@pytest.mark.parametrize("name", METHODS)
def test_a_local_step_goes_down_by_the_learning_rate_over_the_directions(name):
    genesis = make_genesis(method=name, directions=4)
    assert get_method(name).local_step(genesis.rules, RATE, 3.0) == -round(RATE * 3 / 4 * UNIT)
