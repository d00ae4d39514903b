"""A model without weights: every parameter is fetched when the model's code reads it.

The `_parameters` of each module become a dict whose look-up asks the running lane for the weight, so a layer
that reads a parameter of a module it never calls is served like any other. What stays in the dict has the
parameter's shape, type and device and no storage; using it, say through a reference that the model kept
from its construction, is an error that names the parameter and never a stale value.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fedzo.base.checkpoint import unique_parameters
from fedzo.base.manifest import Manifest
from fedzo.errors import EstimationError
from fedzo.estimate.blocks import find_blocks, is_table


class AbsentWeight(torch.Tensor):
    """Stands for a parameter that is not in place: metadata, no values."""

    parameter: str
    """Its name in the manifest."""
    tensor: int
    """Its index there."""
    table_of: "Skeleton | None" = None
    """Set for an embedding's table: for the embedding it stays absent while a lane runs, and its rows are looked up."""

    @staticmethod
    def __new__(
        cls: type["AbsentWeight"],
        parameter: str,
        tensor: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> "AbsentWeight":
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        self._is_param = True
        self.parameter, self.tensor = parameter, tensor
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        """Name it without touching values."""
        return f"AbsentWeight({self.parameter!r}, {tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse every operation, by name, but those on an embedding's table in a lane."""
        absent = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, AbsentWeight)]
        skeleton = absent[0].table_of
        if skeleton is not None and skeleton.look_up is not None and all(leaf.table_of is skeleton for leaf in absent):
            look_up = skeleton.look_up
            if func is torch.ops.aten.embedding.default:
                return look_up(absent[0].tensor, args[1])
            with torch.inference_mode(False):  # views of an inference tensor cannot leave here
                whole = {leaf.tensor: look_up(leaf.tensor, torch.arange(leaf.shape[0])) for leaf in absent}
                args, kwargs = tree_map_only(AbsentWeight, lambda leaf: whole[leaf.tensor], (args, kwargs or {}))
                return func(*args, **kwargs)
        raise EstimationError(
            f"parameter {absent[0].parameter!r} was used by {func} while not in place: the model reads it through a "
            "reference of its own and not as an attribute of its module; such a model cannot be trained here"
        )


class _Slots(dict[str, Any]):
    """A module's `_parameters`, whose look-up fetches from the running lane, if one runs."""

    def __init__(self, values: dict[str, Any], block: tuple[int, ...], skeleton: "Skeleton", *, looks_up: bool) -> None:
        super().__init__(values)
        self._block = block
        self._skeleton = skeleton
        self._looks_up = looks_up

    def __getitem__(self, name: str) -> Any:
        value = dict.__getitem__(self, name)
        if self._skeleton.fetch is None or self._looks_up or not isinstance(value, AbsentWeight):
            return value
        return self._skeleton.fetch(value.tensor, self._block)


class Skeleton:
    """A model whose weights live in a replica.

    Args:
        model: any module; its parameters become `AbsentWeight`s wherever they are referred to. What else it holds,
            buffers and frozen parameters, goes to the device.
        manifest: the tensors, by the names of `unique_parameters`.
        dtype: compute type, as `Lockstep` makes it.
        device: where the model computes.
        by_rows: embeddings outside of all layers look rows up in tables that are not brought in.
        most: elements of a layer that is brought in whole, as for `find_blocks`.
    """

    def __init__(
        self,
        model: nn.Module,
        manifest: Manifest,
        dtype: torch.dtype,
        device: torch.device,
        *,
        by_rows: bool,
        most: int | None,
    ) -> None:
        model.eval().to(device)
        self.fetch: Callable[[int, tuple[int, ...]], torch.Tensor] | None = None
        """Gives a tensor's weight to the running lane, bringing its block in; None where no lane runs."""
        self.look_up: Callable[[int, torch.Tensor], torch.Tensor] | None = None
        """Gives the running lane rows of a table by their numbers; None where no lane runs."""
        blocks = find_blocks(model, {spec.name: spec.size for spec in manifest}, most)
        self.layers = blocks.layers
        self.tied = blocks.tied
        tables = blocks.tables if by_rows else frozenset()
        self._parameters = list(unique_parameters(model).values())
        self._model = model
        self._owners = [module for module, _ in blocks.owners]
        for index, (spec, parameter) in enumerate(zip(manifest, self._parameters, strict=True)):
            kind = dtype if spec.is_matrix else torch.float32
            absent = AbsentWeight(spec.name, index, spec.shape, kind, device)
            absent.table_of = self if index in tables else None
            _replace(parameter, absent)
        for module, block in blocks.owners:
            looks_up = is_table(module) and block[0] in tables
            module._parameters = _Slots(module._parameters, block, self, looks_up=looks_up)

    def fill(self, weight: Callable[[int], torch.Tensor]) -> None:
        """Make the model a plain one again, on the CPU.

        Args:
            weight: gives each tensor's weight, by its index.
        """
        for module in self._owners:
            module._parameters = dict(module._parameters.items())
        for index, parameter in enumerate(self._parameters):
            torch.utils.swap_tensors(parameter, nn.Parameter(weight(index)))  # type: ignore[no-untyped-call]
        self._model.to(torch.device("cpu"))


def _replace(parameter: nn.Parameter, absent: AbsentWeight) -> None:
    """Make every reference to a parameter one to its stand-in."""
    try:
        torch.utils.swap_tensors(parameter, absent)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise EstimationError(
            f"parameter {absent.parameter!r} cannot be taken out of the model ({error}); recurrent modules of torch.nn "
            "keep such references: a model with them cannot be trained here"
        ) from error
