"""MeZO, written from its paper: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes".

Algorithm 1: weights are perturbed in place, z is made anew from the seed in each of four passes. The passes here add
in place, one parameter at a time, with nothing else allocated: no slower than the algorithm allows.
"""

from collections.abc import Callable

import torch
from torch import nn

from fedzo.base.checkpoint import unique_parameters
from fedzo.estimate import Batch, Loss, model_loss
from fedzo.journal import Rules
from fedzo.noise import COEFFICIENT_BITS, Distribution
from fedzo.noise.directions import symbols
from fedzo.noise.draws import derived_seeds

from .baseline import Baseline, Subject

Direction = Callable[[int, torch.Tensor], torch.Tensor]
"""z of a parameter, given its index among the unique parameters; called for each in that order."""


def normal_direction(seed: int) -> Direction:
    """The paper's own: one stream of normal numbers, begun anew from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda index, parameter: torch.normal(
        0.0, 1.0, size=parameter.size(), dtype=parameter.dtype, generator=generator
    )


def rademacher_direction(seed: int) -> Direction:
    """Our z = ±1, to show that both compute the same losses; slow."""
    values = torch.from_numpy(Distribution.RADEMACHER.values).to(torch.float32)

    def direction(index: int, parameter: torch.Tensor) -> torch.Tensor:
        found = symbols(Distribution.RADEMACHER, seed, index, 0, parameter.numel())
        return values[torch.from_numpy(found)].view_as(parameter)

    return direction


class Mezo:
    """MeZO's step on a model.

    Args:
        model: in eval mode; its weights are written to.
        direction: makes z from a seed.
        epsilon: size of the perturbation.
        learning_rate: η.
        loss: scalar loss of (model, batch).
    """

    def __init__(
        self,
        model: nn.Module,
        direction: Callable[[int], Direction],
        *,
        epsilon: float,
        learning_rate: float,
        loss: Loss = model_loss,
    ) -> None:
        self._model = model
        self._parameters = list(unique_parameters(model).values())
        self._direction = direction
        self._epsilon = epsilon
        self._loss = loss
        self.learning_rate = learning_rate

    def step(self, batch: Batch, seed: int) -> tuple[float, float]:
        """One step; the losses at +ε and −ε."""
        self._move(seed, self._epsilon)
        loss_plus = plain_loss(self._model, batch, self._loss)
        self._move(seed, -2 * self._epsilon)
        loss_minus = plain_loss(self._model, batch, self._loss)
        self._move(seed, self._epsilon)
        projected_gradient = (loss_plus - loss_minus) / (2 * self._epsilon)
        self._move(seed, -self.learning_rate * projected_gradient)
        return loss_plus, loss_minus

    @torch.no_grad()
    def _move(self, seed: int, distance: float) -> None:
        """θ += distance · z(seed)."""
        direction = self._direction(seed)
        for index, parameter in enumerate(self._parameters):
            parameter.add_(direction(index, parameter), alpha=distance)


@torch.inference_mode()
def plain_loss(model: nn.Module, batch: Batch, loss: Loss = model_loss) -> float:
    """The loss of a plain forward pass."""
    return float(loss(model, batch))


class MezoTraining(Baseline):
    """MeZO in one place, with all clients' data: one step a round."""

    needs_gradient = False

    def __init__(self, subject: Subject, rules: Rules, run_seed: int) -> None:
        super().__init__(subject, rules, run_seed)
        epsilon = rules.epsilon / 2.0**COEFFICIENT_BITS
        self._mezo = Mezo(subject.model, normal_direction, epsilon=epsilon, learning_rate=0.0, loss=subject.loss)
        self._data = subject.pooled(run_seed)

    @classmethod
    def forwards(cls, rules: Rules) -> int:
        """Two, however many clients there are."""
        return 2

    def round(self, number: int, learning_rate: float) -> float:
        """One step."""
        batch, _ = self._data.training_batch(number - 1, self.rules.batch_size)
        self._mezo.learning_rate = learning_rate
        (seed,) = derived_seeds(self.run_seed, number, 0, 1)
        return sum(self._mezo.step(batch, seed)) / 2
