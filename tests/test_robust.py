"""Robust aggregation: closed forms, what hostile scalars can and cannot do, refusals, attacks, a run."""

import json
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from commands import fedzo, refused, simulate_options
from coordination import assert_entries, started
from fedzo_simulations.attacks import ATTACKS, Attack
from helpers import make_genesis, make_rules
from hypothesis import given
from hypothesis import strategies as st

from fedzo.coordinator import Plan, Purpose, Report
from fedzo.errors import ConfigError
from fedzo.journal import Commit, Evaluation, read_journal
from fedzo.journal.genesis_codec import decode_genesis, encode_genesis
from fedzo.methods import METHODS, MethodReport, MethodRound, get_method
from fedzo.methods.robust import AGGREGATIONS, clipped, krum, medians, trimmed_means
from fedzo.noise import COEFFICIENT_BITS

UNIT = 2**COEFFICIENT_BITS
RATE = 0.125
numbers = st.floats(min_value=-1e6, max_value=1e6, width=32)


# ── closed forms ────────────────────────────────────────────────────────────────────────────────────


def test_the_median_of_each_direction():
    assert medians([[1, 9], [2, 7], [100, 8]], 0) == [2, 8]
    assert medians([[1], [2], [4], [100]], 0) == [3]
    assert medians([[5, 6]], 0) == [5, 6]


@pytest.mark.parametrize(
    ("column", "tolerate", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1000], 0.25, 5.5),  # three off each end of twelve
        ([-1000, 1, 2, 3, 1000], 0.2, 2),
        ([-1000, 1, 2, 3, 1000], 0.21, 2),  # ⌈1.05⌉ = 2 off each end
        ([1, 5], 0.5, 3),  # what is left must be one at least
        ([7], 0.25, 7),
    ],
)
def test_the_trimmed_mean_of_a_direction(column, tolerate, expected):
    assert trimmed_means([[value] for value in column], tolerate) == [expected]


def test_krum_takes_the_vector_whose_neighbours_are_nearest():
    """Blanchard et al., by hand: n = 5, f = 1, the sum over the two nearest of the squared distances."""
    vectors = [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [50.0, 50.0], [1.0, 1.0]]
    scores = [1 + 2, 1 + 1, 4 + 2, 49**2 * 2 + (49**2 + 50**2), 1 + 2]
    assert scores.index(min(scores)) == 1
    assert krum(vectors, 0.2) == [1.0, 0.0]
    assert krum([[3.0]], 0.25) == [3.0]
    assert krum([[3.0], [3.0]], 0.25) == [3.0]


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=9, max_size=9), st.data())
def test_a_quarter_of_hostile_clients_cannot_leave_the_honest_range(honest, data):
    """Three of twelve, whatever they send: each direction's result lies within what the honest ones sent."""
    hostile = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=3, max_size=3))
    vectors = data.draw(st.permutations(honest + hostile))
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    slack = 1e-6 * (1 + np.abs([low, high]).max())  # a mean of equal numbers is rounded
    for combined in (medians(vectors, 0), trimmed_means(vectors, 0.25)):
        assert np.all(low - slack <= combined)
        assert np.all(combined <= high + slack)


@pytest.mark.parametrize("factor", [1e2, 1e5])
def test_krum_never_takes_a_far_vector_that_stands_alone(factor):
    draw = np.random.default_rng(0)
    for _ in range(50):
        honest = draw.normal(1, 1, (9, 4))
        hostile = factor * draw.normal(0, 1, (3, 4)) + factor
        chosen = krum([*hostile.tolist(), *honest.tolist()], 0.25)
        assert chosen in honest.tolist()


# ── what becomes of a round ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_the_entries_of_a_round_are_minus_the_rate_times_what_was_combined(name):
    tolerate = 0.0 if name == "median" else 0.25
    rules = {"directions": 2, "local_steps": 2, "aggregation": name, "tolerate": tolerate}
    genesis = make_genesis(run_seed=5, method="shared", **rules)
    method = get_method("shared")
    vectors = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32).tolist()
    reports = [MethodReport(c, 1 + c, tuple(v)) for c, v in enumerate(vectors)]
    entries = method.aggregate(MethodRound(genesis, 7), RATE, reports)
    combined = AGGREGATIONS[name](vectors, tolerate)
    assert [entry.seed for entry in entries] == method.plan(MethodRound(genesis, 7), 0)
    assert [entry.coefficient for entry in entries] == [round(-RATE * value / 2 * UNIT) for value in combined]
    if name == "median":
        assert combined == [median(column) for column in zip(*vectors, strict=True)]


def test_scalars_are_clipped_whatever_the_method_before_anything_is_made_of_them():
    """What the journal states of the reports is clipped, so that all who fold over it see the same."""
    plain, bounded = (started(clip=clip) for clip in (0.0, 0.1))
    for run in (plain, bounded):
        for client, scalar in ((0, 0.05), (1, -7.0)):
            run.send(run.answer(client, projected_gradients=(float(np.float32(scalar)),)))
    sent, kept = (next(r.body for r in run.records if isinstance(r.body, Commit)).reports for run in (plain, bounded))
    assert [report.projected_gradients for report in sent] == [(np.float32(0.05),), (-7.0,)]
    assert [report.projected_gradients for report in kept] == [(np.float32(0.05),), (-np.float32(0.1),)]
    assert_entries(bounded, next(r for r in bounded.records if r.entries), 0.001)


def test_clipping_keeps_what_is_within():
    rules = make_rules(clip=0.1)
    most = float(np.float32(0.1))
    assert clipped(rules, [0.05, -0.05, 9.0, -9.0, 0.0]) == (0.05, -0.05, most, -most, 0.0)
    assert clipped(rules, clipped(rules, [9.0])) == (most,)
    assert clipped(make_rules(), [1e6]) == (1e6,)


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────


def test_rules_that_are_not_given_are_not_in_the_bytes():
    plain = make_genesis(method="shared")
    robust = replace(plain, rules=replace(plain.rules, clip=2.0, aggregation="krum", tolerate=0.25))
    assert encode_genesis(robust) != encode_genesis(plain)
    assert decode_genesis(encode_genesis(robust)) == robust
    for tag in (35 << 3 | 1, 36 << 3 | 2, 37 << 3 | 1):  # protobuf: field number, wire type
        word = bytes([tag & 0x7F | 0x80, tag >> 7])
        assert word in encode_genesis(robust)
        assert word not in encode_genesis(plain)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"shared"}))
def test_every_other_method_refuses_and_says_why(name):
    given = {"pool_size": 4} if name.startswith("fedkseed") else {"directions": 2}
    given |= {"momentum_window": 2, "momentum_decay": 0.5} if name == "momentum" else {}
    given |= {"curvature_power": 0.1} if name == "spsa15" else {}
    get_method(name).check(make_rules(method=name, clip=1.0, **given))
    why = "its clients vote" if name == "feedsign" else "scalars cannot be compared"
    with pytest.raises(ConfigError, match=f"aggregation 'median' is not for method {name!r}: .*{why}.*choose 'mean'"):
        get_method(name).check(make_rules(method=name, aggregation="median", **given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"aggregation": "mode"}, "aggregation 'mode' is unknown; choose one of: mean, median, trimmed-mean, krum"),
        ({"aggregation": "median", "tolerate": 0.25}, "option tolerate is 0.25, but aggregation 'median' has no use"),
        ({"tolerate": 0.25}, "option tolerate is 0.25, but aggregation 'mean' has no use for it"),
        ({"tolerate": 0.6}, "option tolerate is 0.6; expected 0 to 0.5"),
        ({"clip": -1}, "option clip is -1"),
        ({"attack": "flip"}, "options attack 'flip' and attackers 0 belong together"),
        ({"attackers": 0.5}, "options attack 'none' and attackers 0.5 belong together"),
        ({"attack": "bribe", "attackers": 0.5}, "attack 'bribe' is unknown; choose one of: none, flip"),
        ({"attack": "flip", "attackers": 0.5, "engine": "processes"}, "option attackers is 0.5"),
        (
            {"attack": "flip", "attackers": 0.1, "clients": 2},
            "option attackers is 0.1, which of 2 clients is none; give 0.5 or more, or leave attack out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given, message, demo, tmp_path):
    assert message in refused("simulate", *simulate_options(demo, tmp_path / "run", method="shared", **given))


# ── attacks ─────────────────────────────────────────────────────────────────────────────────────────


def train_plan(round_number: int) -> Plan:
    return Plan(
        purpose=Purpose.TRAIN,
        round=round_number,
        position=0,
        record_hash=b"",
        cohort=(0, 1, 2),
        learning_rate=0.1,
        attest=False,
        deadline_s=1.0,
    )


def attacked(kind: str, client: int, scalars: tuple[float, ...], round_number: int = 1) -> tuple[float, ...]:
    honest = Report(
        purpose=Purpose.TRAIN, round=round_number, client=client, record_hash=b"", loss=2.0, projected_gradients=scalars
    )
    sent = Attack(kind, 2, 7)(train_plan(round_number), honest)
    assert replace(sent, projected_gradients=scalars) == honest
    return sent.projected_gradients


def test_what_each_attack_sends():
    true = (0.5, -2.0, 3.0)
    assert attacked("flip", 0, true) == (-0.5, 2.0, -3.0)
    assert attacked("scale", 1, true) == (50.0, -200.0, 300.0)
    assert attacked("scale", 1, (2.0**19,)) == (2.0**20,)
    assert attacked("collude", 0, true) == attacked("collude", 1, true) != attacked("collude", 0, true, 2)
    for kind in ("random", "lazy"):
        assert attacked(kind, 0, true) == attacked(kind, 0, true) != attacked(kind, 1, true)
        assert attacked(kind, 0, true) != attacked(kind, 0, true, 2)
    assert attacked("lazy", 0, true) == attacked("lazy", 0, (9.0, 9.0, 9.0))
    assert all(attacked(kind, 2, true) == true for kind in ATTACKS)


def test_under_an_attack_the_median_still_learns_and_the_mean_does_not(demo, tmp_path):
    """Three of twelve scale by 100; the journal states no attack, and is replayed like any other."""

    def fall(name: str, **changed) -> float:
        run = tmp_path / name
        common = {"method": "shared", "clients": 12, "partition": "iid", "rounds": 12, "eval-every": 12, "guard": 0}
        fedzo("simulate", *simulate_options(demo, run, **common | {"lr": 1e-3} | changed))
        found = [r.body.loss for r in read_journal(run / "journal").records if isinstance(r.body, Evaluation)]
        return found[0] - found[-1]

    hostile = {"attack": "scale", "attackers": 0.25}
    clean, by_mean, by_median = fall("clean"), fall("mean", **hostile), fall("median", aggregation="median", **hostile)
    assert clean > 0
    assert by_mean < 0.25 * clean
    assert by_median > 0.5 * clean
    fedzo("replay", tmp_path / "median")
    stated = fedzo("journal", "show", tmp_path / "median", "--json").stdout
    assert json.loads(stated)["genesis"]["rules"]["aggregation"] == "median"
    assert "scale" not in json.loads(stated)["genesis"]["rules"]
    assert "attack" not in stated
