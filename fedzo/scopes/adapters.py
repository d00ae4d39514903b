"""Adapters by the peft library: LoRA and prefix tuning (docs/numerics.md, "Scopes").

Peft places them; their first weights are fedzo's, so that they are the same bits on every machine.
"""

import warnings
from importlib.util import find_spec
from math import sqrt
from typing import Any

from torch import nn

from fedzo.base.checkpoint import unique_parameters
from fedzo.base.initial_weights import STANDARD_DEVIATION, initialise
from fedzo.errors import ConfigError
from fedzo.scopes.scope import Kind, Scope

_EVERYWHERE = "all-linear"
_ZERO_AT_FIRST = (".lora_B.", ".lora_embedding_A.")
_INWARD = ".lora_A."


def add_adapter(model: Any, scope: Scope, run_seed: int) -> Any:
    """A model with an adapter, which alone is trained, in float32.

    Args:
        model: it is changed, and part of what is returned.
        scope: of kind `lora` or `prefix`.
        run_seed: what the adapter's weights are drawn from.

    Raises:
        ConfigError: peft is not installed, or cannot adapt this model so; the model is as it was.
    """
    if not find_spec("peft"):
        raise ConfigError(
            f"scope {scope.kind.value!r} needs the package peft: pip install -c constraints.txt '.[peft]'"
        )
    from peft import get_peft_model  # noqa: PLC0415 — seconds, and optional

    before = {id(parameter) for parameter in model.parameters()}
    parts = list(model.named_modules(remove_duplicate=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft uses of transformers
        try:
            adapted = get_peft_model(model, _config(model, scope))
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            for name, part in parts[1:]:  # what peft replaced before it came to what it cannot
                model.set_submodule(name, part)
            raise ConfigError(f"peft cannot make scope {scope.describe()} of this {_named(model)}: {error}") from error
    adapted.float().eval()
    trained = trained_parameters(adapted)
    for index, (name, parameter) in enumerate(trained.items()):
        if id(parameter) not in before and "modules_to_save" not in name:
            _initialise(parameter, name, index, run_seed)
    return adapted


def trained_parameters(model: Any) -> dict[str, nn.Parameter]:
    """What peft leaves trainable, in the manifest's order: adapters, and a classifier's head."""
    return {name: parameter for name, parameter in unique_parameters(model).items() if parameter.requires_grad}


def _initialise(parameter: nn.Parameter, name: str, index: int, run_seed: int) -> None:
    if any(part in name for part in _ZERO_AT_FIRST):
        parameter.data.zero_()
    elif _INWARD in name:
        initialise(parameter.data, name, index, run_seed, 1 / sqrt(3 * parameter[0].numel()))
    else:
        initialise(parameter.data, name, index, run_seed, STANDARD_DEVIATION)


def _config(model: Any, scope: Scope) -> Any:
    from peft import LoraConfig, PrefixTuningConfig  # noqa: PLC0415

    task = _task(model)
    if scope.kind is Kind.PREFIX:
        if task is None:
            raise ConfigError("scope 'prefix' needs a causal language model or a classifier of transformers")
        return PrefixTuningConfig(task_type=task, num_virtual_tokens=scope.virtual_tokens)
    targets = list(scope.lora_targets)
    return LoraConfig(
        task_type=task,
        r=scope.lora_rank,
        lora_alpha=scope.lora_alpha,
        lora_dropout=0.0,
        target_modules=_EVERYWHERE if targets == [_EVERYWHERE] else targets,
        init_lora_weights=False,
    )


def _task(model: Any) -> str | None:
    """What peft should know the model as."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if getattr(model, "can_generate", lambda: False)() else None


def _named(model: Any) -> str:
    return type(model).__name__
