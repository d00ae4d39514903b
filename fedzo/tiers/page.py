"""The first page of a state file: what the integers after it are.

    page      4096 bytes: magic, u8 clean, u64 position, record hash, state digest, manifest digest, BLAKE3 of these
    integers  int32 of every tensor, in manifest order

Writing in place is safe by order alone: the dirty page is durable before the first integer is written, and the
integers before the clean page.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from fedzo.errors import StateFileError

MAGIC = b"fedzo-state-1\n\0\0"
PAGE_BYTES = 4096
_PAGE = struct.Struct("<16sBQ32s32s32s")


class Page(NamedTuple):
    """What a clean state file holds."""

    position: int
    record_hash: bytes
    state_digest: bytes
    manifest_digest: bytes


def write_page(descriptor: int, page: Page | None) -> None:
    """Make a page durable, after everything written before; None says that the integers are being changed.

    Raises:
        OSError: the disk refused.
    """
    if page is not None:
        os.fsync(descriptor)
    fields = page or Page(0, bytes(32), bytes(32), bytes(32))
    body = _PAGE.pack(MAGIC, page is not None, *fields)
    write_at(descriptor, 0, (body + blake3(body).digest()).ljust(PAGE_BYTES, b"\0"))
    os.fsync(descriptor)


def read_page(path: Path, descriptor: int) -> Page:
    """The page of a clean file.

    Raises:
        StateFileError: it is torn, damaged, of another format, or says that the integers were being changed.
    """
    page = os.pread(descriptor, PAGE_BYTES, 0)
    body, checksum = page[: _PAGE.size], page[_PAGE.size : _PAGE.size + 32]
    if len(page) < PAGE_BYTES or blake3(body).digest() != checksum:
        raise StateFileError(f"{path}: its first page is torn or damaged")
    magic, clean, *fields = _PAGE.unpack(body)
    if magic != MAGIC:
        raise StateFileError(f"{path}: begins with {magic!r}, expected {MAGIC!r}")
    if not clean:
        raise StateFileError(f"{path}: was being written when its process ended")
    return Page(*fields)


def read_at(descriptor: int, offset: int, view: memoryview, least: int | None = None) -> None:
    """Fill `view`, however often the system has to be asked.

    Args:
        descriptor: of the file.
        offset: in bytes.
        view: where to.
        least: bytes after which the file may end; all of the view where not given.

    Raises:
        EOFError: the file ends before.
    """
    done = 0
    while done < (len(view) if least is None else least):
        got = os.preadv(descriptor, [view[done:]], offset + done)
        if not got:
            raise EOFError
        done += got


def write_at(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    """All of `data`, however often the system has to be asked."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)
