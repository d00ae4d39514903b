"""fedzo: federated zeroth-order fine-tuning with replicas that agree to the bit.

Its functions load torch and transformers when they are first named; `import fedzo` alone does not.
"""

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedzo.results.tuned import apply_artifact, tuned_model

    simulate: Any
    """`fedzo_simulations.api.simulate`."""
else:

    def __getattr__(name: str) -> object:
        if name == "simulate":  # of another package, which comes in as commands do
            (point,) = entry_points(group="fedzo.api", name=name)
            return point.load()
        if name in __all__:
            return getattr(import_module("fedzo.results.tuned"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["apply_artifact", "simulate", "tuned_model"]
