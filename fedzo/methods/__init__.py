"""Federated methods: which directions a client evaluates, and what its scalars become. One method a file."""

from functools import cache

from fedzo.errors import ConfigError
from fedzo.methods.method import Method, MethodReport, MethodRound, method_reports
from fedzo.plugins import load_named

METHODS = {
    "distinct": "fedzo.methods.distinct:Distinct",
    "shared": "fedzo.methods.shared:Shared",
    "fedkseed": "fedzo.methods.fedkseed:FedKSeed",
    "fedkseed-pro": "fedzo.methods.fedkseed_pro:FedKSeedPro",
    "sign": "fedzo.methods.sign:Sign",
    "feedsign": "fedzo.methods.feedsign:FeedSign",
    "momentum": "fedzo.methods.momentum:Momentum",
    "fzoo": "fedzo.methods.fzoo:Fzoo",
    "spsa15": "fedzo.methods.spsa15:Spsa15",
}
GROUP = "fedzo.methods"
"""Entry point group: a name and a subclass of `Method` without arguments."""


@cache
def get_method(name: str) -> Method:
    """The method of that name, ours or an installed package's; one for all, as it has no state.

    Raises:
        ConfigError: unknown, or not a method.
    """
    method = load_named("method", name, GROUP, METHODS)()
    if not isinstance(method, Method):
        raise ConfigError(f"method {name!r} is a {type(method).__name__}; expected a subclass of fedzo.methods.Method")
    return method


__all__ = ["METHODS", "Method", "MethodReport", "MethodRound", "get_method", "method_reports"]
