"""Rows of text from files: `.txt`, `.jsonl`, `.json`, each also `.gz`.

A row is a text and the fields beside it. `.txt`: every line that is not blank. `.jsonl`: an object a line. `.json`: a
list of strings or objects, or an object of lists: {"Romeo": ["line", …], …}, whose keys become the field `key`.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedzo.errors import DataError

KEY_FIELD = "key"


@dataclass(frozen=True, slots=True)
class Row:
    """One example's text and its other fields."""

    text: str
    fields: dict[str, Any]


def read_rows(path: Path, text_field: str) -> list[Row]:
    """All rows of a file, in order; rows whose text is blank are left out.

    Raises:
        DataError: unreadable, of an unknown kind, a row without the text field, or no text at all.
    """
    kind = Path(path.stem if path.suffix == ".gz" else path.name).suffix
    readers = {".txt": _text, ".jsonl": _json_lines, ".json": _json}
    if kind not in readers:
        raise DataError(f"{path}: unknown kind {kind!r}; known: {', '.join(readers)}, each also with .gz")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        rows = list(readers[kind](path, content.decode(), text_field))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    rows = [row for row in rows if row.text.strip()]
    if not rows:
        raise DataError(f"{path}: holds no text")
    return rows


def _text(path: Path, content: str, text_field: str) -> Iterator[Row]:
    return (Row(line.removesuffix("\r"), {}) for line in content.split("\n"))


def _json_lines(path: Path, content: str, text_field: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _row(f"{path}, line {number}", _parse(f"{path}, line {number}", line), text_field)


def _json(path: Path, content: str, text_field: str) -> Iterator[Row]:
    parsed = _parse(str(path), content)
    groups = parsed.items() if isinstance(parsed, dict) else [(None, parsed)]
    for key, items in groups:
        if not isinstance(items, list):
            where = f"{path}, key {key!r}" if key is not None else str(path)
            raise DataError(f"{where}: expected a list of texts or objects, found {type(items).__name__}")
        for number, item in enumerate(items):
            where = f"{path}, item {number}" + (f" of {key!r}" if key is not None else "")
            row = Row(item, {}) if isinstance(item, str) else _row(where, item, text_field)
            if key is not None:
                row.fields[KEY_FIELD] = key
            yield row


def _parse(where: str, content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _row(where: str, item: Any, text_field: str) -> Row:
    if not isinstance(item, dict):
        raise DataError(f"{where}: expected an object, found {type(item).__name__}")
    if text_field not in item:
        raise DataError(
            f"{where}: no field {text_field!r}; it has {', '.join(map(repr, item)) or 'none'}: name the text's field "
            "with --text-field"
        )
    if not isinstance(item[text_field], str):
        raise DataError(f"{where}: field {text_field!r} is {type(item[text_field]).__name__}, expected text")
    return Row(item[text_field], {name: value for name, value in item.items() if name != text_field})
