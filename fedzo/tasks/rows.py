"""Rows of data: from files (`.txt`, `.jsonl`, `.json`, each also `.gz`), a directory of them, or a hub dataset.

A row is fields, and the text that a task makes of them. `.txt`: every line, under the field `text`. `.jsonl`: an
object or a string a line. `.json`: a list of strings or objects, or an object of lists: {"Romeo": ["line", …], …},
whose keys become the field `key`. `hub:NAME[:CONFIG[:SPLIT]]`: what `datasets.load_dataset` gives, by default the
split `train`.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedzo.errors import ConfigError, DataError

TEXT_FIELD = "text"
KEY_FIELD = "key"
HUB = "hub:"

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of data."""

    text: str
    """What a task made of the fields; empty as read."""
    fields: Fields
    where: str = field(default="", compare=False)
    """File and line, for messages."""


def read_rows(source: str) -> list[Row]:
    """All rows of a file, a directory's files in order of name, or a hub dataset; their text is empty.

    Raises:
        DataError: unreadable, of an unknown kind, or not rows.
        ConfigError: a hub dataset, and the package `datasets` is not installed.
    """
    if source.startswith(HUB):
        return list(_hub_rows(source))
    path = Path(source)
    return list(_directory_rows(path) if path.is_dir() else _file_rows(path))


def missing_field(name: str, fields: Fields, what_to_do: str) -> DataError:
    """The error for a row that lacks a field."""
    return DataError(f"no field {name!r}; it has {', '.join(map(repr, fields)) or 'none'}: {what_to_do}")


def _hub_rows(source: str) -> Iterator[Row]:
    try:
        import datasets  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"{source}: needs the package datasets: pip install -c constraints.txt '.[data]'") from error
    name, _, rest = source.removeprefix(HUB).partition(":")
    config, _, split = rest.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: cannot be loaded ({type(error).__name__}: {error})") from error
    for number, fields in enumerate(loaded):
        yield Row("", dict(fields), f"{source}, row {number}")


def _directory_rows(path: Path) -> Iterator[Row]:
    files = sorted(file for file in path.iterdir() if _kind(file) in _READERS)
    if not files:
        raise DataError(f"{path}: no file there is {', '.join(_READERS)}, each also with .gz")
    for file in files:
        yield from _file_rows(file)


def _kind(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix


def _file_rows(path: Path) -> Iterator[Row]:
    kind = _kind(path)
    if kind not in _READERS:
        raise DataError(f"{path}: unknown kind {kind!r}; known: {', '.join(_READERS)}, each also with .gz")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        decoded = content.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read: {why}") from error
    return _READERS[kind](path, decoded)


def _text(path: Path, content: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        yield _row(f"{path}, line {number}", line.removesuffix("\r"))


def _json_lines(path: Path, content: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _row(f"{path}, line {number}", _parse(f"{path}, line {number}", line))


def _json(path: Path, content: str) -> Iterator[Row]:
    parsed = _parse(str(path), content)
    groups = parsed.items() if isinstance(parsed, dict) else [(None, parsed)]
    for key, items in groups:
        if not isinstance(items, list):
            where = f"{path}, key {key!r}" if key is not None else str(path)
            raise DataError(f"{where}: expected a list of texts or objects, found {type(items).__name__}")
        for number, item in enumerate(items):
            row = _row(f"{path}, item {number}" + (f" of {key!r}" if key is not None else ""), item)
            if key is not None:
                row.fields[KEY_FIELD] = key
            yield row


def _parse(where: str, content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _row(where: str, item: Any) -> Row:
    if isinstance(item, str):
        return Row("", {TEXT_FIELD: item}, where)
    if not isinstance(item, dict):
        raise DataError(f"{where}: expected a text or an object, found {type(item).__name__}")
    return Row("", dict(item), where)


_READERS = {".txt": _text, ".jsonl": _json_lines, ".json": _json}
