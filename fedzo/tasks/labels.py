"""Label values: which field holds them, which there are, and how each is said."""

from collections.abc import Iterable

from fedzo.errors import ConfigError, DataError
from fedzo.journal import records
from fedzo.tasks.rows import Row, missing_field

FEWEST = 2


def parse_labels(given: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`0=terrible,1=great` → the values, and how each is said; a value without `=` is said as it is.

    Raises:
        ConfigError: fewer than two, or one twice.
    """
    pairs = [part.partition("=") for part in given.split(",")]
    values = tuple(value.strip() for value, _, _ in pairs)
    said = tuple(word.strip() if separator else value.strip() for value, separator, word in pairs)
    if len(values) < FEWEST or len(set(values)) < len(values) or "" in values or "" in said:
        raise ConfigError(
            f"option labels is {given!r}; give VALUE=WORD,VALUE=WORD,… with two values or more, each once"
        )
    return values, said


def find_labels(rows: Iterable[Row], label_field: str) -> str:
    """The distinct values of a field, sorted, as `parse_labels` takes them.

    Raises:
        DataError: a row lacks the field.
    """
    values = {label_of(row, label_field) for row in rows}
    return ",".join(sorted(values))


def label_of(row: Row, label_field: str) -> str:
    """A row's label value as text. Raises DataError where the field is missing."""
    if label_field not in row.fields:
        hint = "name the label's field with --label-field, or label-field in the task's file"
        raise DataError(f"{row.where}: {missing_field(label_field, row.fields, hint)}")
    return str(row.fields[label_field])


def class_of(spec: records.Task, row: Row) -> int:
    """The number of a row's label. Raises DataError for a value that the task does not know."""
    value = label_of(row, spec.label_field)
    if value not in spec.labels:
        raise DataError(f"{row.where}: label {value!r} is unknown; the task knows {', '.join(spec.labels)}")
    return spec.labels.index(value)
