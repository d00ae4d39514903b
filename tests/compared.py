"""A small module and its datasets, and the function that makes `fedzo compare` a subject of them."""

import torch
from fedzo_simulations.compare.subject import MadeSubject
from torch import nn


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def points(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Examples of y = x₀ − 2 x₁."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return [{"x": row, "y": row[0] - 2 * row[1]} for row in x]


def squared_error(model: nn.Module, batch) -> torch.Tensor:
    return ((model(batch["x"]).squeeze(-1) - batch["y"]) ** 2).mean()


def make(*, clients: int, seed: int, examples: int) -> MadeSubject:
    return MadeSubject(
        model=network(),
        datasets=[points(examples, 10 * seed + client) for client in range(clients)],
        evaluation=[points(8, 100 + client) for client in range(clients)],
        collate=torch.utils.data.default_collate,
        loss=squared_error,
        measure=lambda model, batch: (float(squared_error(model, batch)), 0.5),
    )
