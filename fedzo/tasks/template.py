"""Templates: text with {field} in it, or {field.key.0} for what lies in one. Nothing else of Python's format language,
since a server's template runs on a client's data."""

from string import Formatter
from typing import Any

from fedzo.errors import ConfigError, DataError
from fedzo.tasks.rows import Fields, Row, missing_field


def check_template(option: str, template: str) -> None:
    """Raises ConfigError for a template that is not text with {field} in it."""
    try:
        for _, name, form, conversion in Formatter().parse(template):
            if name is not None and (form or conversion or not _is_path(name)):
                raise ConfigError(
                    f"option {option} is {template!r}: {{{name}}} must be a field's name and nothing more; write {{{{ "
                    "and }} for braces"
                )
    except ValueError as error:
        raise ConfigError(f"option {option} is {template!r}: {error}; write {{{{ and }}}} for braces") from error


def fill(template: str, fields: Fields) -> str:
    """The template with a row's fields in place.

    Raises:
        DataError: the row lacks one.
    """
    parts = []
    for text, name, _, _ in Formatter().parse(template):
        parts.append(text)
        if name is not None:
            parts.append(str(value_at(name, fields, f"the template {template!r} names it")))
    return "".join(parts)


def value_at(path: str, fields: Fields, what_to_do: str) -> Any:
    """A field, or what lies in it: `answers.text.0` is the first item of the list `text` in the field `answers`.

    Raises:
        DataError: it is not there; `what_to_do` ends the message.
    """
    name, *keys = path.split(".")
    if name not in fields:
        raise missing_field(name, fields, what_to_do)
    value = fields[name]
    for key in keys:
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"field {name!r} has nothing at {path!r}: {what_to_do}") from error
    return value


def value_of(path: str, row: Row) -> Any:
    """As `value_at`, of a row at a path that only a task's file can name; DataError names the row's place too."""
    try:
        return value_at(path, row.fields, "the task's file names it")
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


def _is_path(name: str) -> bool:
    first, *keys = name.split(".")
    return first.isidentifier() and all(key.isidentifier() or key.isdecimal() for key in keys)
