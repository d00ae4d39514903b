"""Options: frozen dataclasses whose fields are the command line's options and a TOML file's keys alike.

A field's help is its annotation, `Annotated[int, "what it is"]`, so that the command line, the file and the
reference page have one source. Untyped input is parsed here, once; an unknown key names the nearest known one, or all.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from fedzo.errors import ConfigError

Options = TypeVar("Options")


def option_name(field_name: str) -> str:
    """`batch_size` → `batch-size`: how an option is spelled outside Python."""
    return field_name.replace("_", "-")


def option_types(options: type[Any]) -> dict[str, tuple[type[Any], str]]:
    """Field name → (type, help)."""
    found = {}
    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, text = get_args(hint)
        found[name] = (kind, text)
    return found


def default_of(field: Field[Any]) -> Any:
    """A field's default, or MISSING where it must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's top table.

    Raises:
        ConfigError: unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def parse_options(options: type[Options], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check untyped values against the fields of a dataclass; keys in either spelling.

    Raises:
        ConfigError: an unknown key (names the nearest known one, or all where none is near) or a value of another type.
    """
    known = option_types(options)
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"the nearest known one is {option_name(near[0])!r}" if near else f"choose one of: {_names(known)}"
            raise ConfigError(f"{source}: option {key!r} is unknown; {hint}")
        if name in parsed:
            raise ConfigError(f"{source}: option {option_name(name)!r} is given twice, in both spellings")
        parsed[name] = _typed(f"{source}: option {key!r}", value, known[name][0])
    return parsed


def make_options(options: type[Options], values: Mapping[str, Any]) -> Options:
    """Build the options from parsed values.

    Raises:
        ConfigError: one that must be given is not, or a check of the options fails.
    """
    for field in fields(options):  # type: ignore[arg-type]
        if default_of(field) is MISSING and field.name not in values:
            raise ConfigError(f"option --{option_name(field.name)} must be given (on the command line or in --config)")
    return options(**values)


def write_toml(path: Path, options: Any) -> None:
    """Write every option that has a value, in the file's spelling, durably: the file is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    values = {option_name(f.name): getattr(options, f.name) for f in fields(options)}
    with partial.open("w") as file:
        file.write(tomli_w.dumps({name: value for name, value in values.items() if value is not None}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _names(known: Iterable[str]) -> str:
    return ", ".join(map(option_name, known))


def _typed(where: str, value: Any, kind: Any) -> Any:
    holder = get_origin(kind)
    kinds = (holder,) if holder in (dict, list) else get_args(kind) or (kind,)
    allowed = tuple(k for k in kinds if k is not type(None))
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) is not (bool in allowed) or not isinstance(value, allowed):
        names = " or ".join(k.__name__ for k in allowed)
        raise ConfigError(f"{where} is {value!r}; expected {names}")
    return value
