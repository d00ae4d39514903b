"""A client that comes back fetches what it lacks and nothing else, whatever happened to its files meanwhile."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from federation import Federation
from journals import payloads_of
from network import wait_until

from fedzo.journal import read_journal
from fedzo.state.statefile import PAGE_BYTES
from fedzo.wire.steps import encode_step

MOST_FETCHED = 0.25
"""Share of the run's records that a client with its own journal may fetch; gRPC's own greetings count too."""


def flip(name: str, offset: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[offset(len(content))] ^= 4
        (directory / name).write_bytes(content)

    return damage


def cut(name: str, length: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: length(len(content))])

    return damage


def delete(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


class Damage(NamedTuple):
    do: Callable[[Path], object]
    said: str
    fetches_all: bool = False
    """The journal itself has to be fetched again."""


STATE, JOURNAL = "replica.state", "journal"
DAMAGES = (
    Damage(lambda directory: None, "from the state file at position"),
    Damage(flip(STATE, lambda size: PAGE_BYTES + 1000), "its integers do not have the digest it states"),
    Damage(flip(STATE, lambda size: 20), "its first page is torn or damaged"),
    Damage(cut(STATE, lambda size: size - 100), "ends before the last tensor"),
    Damage(cut(STATE, lambda size: 0), "its first page is torn or damaged"),
    Damage(delete(STATE), "from the base and the journal"),
    Damage(cut(JOURNAL, lambda size: size - 9), "is not on this journal"),
    Damage(flip(JOURNAL, lambda size: size // 2), "the copy of the journal is given up and fetched again", True),
    Damage(delete(JOURNAL), "is not on this journal", True),
    Damage(shutil.rmtree, "from the base and the journal", True),
)


def test_a_client_fetches_only_what_its_own_files_lack(federation):
    """With one of two clients away nothing is planned, so that all that is fetched is for catching up."""
    found = federation(rounds=40, clients=2, quorum=2, deadline=3600, directions=8, proxied=True).start()
    found.wait_for_position(26)
    for number in (0, 1):
        found.clients[number].kill()
    records = run_bytes(found)
    assert fetched_after(found, DAMAGES[0]) < MOST_FETCHED * records
    for damage in DAMAGES:
        found.clients[1].signal(signal.SIGTERM)
        assert found.clients[1].wait() == 0, found.clients[1].said
        fetched = fetched_after(found, damage)
        assert fetched > records if damage.fetches_all else fetched < MOST_FETCHED * records, damage.said
    found.start_client(0)
    found.finish()


def fetched_after(found: Federation, damage: Damage) -> int:
    """Bytes that client 1 is sent until it is where the server is, after something was done to its files."""
    damage.do(found.directory(1))
    before = found.proxies[1].down_bytes
    joined = len(found.joins(1))
    client = found.start_client(1)
    wait_until(lambda: len(found.joins(1)) > joined, "the join")
    wait_until(lambda: same_journals(found), "its copy of the journal")
    assert damage.said in client.said
    return found.proxies[1].down_bytes - before


def same_journals(found: Federation) -> bool:
    return (found.directory(1) / JOURNAL).read_bytes() == (found.run / JOURNAL).read_bytes()


def run_bytes(found: Federation) -> int:
    """Of the run's records, as the wire has them."""
    contents, payloads = read_journal(found.run / JOURNAL), payloads_of(found.run / JOURNAL)
    steps = zip(contents.records, payloads[1:], contents.hashes[1:], strict=True)
    return sum(encode_step(contents.genesis, *step).ByteSize() for step in steps)
