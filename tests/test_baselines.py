"""The baselines do what their papers say, on fedzo's data in fedzo's order, where the answer is known."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from compared import network, points, squared_error
from fedzo_simulations.baselines import BASELINES, get_baseline
from fedzo_simulations.baselines.baseline import Subject
from fedzo_simulations.baselines.mezo import Mezo, normal_direction, rademacher_direction
from fedzo_simulations.baselines.training import train
from fedzo_simulations.options import SimulateOptions
from helpers import make_rules
from torch import nn

import fedzo
from fedzo.base.checkpoint import Base, base_digest
from fedzo.coordinator.schedule import scheduled_rate
from fedzo.estimate import Estimator
from fedzo.journal import Entry
from fedzo.methods.method import projected_gradient
from fedzo.noise import Distribution
from fedzo.run_directory import RunDirectory
from fedzo.state.replica import Replica
from fedzo.tasks.examples import ClientExamples

TARGETS = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 3.0, 2.0]])
"""Client c's examples are all TARGETS[c]."""
START = torch.tensor([0.25, 0.5, -1.0])
RATE = 0.125


class Point(nn.Module):
    """Its loss is ½|x − b|², the gradient x − b, b the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(START.clone())


def loss(model: Point, batch: torch.Tensor) -> torch.Tensor:
    return (model.x - batch.mean(0)).square().sum() / 2


def collate(examples):
    return torch.utils.data.default_collate(list(examples)), len(examples)


def subject(model: nn.Module, training, held_out=None, objective=loss, seed: int = 0, batch: int = 4) -> Subject:
    held = held_out or [[] for _ in training]
    clients = [
        ClientExamples(
            examples,
            kept,
            collate=collate,
            length=lambda example: 0,
            run_seed=seed,
            client=client,
            evaluation_batch=batch,
        )
        for client, (examples, kept) in enumerate(zip(training, held, strict=True))
    ]
    measure = lambda model, batch: (float(objective(model, batch)), None)  # noqa: E731
    return Subject(model, clients, collate, objective, measure)


def rules(**changed):
    return make_rules(**({"learning_rate": RATE, "batch_size": 4} | changed))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_mezo_fed_fedzos_directions_takes_fedzos_step():
    model, seed, rate, epsilon = network(), 7, 0.05, 2**30
    batch = collate(points(8, 0))[0]
    mezo = Mezo(model, rademacher_direction, epsilon=epsilon / 2**40, learning_rate=rate, loss=squared_error)
    ours = deepcopy(model)
    base = Base(source="", model=ours, digest=base_digest(ours))
    replica = Replica.from_base(base, Distribution.RADEMACHER)
    estimator = Estimator(ours, replica, loss=squared_error)
    losses = estimator.losses(batch, [(seed, (epsilon, -epsilon))])[0]
    assert mezo.step(batch, seed) == pytest.approx(losses, rel=1e-6)
    slope = projected_gradient(*losses, epsilon)
    assert abs(slope) > 0.1
    replica.add([Entry(seed, round(-rate * slope * 2**40))])
    estimator.give_back()
    for theirs, own in zip(model.parameters(), ours.parameters(), strict=True):
        assert theirs.detach().numpy() == pytest.approx(own.detach().numpy(), abs=2e-4 * rate * abs(slope))


def test_mezo_makes_one_direction_in_all_four_passes_and_steps_along_it():
    model, seed, epsilon, rate = Point(), 11, 2.0**-10, RATE
    before = model.x.detach().double().numpy()
    z = normal_direction(seed)(0, model.x).double().numpy()
    batch = TARGETS[:1]
    slope = (before - batch[0].double().numpy()) @ z
    Mezo(model, normal_direction, epsilon=epsilon, learning_rate=rate, loss=loss).step(batch, seed)
    assert model.x.detach().numpy() == pytest.approx(before - rate * slope * z, rel=1e-3)
    assert not np.allclose(z, normal_direction(seed + 1)(0, model.x).numpy())


def test_a_round_of_fedavg_is_the_mean_of_the_clients_weighted_by_what_they_hold():
    """K steps on ½|x − b|² leave x − b shrunk by (1 − η)^K; clients hold 4 and 12 examples."""
    held = subject(Point(), [[TARGETS[0]] * 4, [TARGETS[1]] * 12])
    fedavg = get_baseline("fedavg")(held, rules(cohort=2, local_steps=3), 0)
    mean_loss = fedavg.round(1, RATE)
    shrunk = (1 - RATE) ** 3
    expected = sum(share * (b + shrunk * (START - b)) for share, b in zip((0.25, 0.75), TARGETS, strict=True))
    assert held.model.x.detach().numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    seen = [((1 - RATE) ** (2 * step) * (START - b).square().sum() / 2) for b in TARGETS for step in range(3)]
    assert mean_loss == pytest.approx(float(sum(seen)) / 6, rel=1e-6)


def test_fedavg_with_one_client_is_sgd_to_the_bit():
    data = [points(40, 1)]
    averaged = subject(network(), data, objective=squared_error)
    central = subject(network(), data, objective=squared_error)
    fedavg = get_baseline("fedavg")(averaged, rules(cohort=1, local_steps=3), 0)
    sgd = get_baseline("sgd")(central, rules(), 0)
    for number in range(1, 6):
        fedavg.round(number, 0.05)
    for number in range(1, 16):
        sgd.round(number, 0.05)
    assert all(map(torch.equal, weights(averaged.model), weights(central.model)))
    assert not torch.equal(weights(central.model)[0], weights(network())[0])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_central_training_is_torchs_own_loop_over_all_clients_examples(name):
    data = [points(10, 1), points(30, 2)]
    trained = subject(network(), data, objective=squared_error)
    baseline = get_baseline(name)(trained, rules(), 3)
    model = network()
    optimiser = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](model.parameters(), lr=0.01)
    pooled = trained.pooled(3)
    assert sorted(float(e["y"]) for e in pooled.training) == sorted(float(e["y"]) for d in data for e in d)
    seen = []
    for step in range(10):
        batch, _ = pooled.training_batch(step, 4)
        seen += batch["y"].tolist()
        optimiser.zero_grad()
        squared_error(model, batch).backward()
        optimiser.step()
        baseline.round(step + 1, 0.01)
    assert sorted(seen) == sorted(float(e["y"]) for d in data for e in d), "ten batches of four are one epoch of 40"
    assert all(map(torch.equal, weights(trained.model), weights(model)))


def options(out, **changed) -> SimulateOptions:
    values = {"model": "", "data": "", "out": str(out), "rounds": 7, "lr": 0.02, "batch_size": 4, "eval_every": 3}
    return SimulateOptions(**(values | {"clients": 3, "guard": 0.0, "threads": 1} | changed))


DATA = [points(12, seed) for seed in range(3)]
HELD_OUT = [points(6, seed) for seed in range(3, 6)]


@pytest.mark.parametrize("name", BASELINES)
def test_metrics_count_forward_passes_and_bytes_and_state_the_schedules_rates(name, tmp_path):
    (tmp_path / name).mkdir()
    run = RunDirectory(tmp_path / name)
    given = options(run.path, local_steps=2, cohort=2)
    train(name, subject(network(), DATA, HELD_OUT, squared_error), given, run)
    lines = run.read_metrics()
    assert [line["round"] for line in lines if line["kind"] == "evaluation"] == [0, 3, 6, 7]
    commits = [line for line in lines if line["kind"] == "commit"]
    rates = [scheduled_rate(given.rules(), given.lr, number) for number in range(1, 8)]
    assert [line["learning_rate"] for line in commits] == rates
    each = {"mezo": 2, "sgd": 3, "adamw": 3, "fedavg": 2 * 2 * 3}[name]
    assert lines[-1]["forwards"] == 7 * each + 4 * 3 * 2, "rounds, and four evaluations of three clients' two batches"
    parameters = 3 * 8 + 8 + 8 + 1
    sent = 7 * 2 * parameters * 4 if name == "fedavg" else 0
    assert (lines[-1]["bytes_up"], lines[-1]["bytes_down"]) == (sent, sent)
    losses = [line["held_out_loss"] for line in lines if line["kind"] == "evaluation"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", BASELINES)
def test_the_evaluation_before_training_is_that_of_a_simulation(name, tmp_path):
    done = fedzo.simulate(
        network(), DATA, loss=squared_error, evaluation=HELD_OUT, rounds=1, eval_every=1, batch_size=4, threads=1
    )
    run = RunDirectory(tmp_path)
    train(name, subject(network(), DATA, HELD_OUT, squared_error), options(tmp_path, rounds=1), run)
    assert run.read_metrics()[0]["held_out_loss"] == pytest.approx(done.held_out_losses[0][1], rel=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    def final(place, seed):
        (tmp_path / place).mkdir()
        run = RunDirectory(tmp_path / place)
        train("mezo", subject(network(), DATA, HELD_OUT, squared_error, seed), options(run.path, seed=seed), run)
        return run.read_metrics()[-1]["held_out_loss"]

    assert final("a", 1) == final("b", 1) != final("c", 2)


def test_training_that_blows_up_ends_with_an_evaluation_that_says_so(tmp_path):
    run = RunDirectory(tmp_path)
    train("sgd", subject(network(), DATA, HELD_OUT, squared_error), options(tmp_path, lr=1e3, rounds=500), run)
    lines = run.read_metrics()
    assert lines[-1]["kind"] == "evaluation"
    assert lines[-1]["held_out_loss"] is None
    assert len(lines) < 500
