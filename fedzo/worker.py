"""What a client does with a plan, wherever it runs: estimate, evaluate, attest, report."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Protocol

import numpy as np

from fedzo.coordinator.calibration import calibration_directions, calibration_scalars
from fedzo.coordinator.history import History
from fedzo.coordinator.messages import PROJECTED_GRADIENT_LIMIT, Plan, Purpose, Report
from fedzo.errors import ReplicaError
from fedzo.estimate import Batch, Estimator, Measure
from fedzo.journal.records import Entry
from fedzo.methods import MethodRound, get_method
from fedzo.methods.robust import clipped
from fedzo.noise.draws import derived_seeds
from fedzo.state.local_steps import LocalSteps
from fedzo.state.replica import Replica


class ClientData(Protocol):
    """One client's examples, as batches."""

    def training_batch(self, step: int, batch_size: int) -> tuple[Batch, int]:
        """The batch of a step (rounds and local steps counted through, from 0) and its number of examples."""

    def held_out_batches(self) -> Sequence[tuple[Batch, int]]:
        """All held-out data, each batch with the number of examples its loss is the mean of."""


class Worker:
    """Carries plans out on one replica; any number of clients may share it.

    Args:
        history: of the run, at the replica's position.
        replica: at the position that a plan names; the worker leaves it as it was.
        estimator: over that replica.
        measure: loss and metric of the model on a held-out batch.
    """

    def __init__(
        self, history: History, replica: Replica, estimator: Estimator, measure: Measure[tuple[float, float | None]]
    ) -> None:
        self._history = history
        self._genesis = history.genesis
        self._rules = history.genesis.rules
        self._method = get_method(self._rules.method)
        self._replica = replica
        self._estimator = estimator
        self._measure = measure

    def carry_out(self, plan: Plan, client: int, data: ClientData) -> Report:
        """Do what a plan asks of a client.

        Raises:
            ReplicaError: the replica is not where the plan is; catch up first.
        """
        if plan.record_hash != self._replica.record_hash:
            raise ReplicaError(
                f"the plan is for position {plan.position}, the replica is at {self._replica.position}; catch up first"
            )
        if plan.purpose is Purpose.EVALUATE:
            return self._evaluate(plan, client, data)
        if plan.purpose is Purpose.ATTEST:
            return self._report(plan, client)
        if plan.purpose is Purpose.CALIBRATE:
            return self._calibrate(plan, client, data)
        return self._train(plan, client, data)

    def _train(self, plan: Plan, client: int, data: ClientData) -> Report:
        with LocalSteps(self._replica) as steps:
            estimate = self._estimate(plan, client, data, steps)
        if estimate is None:
            return self._report(plan, client, diverged=True)
        return self._report(plan, client, **estimate)

    def _estimate(self, plan: Plan, client: int, data: ClientData, steps: LocalSteps) -> dict[str, Any] | None:
        """What the local steps of a round give to report; None where one is not finite or too large."""
        rules, method = self._rules, self._method
        seeds = method.plan(MethodRound(self._genesis, plan.round, self._history.memory), client)
        perturbations = method.perturbations(rules)
        losses: list[float] = []
        scalars: list[float] = []
        examples = 0
        for step in range(rules.local_steps):
            batch, count = data.training_batch((plan.round - 1) * rules.local_steps + step, rules.batch_size)
            chosen = seeds[step * rules.directions : (step + 1) * rules.directions]
            found = self._estimator.losses(batch, [(seed, perturbations) for seed in chosen], steps.overlay())
            if not all(isfinite(loss) for each in found for loss in each):
                return None
            slopes = method.scalars(rules, found)
            if not all(abs(slope) <= PROJECTED_GRADIENT_LIMIT for slope in slopes):
                return None
            gradients = clipped(rules, [float(np.float32(slope)) for slope in slopes])
            scalars += gradients
            losses += [loss for each in found for loss in each]
            examples += count
            moves = [method.local_step(rules, plan.learning_rate, gradient) for gradient in gradients]
            if not steps.take(Entry(*pair) for pair in zip(chosen, moves, strict=True)):
                return None
        return {"examples": examples, "loss": sum(losses) / len(losses), "projected_gradients": tuple(scalars)}

    def _calibrate(self, plan: Plan, client: int, data: ClientData) -> Report:
        rules, epsilon = self._rules, self._rules.epsilon
        seeds = derived_seeds(self._genesis.run_seed, plan.round + 1, client, calibration_directions(rules))
        batch, examples = data.training_batch(plan.round * rules.local_steps, rules.batch_size)
        found = self._estimator.losses(batch, [(seed, (epsilon, 0, -epsilon)) for seed in seeds])
        losses = [loss for each in found for loss in each]
        if not all(isfinite(loss) for loss in losses):
            return self._report(plan, client, diverged=True)
        scalars = calibration_scalars(epsilon, found)
        slopes, curvatures = scalars[: len(seeds)], scalars[len(seeds) :]
        if not all(abs(slope) <= PROJECTED_GRADIENT_LIMIT for slope in slopes) or not all(map(isfinite, curvatures)):
            return self._report(plan, client, diverged=True)
        loss = sum(losses) / len(losses)
        return self._report(plan, client, examples=examples, loss=loss, projected_gradients=scalars)

    def _evaluate(self, plan: Plan, client: int, data: ClientData) -> Report:
        batches = data.held_out_batches()
        examples = sum(count for _, count in batches)
        if not examples:
            return self._report(plan, client)
        found = self._estimator.evaluate([batch for batch, _ in batches], self._measure)
        counts = [count for _, count in batches]
        loss = sum(loss * count for (loss, _), count in zip(found, counts, strict=True)) / examples
        metrics = [metric * count for (_, metric), count in zip(found, counts, strict=True) if metric is not None]
        metric = sum(metrics) / examples if metrics else None
        return self._report(plan, client, examples=examples, loss=loss, metric=metric, diverged=not isfinite(loss))

    def _report(
        self,
        plan: Plan,
        client: int,
        *,
        examples: int = 0,
        loss: float = 0.0,
        metric: float | None = None,
        projected_gradients: tuple[float, ...] = (),
        diverged: bool = False,
    ) -> Report:
        return Report(
            purpose=plan.purpose,
            round=plan.round,
            client=client,
            record_hash=self._replica.record_hash,
            examples=examples,
            loss=loss,
            metric=metric,
            projected_gradients=projected_gradients,
            state_digest=self._replica.digest() if plan.attest else None,
            maxima=self._replica.maxima() if plan.attest else None,
            diverged=diverged,
        )
