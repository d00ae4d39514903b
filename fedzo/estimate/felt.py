"""Which part of a perturbation a forward pass in a 16-bit type feels.

In a 16-bit type w + ε may round to what w rounds to. Such an element is moved by the state's updates all the same, but
takes no part in the estimate.
"""

from collections.abc import Mapping

import torch

from fedzo.noise import Term
from fedzo.scopes import Kind
from fedzo.state.replica import Replica

_SAMPLE = 1 << 16
"""Elements of a tensor that are looked at, from its first on."""
_SEED = 0
MUCH = 0.5
"""A tensor where more than this share is not felt deserves a warning."""


def unfelt(replica: Replica, epsilon: int, dtype: torch.dtype) -> dict[str, float]:
    """Share of the elements that a direction touches whose weight in `dtype` is the same at +ε as at 0, by tensor.

    Args:
        replica: the weights.
        epsilon: units of 2⁻⁴⁰.
        dtype: compute type; tensors of rank 0 and 1 stay float32 in all, and are left out.
    """
    partial = replica.scope.kind in (Kind.SPARSE, Kind.LAYERS)
    increments = replica.increments([[], [Term(_SEED, 0, epsilon)]])
    found = {}
    for index, spec in enumerate(replica.manifest):
        if spec.is_matrix and spec.size:
            exact = replica.sample(index, min(spec.size, _SAMPLE), increments)
            touched = (exact[0] != exact[1]) | (not partial)
            if bool(touched.any()):
                zero, plus = exact.to(dtype)
                found[spec.name] = float((zero == plus)[touched].double().mean())
    return found


def warning_of(shares: Mapping[str, float], epsilon: float, dtype: str) -> str | None:
    """What to tell whoever chose the type; None where every tensor feels most of the perturbation."""
    worst = max(shares, key=lambda name: shares[name], default=None)
    if worst is None or shares[worst] <= MUCH:
        return None
    many = sum(share > MUCH for share in shares.values())
    return (
        f"warning: in {dtype} {shares[worst]:.0%} of the elements of {worst!r} are the same at ±epsilon {epsilon:g} as "
        f"without it, and more than {MUCH:.0%} in {many} of {len(shares)} tensors: their share of the slope is not "
        "felt. Give a larger --epsilon, or --dtype float32"
    )
