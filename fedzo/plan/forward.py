"""A forward pass of a model that has no weights: the memory that it takes beside them, and its arithmetic.

The model's own code runs in float32 on tensors without values, made for the CPU, so that it takes the operations that
it would take there; what each tensor lies in is counted for as long as the tensor or a view of it lives.
"""

import weakref
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from fedzo.base.checkpoint import unique_parameters
from fedzo.base.checkpoint_files import require_model
from fedzo.errors import CheckpointError
from fedzo.estimate.blocks import Blocks, find_blocks

_EXPERTS = torch.ops.aten._grouped_mm.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One forward pass of a batch, its weights not counted."""

    activation_bytes: int
    """The most that live together."""
    pause_bytes: int
    """The most that live where a block begins: a lane that waits for its weights holds that."""
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A model by its config alone."""

    shapes: dict[str, tuple[int, ...]]
    """Of every parameter, sorted as in a manifest."""
    blocks: Blocks
    forward: Forward


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what is made under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.now = 0
        self.flops = 0
        """Of products that no FlopCounterMode sees."""
        self._views: Counter[int] = Counter()
        """Tensors of each storage that live."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self._experts(*args) if func is _EXPERTS else func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.now += 0 if self._views[storage._cdata] else storage.nbytes()
                self._views[storage._cdata] += 1
                weakref.finalize(tensor, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _experts(self, rows: torch.Tensor, weights: torch.Tensor, *_: Any) -> torch.Tensor:
        """Rows [n, k], each times the matrix of its group, of [groups, k, m]; torch infers that for bfloat16 alone."""
        self.flops += 2 * rows.numel() * weights.shape[-1]
        return rows.new_empty(rows.shape[0], weights.shape[-1])

    def _freed(self, storage: int, size: int) -> None:
        self._views[storage] -= 1
        self.now -= 0 if self._views[storage] else size


def outline(source: str, batch_size: int, length: int, most: int | None) -> Outline:
    """What can be known of a causal language model from its config.

    Args:
        source: checkpoint directory or hub name; its weights need not be there.
        batch_size, length: of the batch, in examples and tokens.
        most: elements of a layer that is brought in whole, as for `find_blocks`.

    Raises:
        CheckpointError: there is no config, or the model does not run without values.
    """
    require_model(source)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no model's config can be loaded from {source!r}: {error}") from error
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        except ValueError as error:
            kind = type(config).__name__
            raise CheckpointError(f"{source!r} is no causal language model that transformers knows ({kind})") from error
        names = {name: tuple(parameter.shape) for name, parameter in unique_parameters(model).items()}
        blocks = find_blocks(model, {name: prod(shape) for name, shape in names.items()}, most)
        try:
            forward = _forward(model, batch_size, length, blocks)
        except Exception as error:  # the model's own code, which may mind in any way
            raise CheckpointError(f"{source!r} does not run on tensors without values: {error}") from error
    return Outline(shapes=names, blocks=blocks, forward=forward)


def _forward(model: nn.Module, batch_size: int, length: int, blocks: Blocks) -> Forward:
    living, waiting = _Living(), [0]
    hooks = [layer.register_forward_pre_hook(lambda *_: waiting.append(living.now)) for layer, _ in blocks.layers]
    ids = torch.zeros(batch_size, length, dtype=torch.int64)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "use_cache": False}
    with torch.no_grad(), FlopCounterMode(display=False) as counted, living:
        model(**batch)
    for hook in hooks:
        hook.remove()
    flops = int(counted.get_total_flops()) + living.flops
    return Forward(activation_bytes=living.peak, pause_bytes=max(waiting), flops=flops)
