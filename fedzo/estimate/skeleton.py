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

from fedzo.errors import EstimationError
from fedzo.estimate.blocks import Blocks, find_blocks
from fedzo.manifest import Manifest


class AbsentWeight(torch.Tensor):
    """Stands for a parameter that is not in place: metadata, no values."""

    parameter: str
    tensor: int
    block: tuple[int, ...]

    @staticmethod
    def __new__(
        cls: type["AbsentWeight"],
        name: str,
        index: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        block: tuple[int, ...],
    ) -> "AbsentWeight":
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))
        self._is_param = True
        self.parameter, self.tensor, self.block = name, index, block
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        """Name it without touching values."""
        return f"AbsentWeight({self.parameter!r}, {tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse every operation, by name."""
        found: list[str] = []
        for value in (*args, *(kwargs or {}).values()):
            items = value if isinstance(value, list | tuple) else [value]
            found += [item.parameter for item in items if isinstance(item, AbsentWeight)]
        raise EstimationError(
            f"parameter {found[0] if found else '?'!r} was used by {func} while not in place: the model reads it "
            "through a reference of its own and not as an attribute of its module; such a model cannot be trained here"
        )


class _Slots(dict[str, Any]):
    """A module's `_parameters`, whose look-up fetches from the running lane, if one runs."""

    def __init__(self, values: dict[str, Any], skeleton: "Skeleton") -> None:
        super().__init__(values)
        self._skeleton = skeleton

    def __getitem__(self, name: str) -> Any:
        value = dict.__getitem__(self, name)
        if self._skeleton.fetch is None or not isinstance(value, AbsentWeight):
            return value
        return self._skeleton.fetch(value)


class Skeleton:
    """A model whose weights live in a replica.

    Args:
        model: any module; its parameters' values are dropped, buffers are left alone.
        manifest: the tensors, by the names of `unique_parameters`.
        dtype: compute type, as `Lockstep` makes it.
    """

    def __init__(self, model: nn.Module, manifest: Manifest, dtype: torch.dtype) -> None:
        self.model = model.eval()
        self._dtypes = [torch.float32 if len(spec.shape) < 2 else dtype for spec in manifest]
        self.fetch: Callable[[AbsentWeight], torch.Tensor] | None = None
        blocks: Blocks = find_blocks(model, {spec.name: index for index, spec in enumerate(manifest)})
        self.layers = blocks.layers
        names = {id(module): path for path, module in model.named_modules()}
        for owner in blocks.owners:
            path = names[id(owner.module)]
            values = {
                name: None
                if value is None
                else self._absent(f"{path}.{name}".lstrip("."), owner.indices[name], manifest, owner.block)
                for name, value in owner.module._parameters.items()
            }
            owner.module._parameters = _Slots(values, self)

    def _absent(self, name: str, index: int, manifest: Manifest, block: tuple[int, ...]) -> AbsentWeight:
        return AbsentWeight(name, index, manifest.tensors[index].shape, self._dtypes[index], block)
