"""Each method moves as its paper says, where the answer is known: L_c(x) = ½ xᵀAx − b_cᵀx, b_c the data of client c.

Along z the slope is zᵀ(Ax − b_c) and the curvature zᵀAz, and both differences of the loss give them exactly.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import fedzo
from fedzo.coordinator import History
from fedzo.journal import Commit, Void
from fedzo.methods import METHODS, MethodRound, get_method
from fedzo.noise.directions import symbols
from fedzo.noise.draws import pool_seeds

START = np.array([160, -96, 224, 32, -200, 8]) / 256
ROOT = np.array([[2, 1, 0, 0, 0, 0], [0, 2, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 2, 1, 0], [1, 0, 0, 0, 1, 1]])
A = (ROOT.T @ ROOT).astype(float)
DATA = np.array([[1, 0, 2, 0, -1, 0], [-3, 1, 0, 2, 0, 1], [0, -2, 1, -1, 3, 0]]) / 4
EPSILON = 2.0**-10
RATE = 2.0**-6
DIRECTIONS = 4
POWER = 0.5
WINDOW, DECAY = 3, 0.75
OPTIONS = {
    "fedkseed": {"pool_size": 64},
    "fedkseed-pro": {"pool_size": 64},
    "momentum": {"momentum_window": WINDOW, "momentum_decay": DECAY},
    "spsa15": {"curvature_power": POWER},
}


class Quadratic(nn.Module):
    """Its weights and its matrix; the loss is in float64, and exact in all of the first round."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(START, dtype=torch.float32))


def loss(model: Quadratic, batch: torch.Tensor) -> torch.Tensor:
    x = model.x.double()
    return x @ torch.tensor(A) @ x / 2 - batch.mean(0) @ x


@dataclass
class Round:
    """What theory says of one round, and what was reported: arrays over clients, directions (and elements)."""

    z: np.ndarray
    slopes: np.ndarray
    curvatures: np.ndarray
    reported: np.ndarray

    def mean(self, scalars: np.ndarray) -> np.ndarray:
        """(1/CP) Σ_c Σ_p scalar · z."""
        return np.einsum("cp,cpn->n", scalars, self.z) / scalars.size


def run(method: str, rounds: int = 4, objective=loss, **changed):
    options = {"rounds": rounds, "lr": RATE, "epsilon": EPSILON, "directions": DIRECTIONS, "batch_size": 4, "guard": 0}
    options |= {"schedule": "constant", "attest_every": 1, "threads": 1, "seed": 3, "method": method}
    datasets = [[torch.tensor(b)] * 4 for b in DATA]
    return fedzo.simulate(Quadratic(), datasets, loss=objective, **(options | OPTIONS.get(method, {}) | changed))


def follow(done, scalars, step) -> list[Round]:
    """Hold a run against its paper, round by round.

    Args:
        done: the run.
        scalars: of a round, what clients should have reported.
        step: of all rounds so far, how far x should have moved for a learning rate of 1.
    """
    journal, x, rounds = done.journal, START.copy(), []
    history, method = History(journal), get_method(journal.genesis.rules.method)
    for record, record_hash in zip(journal.records, journal.hashes[1:], strict=True):
        if isinstance(record.body, Commit):
            reports = record.body.reports
            at = MethodRound(journal.genesis, record.round, history.memory)
            seeds = [method.plan(at, r.client) for r in reports]
            drawn = journal.genesis.distribution
            z = np.array([[drawn.values[symbols(drawn, s, 0, 0, len(x))] for s in row] for row in seeds])
            slopes = np.einsum("cpn,cn->cp", z, A @ x - DATA)
            curvatures = np.einsum("cpn,nm,cpm->cp", z, A, z)
            rounds.append(Round(z, slopes, curvatures, np.array([r.projected_gradients for r in reports])))
            assert rounds[-1].reported == pytest.approx(scalars(rounds[-1]), rel=1e-3, abs=1e-4)
            x -= RATE * step(rounds)
        history.apply(record, record_hash)
    assert done.model.x.detach().numpy() == pytest.approx(x, abs=1e-5)
    assert len(rounds) == 4
    return rounds


@pytest.mark.parametrize("name", ["distinct", "shared", "fedkseed", "fedkseed-pro"])
def test_two_sided_differences_are_the_slope_and_the_step_is_their_mean(name):
    rounds = follow(run(name), lambda now: now.slopes, lambda rounds: rounds[-1].mean(rounds[-1].slopes))
    assert (rounds[0].reported == rounds[0].slopes).all(), "to the bit, where all numbers are exact"
    assert (rounds[0].z[0] == rounds[0].z[1]).all() == (name == "shared")


@pytest.mark.parametrize("name", ["distinct", "shared", "fedkseed"])
def test_local_steps_walk_a_path_of_each_clients_own_and_the_round_moves_by_their_mean(name):
    """x_c ← x_c − η (1/P) Σ_p (z_pᵀ∇L_c(x_c)) z_p, K times from x (FedKSeed, DeComFL)."""
    done = run(name, local_steps=3)
    journal, x = done.journal, START.copy()
    history, method, drawn = History(journal), get_method(name), journal.genesis.distribution
    for record, record_hash in zip(journal.records, journal.hashes[1:], strict=True):
        moves = []
        for report in record.body.reports if isinstance(record.body, Commit) else ():
            seeds = method.plan(MethodRound(journal.genesis, record.round, history.memory), report.client)
            own, slopes = x.copy(), []
            for first in range(0, 3 * DIRECTIONS, DIRECTIONS):
                z = np.array([drawn.values[symbols(drawn, s, 0, 0, len(x))] for s in seeds[first : first + DIRECTIONS]])
                slopes += list(z @ (A @ own - DATA[report.client]))
                own -= RATE * z.T @ slopes[first:] / DIRECTIONS
            assert report.projected_gradients == pytest.approx(slopes, rel=1e-3, abs=1e-3)
            moves.append(own - x)
        x += np.mean(moves, axis=0) if moves else 0.0
        history.apply(record, record_hash)
    assert done.model.x.detach().numpy() == pytest.approx(x, abs=1e-4)
    assert len([r for r in journal.records if isinstance(r.body, Commit)]) == 4


def test_sign_steps_by_the_sign_of_every_slope():
    rounds = follow(
        run("sign"), lambda now: np.sign(now.slopes), lambda rounds: rounds[-1].mean(np.sign(rounds[-1].slopes))
    )
    assert set(rounds[0].reported.flat) == {-1.0, 1.0}


def test_feedsign_steps_by_the_sign_of_the_majority():
    def step(rounds):
        votes = np.sign(rounds[-1].slopes).sum(axis=0)
        return np.einsum("p,pn->n", np.sign(votes), rounds[-1].z[0]) / DIRECTIONS

    rounds = follow(run("feedsign"), lambda now: np.sign(now.slopes), step)
    assert any(abs(column.sum()) == 1 for now in rounds for column in now.reported.T), "they did not all agree"
    assert all((now.z == now.z[0]).all() for now in rounds)


def test_fzoo_divides_by_the_standard_deviation_of_the_one_sided_losses():
    """g = (l_p − l₀)/ε = slope + ½ ε curvature, and σ = ε std(g): the loss at θ cancels."""

    def scalars(now):
        one_sided = now.slopes + EPSILON * now.curvatures / 2
        return one_sided / (EPSILON * one_sided.std(axis=1, ddof=1, keepdims=True))

    rate = RATE * EPSILON
    done = run("fzoo", lr=rate)
    rounds = follow(done, scalars, lambda rounds: EPSILON * rounds[-1].mean(scalars(rounds[-1])))
    spreads = rounds[0].reported.std(axis=1, ddof=1)
    assert spreads == pytest.approx([1 / EPSILON] * 3), "every client's scalars have the same spread"


def test_fzoo_takes_no_step_from_losses_that_are_all_the_same():
    rules = run("fzoo", rounds=1).journal.genesis.rules
    assert get_method("fzoo").scalars(rules, [(2.0, 1.0)] * DIRECTIONS) == [0.0] * DIRECTIONS


def test_spsa15_divides_by_a_power_of_the_curvature():
    def scalars(now):
        return now.slopes / np.maximum(now.curvatures**POWER, 1.0)

    rounds = follow(run("spsa15"), scalars, lambda rounds: rounds[-1].mean(scalars(rounds[-1])))
    curvatures = rounds[0].curvatures
    assert curvatures.min() > 1.0
    assert rounds[0].reported == pytest.approx(rounds[0].slopes / curvatures**POWER, rel=1e-6)


def test_spsa15_does_not_stretch_flat_directions():
    """L = θ²/32 has curvature 1/16 < 1: the scalar is the plain slope."""
    rules = run("spsa15", rounds=1).journal.genesis.rules
    losses = [(theta * theta / 32) for theta in (0.5 + EPSILON, 0.5, 0.5 - EPSILON)]
    assert get_method("spsa15").scalars(rules, [losses]) == pytest.approx([1 / 32], rel=1e-6)


def test_momentum_steps_by_the_decayed_sum_of_the_last_estimates():
    def step(rounds):
        estimates = [now.mean(now.slopes) for now in rounds[-WINDOW:]]
        return sum(DECAY**age * estimate for age, estimate in enumerate(reversed(estimates)))

    done = run("momentum")
    follow(done, lambda now: now.slopes, step)
    entries = [len(r.entries) for r in done.journal.records if isinstance(r.body, Commit)]
    assert entries == [12, 24, 36, 36]


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_is_no_scalar(name):
    """Not even a vote, which only knows two values: the client says that it diverged, and the round is void."""

    def edge(model, batch):
        moved = not torch.equal(model.x, torch.tensor(START, dtype=torch.float32))
        return loss(model, batch) + (float("nan") if moved else 0.0)

    (void,) = [r.body for r in run(name, rounds=1, objective=edge).journal.records if isinstance(r.body, Void)]
    assert void.diverged
    assert void.reported == (0, 1, 2)


@pytest.mark.parametrize("name", METHODS)
def test_forward_passes_are_what_the_method_says_and_the_loss_falls(name):
    rate = {"fzoo": RATE * EPSILON, "momentum": RATE / 2}.get(name, RATE)
    done = run(name, rounds=40, lr=rate, local_steps=2, **({"pool_size": 2**15} if "fedkseed" in name else {}))
    rules = done.journal.genesis.rules
    each = {"fzoo": 2 * (DIRECTIONS + 1), "spsa15": 2 * (2 * DIRECTIONS + 1)}.get(name, 2 * 2 * DIRECTIONS)
    assert get_method(name).forwards(rules) == each
    assert done.progress.forwards == pytest.approx(40 * 3 * each, rel=0 if "fedkseed" not in name else 0.001)
    losses = [loss for _, loss in done.losses]
    best = -np.mean(DATA, axis=0) @ np.linalg.lstsq(A, np.mean(DATA, axis=0), rcond=None)[0] / 2
    assert losses[-1] - best < (losses[0] - best) / 2


def test_fedkseed_pro_draws_large_slopes_more_often_than_small_ones():
    """After a while the draws follow the paper's probabilities of the mean |g| so far."""
    done = run("fedkseed-pro", rounds=60, lr=0.0, local_steps=4, pool_size=16)
    journal, method = done.journal, get_method("fedkseed-pro")
    history = History(journal)
    found: dict[int, list[float]] = {}
    for record, record_hash in zip(journal.records, journal.hashes[1:], strict=True):
        for report in record.body.reports if isinstance(record.body, Commit) else ():
            seeds = method.plan(MethodRound(journal.genesis, record.round, history.memory), report.client)
            for seed, scalar in zip(seeds, report.projected_gradients, strict=True):
                found.setdefault(seed, []).append(abs(scalar))
        history.apply(record, record_hash)
    pool = pool_seeds(journal.genesis.run_seed, 16)
    means = np.array([np.mean(found[seed]) for seed in pool])
    expected = np.exp((means - means.min()) / np.ptp(means))
    expected /= expected.sum()
    weights = np.array(history.memory.weights)
    assert weights / weights.sum() == pytest.approx(expected, rel=2 / 255)
    rounds = (MethodRound(journal.genesis, n, history.memory) for n in range(61, 1061))
    drawn = Counter(seed for at in rounds for seed in method.plan(at, 0))
    shares = np.array([drawn[seed] for seed in pool]) / drawn.total()
    assert shares == pytest.approx(expected, abs=5 * (expected.max() / drawn.total()) ** 0.5)
    assert expected.max() / expected.min() == pytest.approx(np.e)
