"""Scope `layers`: a direction touches some of the model's blocks, drawn by its seed (docs/numerics.md, "Scopes")."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedzo.base.manifest import Manifest
from fedzo.errors import ConfigError
from fedzo.noise.philox import join64, philox4x32, split64
from fedzo.scopes.scope import Kind, Scope

TAG_LAYERS = 10
_NUMBERED = re.compile(r"(?:[^.]+\.)*?[0-9]+(?=\.)")


def block_name(tensor: str) -> str:
    """The name up to its first component that is a number, as `model.layers.3`; empty where there is none."""
    found = _NUMBERED.match(tensor)
    return found[0] if found else ""


class LayerTouches:
    """Which blocks each direction touches: `count` of them, drawn uniformly without replacement.

    Args:
        names: of the manifest's tensors, in order.
        count: of blocks.

    Raises:
        ConfigError: there are fewer blocks.
    """

    def __init__(self, names: Sequence[str], count: int) -> None:
        of_tensors = [block_name(name) for name in names]
        self.blocks = sorted(set(of_tensors), key=str.encode)
        if not 1 <= count <= len(self.blocks):
            raise ConfigError(
                f"layers-per-direction is {count}; this model has {len(self.blocks)} blocks "
                f"({', '.join(block or 'all else' for block in self.blocks[:4])}, …): give 1 to {len(self.blocks)}"
            )
        self._count = count
        self._block_of = np.array([self.blocks.index(block) for block in of_tensors], dtype=np.int64)

    def of(self, seeds: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """See `fedzo.noise.increments.Touches`: the blocks with the least keys, the earlier of equal ones."""
        k0, k1 = split64(seeds)
        words = philox4x32((np.arange(len(self.blocks)), 0, 0, TAG_LAYERS), (k0[:, None], k1[:, None]))
        order = np.argsort(join64(words[..., 0], words[..., 1]), axis=1, kind="stable")
        touched = np.zeros(order.shape, dtype=np.bool_)
        np.put_along_axis(touched, order[:, : self._count], np.True_, axis=1)
        return touched[:, self._block_of]


def touches_of(scope: Scope, manifest: Manifest) -> LayerTouches | None:
    """What says which tensors a direction touches; None where all directions touch all of them.

    Raises:
        ConfigError: the model has fewer blocks than a direction should touch.
    """
    if scope.kind is not Kind.LAYERS:
        return None
    return LayerTouches([spec.name for spec in manifest], scope.layers_per_direction)
