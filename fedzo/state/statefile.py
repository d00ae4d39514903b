"""A replica's state on disk, a cache of base + journal that survives being killed at any moment.

The file's form is in `fedzo.tiers.page`. Guaranteed: a file that loads is the state it names, to the bit (its digest
is recomputed). Not guaranteed: that there is one; then the replica is rebuilt by replay.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from fedzo.errors import StateFileError
from fedzo.state.replica import Replica
from fedzo.tiers.page import PAGE_BYTES, read_page

_CHUNK_BYTES = 1 << 24


def save_state(path: Path, replica: Replica) -> None:
    """Make a replica's state durable; where it lives in this file and is clean at an earlier position, that will do.

    Raises:
        StateFileError: the disk refused; the file is left dirty and will not load.
    """
    replica.keep(path)


def load_state(path: Path, replica: Replica, hashes: Sequence[bytes]) -> None:
    """Read a state into a replica of the same manifest, and set its position and record hash (not its totals).

    Args:
        path: the file; where the replica's integers live in it, it is checked and left where it is.
        replica: overwritten, only when the file is clean, whole and of this journal.
        hashes: the journal's record hash at every position.

    Raises:
        StateFileError: absent, dirty, damaged, or not of this journal; the replica must then be rebuilt.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            page = read_page(path, descriptor)
            if page.manifest_digest != replica.manifest.digest():
                raise StateFileError(f"{path}: belongs to another manifest")
            if page.position >= len(hashes) or hashes[page.position] != page.record_hash:
                raise StateFileError(f"{path}: its position {page.position} is not on this journal")
            if _digest_of(path, descriptor, replica) != page.state_digest:
                raise StateFileError(f"{path}: its integers do not have the digest it states")
            replica.load(path, page)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StateFileError(f"{path}: cannot be read: {error.strerror}") from error


def _digest_of(path: Path, descriptor: int, replica: Replica) -> bytes:
    """The state digest of the integers in a file, without holding them."""
    hasher = blake3(replica.manifest.to_bytes())
    offset = PAGE_BYTES
    for spec in replica.manifest:
        own, end = blake3(max_threads=replica.threads), offset + 4 * spec.size
        while offset < end:
            part = os.pread(descriptor, min(end - offset, _CHUNK_BYTES), offset)
            if not part:
                raise StateFileError(f"{path}: ends before the last tensor")
            own.update(part)
            offset += len(part)
        hasher.update(own.digest())
    return hasher.digest()
