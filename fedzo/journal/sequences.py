"""Sequences whose items are made when they are asked for, and those of an excerpt, which lacks the first records.

Positions are those of the whole journal everywhere, so that whoever needs what an excerpt lacks is told so by name.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, overload

from fedzo.errors import ExcerptError
from fedzo.journal.records import Record

Item = TypeVar("Item")


class Made(Sequence[Item], Generic[Item]):
    """A sequence whose items are made when they are asked for; a slice of it is a list."""

    @abstractmethod
    def _item(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        chosen = range(len(self))[index]
        return self._item(chosen) if isinstance(chosen, int) else [self._item(k) for k in chosen]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class LateHashes(Made[bytes]):
    """The record hashes that an excerpt knows; empty bytes at the positions between the genesis and its start.

    Args:
        genesis_hash: at position 0.
        first: position of the start.
        later: from there on; it may grow.
    """

    def __init__(self, genesis_hash: bytes, first: int, later: Sequence[bytes]) -> None:
        self._genesis_hash = genesis_hash
        self._first = first
        self._later = later

    def __len__(self) -> int:
        return self._first + len(self._later)

    def _item(self, index: int) -> bytes:
        if index >= self._first:
            return self._later[index - self._first]
        return self._genesis_hash if index == 0 else b""


class LateRecords(Made[Record]):
    """The records of an excerpt; asking for an earlier one raises ExcerptError.

    Args:
        first: position of the start.
        later: the records after it; it may grow.
    """

    def __init__(self, first: int, later: Sequence[Record]) -> None:
        self._first = first
        self._later = later

    def __len__(self) -> int:
        return self._first + len(self._later)

    def _item(self, index: int) -> Record:
        if index < self._first:
            raise ExcerptError(
                f"record {index + 1} is not in this copy of the journal, which begins with the totals at position "
                f"{self._first}; the run's server has all records"
            )
        return self._later[index - self._first]
