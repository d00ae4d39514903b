"""Checks of an option's value, with the messages that all options have in common."""

from collections.abc import Collection

from fedzo.errors import ConfigError

MOST = 2**32 - 1
"""The most that the journal's counts hold."""


def require_range(name: str, value: float, least: float, most: float) -> None:
    """Raises ConfigError for a number out of range."""
    if not least <= value <= most:
        raise ConfigError(f"option {name.replace('_', '-')} is {value}; expected {least:g} to {most:g}")


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ConfigError for a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} {value!r} is unknown; choose one of: {', '.join(choices)}")


def require_address(what: str, value: str) -> None:
    """Raises ConfigError for what is no HOST:PORT."""
    host, _, port = value.rpartition(":")
    if host == "" or not port.isdigit():
        raise ConfigError(f"{what} is {value!r}; expected HOST:PORT")
