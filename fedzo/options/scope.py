"""What directions touch: the scope and its own options."""

from dataclasses import dataclass
from typing import Annotated, Any

from fedzo.options.checks import require_choice, require_range
from fedzo.scopes import Kind, Scope
from fedzo.scopes.scope import MILLION, USUAL


@dataclass(frozen=True, kw_only=True)
class ScopeOptions:
    """A scope's options; whether they go together is checked by the scope itself."""

    scope: Annotated[
        str, "What directions touch: all, sparse, layers, lora, prefix or head (docs/concepts/scopes.md)."
    ] = "all"
    sparsity: Annotated[
        float, "Share of a tensor's elements, the largest, that sparse leaves out; 0: the usual 0.75."
    ] = 0.0
    layers_per_direction: Annotated[int, "Blocks that a direction touches with layers; 0: the usual 1."] = 0
    lora_rank: Annotated[int, "Rank of lora's matrices; 0: the usual 8."] = 0
    lora_alpha: Annotated[float, "Lora's product is scaled by this over the rank; 0: the usual 16."] = 0.0
    lora_targets: Annotated[str, "Modules that lora adapts, NAME,NAME,…; empty: the usual all-linear."] = ""
    virtual_tokens: Annotated[int, "Length of the trained prefix; 0: the usual 5."] = 0

    def check_scope(self) -> None:
        """Raises ConfigError, naming the option."""
        require_range("sparsity", self.sparsity, 0.0, 1.0)
        for name in ("layers_per_direction", "lora_rank", "virtual_tokens"):
            require_range(name, getattr(self, name), 0, 2**16)
        self.scope_spec()

    def usual_of_scope(self) -> dict[str, Any]:
        """What the scope's settings are, as options, where they are left at 0 or empty.

        Raises:
            ConfigError: the scope is unknown.
        """
        require_choice("scope", self.scope, tuple(Kind))
        usual = dict(USUAL[Kind(self.scope)])
        if "sparsity" in usual:
            usual["sparsity"] /= MILLION
        if "lora_targets" in usual:
            usual["lora_targets"] = ",".join(usual["lora_targets"])
        return usual

    def scope_spec(self) -> Scope:
        """What the journal states of the scope.

        Raises:
            ConfigError: it needs another option, or has no use for one; names it.
        """
        require_choice("scope", self.scope, tuple(Kind))
        kind = Kind(self.scope)
        given: dict[str, Any] = {
            "sparsity": round(self.sparsity * MILLION),
            "layers_per_direction": self.layers_per_direction,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_targets": tuple(target for target in self.lora_targets.split(",") if target),
            "virtual_tokens": self.virtual_tokens,
        }
        return Scope(kind=kind, **{**given, **{name: given[name] or usual for name, usual in USUAL[kind].items()}})
