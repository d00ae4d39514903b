"""Parameters that a scope leaves out of the manifest: they stay in the model, and no replica holds them."""

from collections.abc import Collection

from torch import nn


class FrozenParameter(nn.Parameter):
    """A parameter that is read like any other, and is none for `fedzo.base.checkpoint.unique_parameters`."""


class Frozen:
    """Freezes a model's other parameters, in float32, until `thaw`.

    Args:
        model: any module.
        trained: the parameters that are left alone.
    """

    def __init__(self, model: nn.Module, trained: Collection[nn.Parameter]) -> None:
        kept = {id(parameter) for parameter in trained}
        others = [parameter for parameter in model.parameters() if id(parameter) not in kept]
        self._kinds = [(parameter, type(parameter)) for parameter in others]
        for parameter in others:
            parameter.data = parameter.data.float()
            parameter.__class__ = FrozenParameter

    def thaw(self) -> None:
        """Make them what they were."""
        for parameter, kind in self._kinds:
            parameter.__class__ = kind
