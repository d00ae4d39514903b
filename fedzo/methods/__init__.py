"""Federated methods: which directions a client evaluates, and what its scalars become. One method a file."""

from fedzo.errors import ConfigError
from fedzo.methods.distinct import Distinct
from fedzo.methods.method import Method, MethodReport

METHODS: dict[str, Method] = {"distinct": Distinct()}
_PLANNED = ("shared", "fedkseed")


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: unknown, or not built yet.
    """
    if name in METHODS:
        return METHODS[name]
    known = ", ".join(sorted(METHODS))
    what = "is not built yet" if name in _PLANNED else "is unknown"
    raise ConfigError(f"method {name!r} {what}; choose one of: {known}")


__all__ = ["METHODS", "Method", "MethodReport", "get_method"]
