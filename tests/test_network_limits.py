"""What a client's owner can hold against a run that is going on: a pause, and a limit of its memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import fedzo, refused
from fates import SWELL_BYTES
from federation import Federation
from fedzo_client.memory import tier_within
from network import wait_until

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.errors import ConfigError
from fedzo.journal import Commit, read_journal
from fedzo.scopes import ALL
from fedzo.tiers.choice import peak_bytes

GIB = 2.0**30


def committed_by(found: Federation, client: int) -> list[int]:
    """Positions of the commits that a client took part in."""
    records = enumerate(read_journal(found.run / "journal").records, start=1)
    commits = ((position, record.body) for position, record in records if isinstance(record.body, Commit))
    return [position for position, commit in commits if client in {report.client for report in commit.reports}]


def test_a_paused_client_leaves_and_catches_up_when_it_is_resumed(federation):
    found = federation(rounds=100, clients=2, quorum=1, deadline=5, directions=16).start()
    found.wait_for_position(6)
    position = paused(found, 1)
    found.wait_for_position(position + 5)
    alone = paused(found, 0)  # so that the run does not end meanwhile

    found.clients[1].kill()
    found.start_client(1).wait_for(f"paused at position {position}")
    assert f"from the state file at position {position}" in found.clients[1].said
    assert found.joins(1) == [0], "a pause outlives the process"

    for number in (1, 0):
        fedzo("resume", found.directory(number))
    found.finish()
    assert found.joins(1) == [0, position]
    own = committed_by(found, 1)
    assert not [p for p in own if position + 1 < p <= alone]
    assert own[-1] > alone


def paused(found: Federation, number: int) -> int:
    """Pause a client; where it stood when the server had seen it leave."""
    fedzo("pause", found.directory(number))
    found.clients[number].wait_for("paused at position")
    position = re.search(r"paused at position (\d+)", found.clients[number].said)[1]
    wait_until(lambda: f"client-{number} left at position" in found.server.said, "its leave")
    return int(position)


def test_a_pause_needs_a_client(tmp_path):
    assert "is no directory; give the one that the client was given with --dir" in refused("pause", tmp_path / "none")
    assert "no client is paused there" in refused("resume", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads another process's memory from /proc")
def test_a_client_that_outgrows_its_memory_stops_and_keeps_its_place(federation):
    found = federation(rounds=40, clients=2, quorum=1, deadline=5, directions=4)
    found.start_server()
    found.start_client(0)
    usual = f"{(peak_bytes_of(found) + SWELL_BYTES / 2) / GIB:.3f}"
    grown = found.start_client(1, "--max-memory", usual, fate="swell:3")
    assert grown.wait() == 1
    assert re.search(r"has taken \d\.\d\d GiB of memory, but --max-memory allows", grown.said), grown.said
    position = read_journal(found.directory(1) / "journal").position
    found.start_client(1, "--max-memory", usual).wait_for(f"from the state file at position {position}")
    found.finish()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="getrusage counts the parent's memory on Linux")
def test_the_memory_of_what_started_a_process_is_not_its_own():
    swollen = b"\1" * (1 << 29)
    code = "from fedzo.tiers.choice import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < peak_bytes() - len(swollen) // 2


def test_a_compute_copy_counts_where_it_lies_in_memory():
    manifest = Manifest(tuple(TensorSpec(f"t{k:02}", (1 << 12, 1 << 12), 30, 0) for k in range(64)))
    needed = peak_bytes() + 5 * GIB  # a state of 4 GiB, and of two lanes the weights

    def tier(state: str, compute_copy: str) -> str:
        return tier_within(state, manifest, ALL, itemsize=4, compute_copy=compute_copy, most_bytes=needed)

    assert tier("host", "none") == "host"
    assert tier("auto", "bf16") == tier("disk", "bf16") == "disk"
    with pytest.raises(ConfigError, match="6.00 GiB for the replica and its bf16 copy with --state host"):
        tier("host", "bf16")


def peak_bytes_of(found: Federation) -> int:
    """The most memory of client 0 so far, once it has joined."""
    found.wait_for_joins(0, 1)
    status = Path(f"/proc/{found.clients[0].pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
