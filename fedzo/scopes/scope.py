"""What a genesis says of its scope: the kind, and the settings of that kind."""

from dataclasses import dataclass, fields
from enum import StrEnum
from math import isfinite
from typing import Any

from fedzo.errors import ConfigError

MILLION = 1_000_000


class Kind(StrEnum):
    """What of a model a direction touches."""

    ALL = "all"
    SPARSE = "sparse"
    LAYERS = "layers"
    LORA = "lora"
    PREFIX = "prefix"
    HEAD = "head"


USUAL: dict[Kind, dict[str, Any]] = {
    Kind.ALL: {},
    Kind.SPARSE: {"sparsity": 3 * MILLION // 4},
    Kind.LAYERS: {"layers_per_direction": 1},
    Kind.LORA: {"lora_rank": 8, "lora_alpha": 16.0, "lora_targets": ("all-linear",)},
    Kind.PREFIX: {"virtual_tokens": 5},
    Kind.HEAD: {},
}
"""The settings of each kind, and what they are where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Fixed for a journal. A setting is set where its kind uses it, and nowhere else.

    Raises:
        ConfigError: it is not, or is out of range; names it.
    """

    kind: Kind = Kind.ALL
    sparsity: int = 0
    """Share of a tensor's elements that directions leave out, the largest in magnitude; in millionths."""
    layers_per_direction: int = 0
    """How many of the model's blocks a direction touches."""
    lora_rank: int = 0
    lora_alpha: float = 0.0
    """LoRA's product is scaled by alpha / rank."""
    lora_targets: tuple[str, ...] = ()
    """Names, or ends of names, of the modules that get an adapter; `all-linear` alone is every linear layer."""
    virtual_tokens: int = 0
    """Length of the trained prefix."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "kind" and (getattr(self, field.name) != field.default) != self.uses(field.name):
                need = "needs" if self.uses(field.name) else "has no use for"
                option = field.name.replace("_", "-")
                raise ConfigError(f"scope {self.kind.value!r} {need} {option}, which is {getattr(self, field.name)}")
        if self.kind is Kind.SPARSE and not 0 < self.sparsity < MILLION:
            raise ConfigError(f"sparsity is {self.sparsity / MILLION:g}; expected more than 0 and less than 1")
        if self.kind is Kind.LORA and not (isfinite(self.lora_alpha) and self.lora_alpha > 0):
            raise ConfigError(f"lora-alpha is {self.lora_alpha}; expected a number above 0")

    def uses(self, setting: str) -> bool:
        """Does this kind have that setting?"""
        return setting in USUAL[self.kind]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that this kind has, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if self.uses(field.name)}

    def describe(self) -> str:
        """The kind and its settings, for people."""
        said = (f"{name.replace('_', '-')} {value}" for name, value in self.settings.items())
        return " ".join([repr(self.kind.value), *([f"({', '.join(said)})"] if self.settings else [])])

    def state_bytes(self, elements: int) -> int:
        """Memory of a state of so many elements: four bytes each, and of a mask a bit each."""
        return 4 * elements + (elements // 8 if self.kind is Kind.SPARSE else 0)

    @property
    def adapts(self) -> bool:
        """The trained tensors are those of a peft adapter."""
        return self.kind in (Kind.LORA, Kind.PREFIX)

    @property
    def freezes(self) -> bool:
        """The manifest lists some of the model's tensors only; the others stay as they are."""
        return self.adapts or self.kind is Kind.HEAD


ALL = Scope()
