"""Layer blocks: which tensors are brought in together.

A block is a layer, an element of a ModuleList, or else the module that owns a parameter. Of nested lists the
outermost element that has a forward of its own is the layer. A large one may be taken apart into the modules it is made
of: then memory holds less of it at a time, and a lane that waits holds more of its activations. A tied weight belongs
to every block that uses it. What a layer that is taken apart owns itself is a block too. A part is brought in whenever
it is called, so one that calls a part many times pays for each.
"""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from fedzo.base.checkpoint import unique_parameters

LARGE = 1 << 22
"""Elements of a layer that is not worth taking apart."""
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a model's tensors are brought in."""

    layers: tuple[tuple[nn.Module, tuple[int, ...]], ...]
    """Layers, or parts of them: modules at whose forward a block comes in, with its tensor indices."""
    owners: tuple[tuple[nn.Module, tuple[int, ...]], ...]
    """Every module with parameters of its own, and the block that comes in when it reads one."""

    @property
    def tables(self) -> frozenset[int]:
        """Tensors that an embedding outside all layers looks rows up in; a head may use them too."""
        alone = {block[0] for module, block in self.owners if is_table(module) and len(block) == 1}
        return frozenset(alone - self.tied - {index for _, block in self.layers for index in block})

    @property
    def tied(self) -> frozenset[int]:
        """Tensors that more than one block uses."""
        distinct = {block for _, block in (*self.layers, *self.owners)}
        uses = Counter(index for block in distinct for index in block)
        return frozenset(index for index, count in uses.items() if count > 1)


def find_blocks(model: nn.Module, elements: dict[str, int], most: int | None) -> Blocks:
    """Find the blocks of a model.

    Args:
        model: any module.
        elements: of each unique parameter, by its name, in the order of their indices; its own memory may be gone.
        most: elements of a layer; a larger one is taken apart. None takes no layer apart.
    """
    index, sizes = {name: number for number, name in enumerate(elements)}, list(elements.values())
    by_id = {id(parameter): index[name] for name, parameter in unique_parameters(model).items()}

    def parts(module: nn.Module) -> list[nn.Module]:
        """A module, or those it is made of where it is large; what it owns itself comes in when it reads it."""
        children = _elements(module)
        if most is None or not children or sum(sizes[k] for k in _tensors(module, by_id)) <= most:
            return [module]
        return [part for child in children for part in parts(child)]

    layers = [(part, _tensors(part, by_id)) for layer in _layers(model) for part in parts(layer)]
    layer_of = {id(module): block for layer, block in layers for module in layer.modules()}
    owners = []
    for module in model.modules():
        own = {by_id[id(p)] for p in module.parameters(recurse=False) if id(p) in by_id}
        if own:
            owners.append((module, layer_of.get(id(module), tuple(sorted(own)))))
    return Blocks(tuple((layer, block) for layer, block in layers if block), tuple(owners))


def is_table(module: nn.Module) -> bool:
    """A module that looks rows of its weight up, and does nothing else with it."""
    return isinstance(module, nn.Embedding) and module.max_norm is None


def _layers(module: nn.Module) -> list[nn.Module]:
    """Outermost elements of module lists that have a forward."""
    found: list[nn.Module] = []
    for child in module.children():
        found += _elements(child) if isinstance(child, nn.ModuleList) else _layers(child)
    return found


def _elements(container: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in container.children():
        found += _elements(child) if isinstance(child, _CONTAINERS) else [child]
    return found


def _tensors(module: nn.Module, by_id: dict[int, int]) -> tuple[int, ...]:
    return tuple(sorted({by_id[id(p)] for p in module.parameters() if id(p) in by_id}))
