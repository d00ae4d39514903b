"""Options that are left at 0, or empty, for what is usual with the method, the aggregation, the scope or the buffer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fedzo.options.method import MethodOptions
from fedzo.options.rounds import AsynchronousOptions
from fedzo.options.scope import ScopeOptions


@dataclass(frozen=True, kw_only=True)
class _Left(ScopeOptions, AsynchronousOptions, MethodOptions):
    """The groups that have such options; unchecked."""


def with_usual(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are written down, so that what a run began with does not hang on what is usual later.

    Args:
        values: parsed options by field name, of any group; what is missing is as by default.

    Returns:
        All of them, and what is usual in place of a 0 or nothing.

    Raises:
        ConfigError: method or scope is unknown.
    """
    left = _Left(**{field.name: values[field.name] for field in fields(_Left) if field.name in values})
    usual = left.usual_of_method() | left.usual_of_asynchronous() | left.usual_of_scope()
    return {**values, **{name: values.get(name) or value for name, value in usual.items()}}
