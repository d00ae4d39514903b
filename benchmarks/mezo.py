"""MeZO, written from its paper: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes".

Algorithm 1: weights are perturbed in place, z is made anew from the seed in each of four passes. The passes here add
in place, one parameter at a time, with nothing else allocated: no slower than the algorithm allows.
"""

from collections.abc import Callable

import torch
from torch import nn

from fedzo.checkpoint import unique_parameters
from fedzo.estimate import Batch
from fedzo.noise import Distribution
from fedzo.noise.directions import symbols

Direction = Callable[[int, torch.Tensor], torch.Tensor]
"""z of a parameter, given its index among the unique parameters; called for each in that order."""


def normal_direction(seed: int) -> Direction:
    """The paper's own: one stream of normal numbers from torch's global generator."""
    torch.manual_seed(seed)
    return lambda index, parameter: torch.normal(0.0, 1.0, size=parameter.size(), dtype=parameter.dtype)


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
    """

    def __init__(
        self, model: nn.Module, direction: Callable[[int], Direction], *, epsilon: float, learning_rate: float
    ) -> None:
        self._model = model
        self._parameters = list(unique_parameters(model).values())
        self._direction = direction
        self._epsilon = epsilon
        self._learning_rate = learning_rate

    def step(self, batch: Batch, seed: int) -> tuple[float, float]:
        """One step; the losses at +ε and −ε."""
        self._move(seed, self._epsilon)
        loss_plus = plain_loss(self._model, batch)
        self._move(seed, -2 * self._epsilon)
        loss_minus = plain_loss(self._model, batch)
        self._move(seed, self._epsilon)
        projected_gradient = (loss_plus - loss_minus) / (2 * self._epsilon)
        self._move(seed, -self._learning_rate * projected_gradient)
        return loss_plus, loss_minus

    @torch.no_grad()
    def _move(self, seed: int, distance: float) -> None:
        """θ += distance · z(seed)."""
        direction = self._direction(seed)
        for index, parameter in enumerate(self._parameters):
            parameter.add_(direction(index, parameter), alpha=distance)


@torch.inference_mode()
def plain_loss(model: nn.Module, batch: Batch) -> float:
    """The loss of a plain forward pass."""
    return float(model(**batch).loss)
