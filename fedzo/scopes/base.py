"""From a base to what a scope trains of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from fedzo.base.checkpoint import Base, unique_parameters
from fedzo.errors import ConfigError
from fedzo.scopes.adapters import add_adapter, trained_parameters
from fedzo.scopes.frozen import Frozen
from fedzo.scopes.scope import Scope


def scoped(base: Base, scope: Scope, run_seed: int) -> Base:
    """A base whose model's parameters are those that the scope trains; its digest is that of the whole base.

    Args:
        base: as loaded; its model is changed.
        scope, run_seed: of the genesis.

    Raises:
        ConfigError: the model has nothing that the scope could train.
    """
    if not scope.freezes:
        return base
    model, trained = prepare(base.model, scope, run_seed)
    Frozen(model, list(trained.values()))
    return replace(base, model=model)


@contextmanager
def scoped_model(model: Any, scope: Scope, run_seed: int) -> Iterator[Any]:
    """As `scoped`, for a model in memory: what was frozen is a parameter again afterwards; an adapter stays."""
    if not scope.freezes:
        yield model
        return
    model, trained = prepare(model, scope, run_seed)
    frozen = Frozen(model, list(trained.values()))
    try:
        yield model
    finally:
        frozen.thaw()


def prepare(model: Any, scope: Scope, run_seed: int) -> tuple[Any, dict[str, nn.Parameter]]:
    """The model that a scope trains, in float32, and what it trains of it, in the manifest's order.

    Args:
        model: of the base; it is changed.
        scope: one that leaves some of the model frozen.
        run_seed: of the genesis.

    Raises:
        ConfigError: as `scoped`, with the model as it was.
    """
    if scope.adapts:
        model = add_adapter(model, scope, run_seed)
        return model, trained_parameters(model)
    trained = _head(model)
    return model.float(), trained


def _head(model: Any) -> dict[str, nn.Parameter]:
    """What lies outside of a transformers model's backbone under any of its names, and the backbone's pooler."""
    prefix = getattr(model, "base_model_prefix", "")
    backbone = f"{prefix}."
    every = list(model.named_parameters(remove_duplicate=False))
    if not prefix or not any(name.startswith(backbone) for name, _ in every):
        raise ConfigError(f"scope 'head' needs a model of transformers with a head; {type(model).__name__} has none")
    outside = {
        id(parameter)
        for name, parameter in every
        if not name.startswith(backbone) or name.startswith(f"{backbone}pooler.")
    }
    return {name: parameter for name, parameter in unique_parameters(model).items() if id(parameter) in outside}
