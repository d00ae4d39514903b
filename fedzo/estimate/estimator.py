"""Losses at perturbed weights, without ever writing to the weights.

One mechanism serves two-sided, one-sided and many-direction methods: a list of (seed, coefficients) is evaluated on
one batch; zero is a coefficient like any other. MeZO (Malladi et al. 2023, algorithm 1) is `(seed, (+ε, −ε))`.

The host waits for the device once for a batch, when it reads the losses: until then it only asks for work.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from fedzo.device import moved
from fedzo.errors import EstimationError
from fedzo.estimate.blocks import LARGE
from fedzo.estimate.lockstep import Lockstep
from fedzo.estimate.skeleton import Skeleton
from fedzo.estimate.weights import ExactWeights, Group, Weights
from fedzo.state.replica import Replica

Batch = Mapping[str, Any]
Loss = Callable[[nn.Module, Batch], torch.Tensor]
_Found = TypeVar("_Found")
Measure = Callable[[nn.Module, Batch], _Found]

LANES = 2
"""Forward passes of a direction that go through the model together."""


def largest_layer(device: torch.device, lanes_at_once: int) -> int | None:
    """Elements of a layer that is brought in whole; None for any.

    With a direction's two lanes, and a batch of up to some thousand tokens, the weights made of a large layer take more
    memory than what the lane that waits inside of it has computed; with many lanes that counts. A GPU is kept at work
    by large blocks.
    """
    return LARGE if device.type == "cpu" and lanes_at_once <= LANES else None


def model_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss that a Hugging Face model computes from a batch with labels."""
    return model(**batch).loss  # type: ignore[no-any-return]


class Estimator:
    """Evaluates a model's loss at overlays of a replica.

    Args:
        model: any module; it becomes a skeleton whose weights live in the replica. Eval mode is forced.
        replica: where the weights come from.
        loss: scalar loss of (model, batch).
        dtype: compute type; 16-bit types run the forward under autocast.
        lanes_at_once: forward passes that go through the model together; activation memory grows with it, that of
            weights does not beyond two, and what is streamed is read once for all.
        weights: what a pass reads, made from the replica, and the device where it runs; the integers themselves, on
            the CPU, where not given.
    """

    def __init__(
        self,
        model: nn.Module,
        replica: Replica,
        *,
        loss: Loss = model_loss,
        dtype: torch.dtype = torch.float32,
        lanes_at_once: int = LANES,
        weights: Weights | None = None,
    ) -> None:
        self._model = model
        self._replica = replica
        self._loss = loss
        self._dtype = dtype
        self.lanes_at_once = lanes_at_once
        read = ExactWeights(replica) if weights is None else weights
        self._device = read.device
        most = largest_layer(read.device, lanes_at_once)
        skeleton = Skeleton(model, replica.manifest, dtype, read.device, by_rows=read.by_rows, most=most)
        self._lockstep = Lockstep(skeleton, read, dtype)
        self.forwards = 0
        """Forward passes run so far."""

    def losses(
        self,
        batch: Batch,
        evaluations: Sequence[tuple[int, Sequence[int]]],
        steps: Mapping[int, int] | None = None,
    ) -> list[list[float]]:
        """The loss of one batch at every perturbation.

        Args:
            batch: what `loss` takes.
            evaluations: (seed, coefficients in units of 2⁻⁴⁰); a coefficient of zero is the unperturbed loss, run once.
            steps: local steps under all of them: coefficient of each seed on top of the replica.

        Returns:
            Losses in the shape of the coefficients; not necessarily finite.
        """
        keys = list(dict.fromkeys((seed if c else 0, c) for seed, coefficients in evaluations for c in coefficients))
        batch = moved(batch, self._device)
        ordered: list[tuple[int, int]] = []
        found: list[torch.Tensor] = []
        for low in range(0, len(keys), self.lanes_at_once):
            chosen = keys[low : low + self.lanes_at_once]
            seeds = list(dict.fromkeys(seed for seed, _ in chosen))
            groups = [[self._replica.overlay(steps or {}, [p]) for p in chosen if p[0] == seed] for seed in seeds]
            ordered += [p for seed in seeds for p in chosen if p[0] == seed]
            jobs = [(self._job(batch), (k, column)) for k, group in enumerate(groups) for column in range(len(group))]
            self.forwards += len(jobs)
            found += self._lockstep_run(jobs, groups)
        losses = torch.stack(found).tolist() if found else []
        points = dict(zip(ordered, losses, strict=True))
        return [[points[seed if c else 0, c] for c in coefficients] for seed, coefficients in evaluations]

    def evaluate(self, batches: Sequence[Batch], measure: Measure[_Found]) -> list[_Found]:
        """What `measure` finds for several batches at the replica, weights materialised once for several of them."""
        found: list[_Found] = []
        overlay = [[self._replica.overlay({})]]
        for low in range(0, len(batches), self.lanes_at_once):
            chosen = [moved(batch, self._device) for batch in batches[low : low + self.lanes_at_once]]
            self.forwards += len(chosen)
            found += self._lockstep_run([(partial(measure, self._model, batch), (0, 0)) for batch in chosen], overlay)
        return found

    @property
    def scratch_bytes(self) -> int:
        """Memory of the host that materialised weights take."""
        return self._lockstep.scratch_bytes

    def call(self, function: Callable[[], Any]) -> Any:
        """Run any code that uses the model at the replica's weights, such as `model.generate`."""
        return self._lockstep_run([(function, (0, 0))], [[self._replica.overlay({})]])[0]

    def give_back(self) -> None:
        """Make the model a plain one again, with the replica's weights in float32; the estimator is at its end."""
        self._lockstep.give_back(self._replica.weights)

    def _job(self, batch: Batch) -> Callable[[], torch.Tensor]:
        def job() -> torch.Tensor:
            loss = self._loss(self._model, batch)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                raise EstimationError(
                    f"the loss must be a tensor of one element, got {loss!r:.100}; does the batch have labels?"
                )
            return loss.detach().reshape(()).double()

        return job

    def _lockstep_run(
        self, jobs: list[tuple[Callable[[], Any], tuple[int, int]]], groups: Sequence[Group]
    ) -> list[Any]:
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not torch.float32),
            ):
                return self._lockstep.run(jobs, groups)
        finally:
            torch.set_autocast_cache_enabled(cached)
