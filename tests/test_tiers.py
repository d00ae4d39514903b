"""The state's tiers: the same bits from memory and from a file streamed through small buffers, and nothing lost."""

import copy
import errno
import os
import random
import subprocess
from mmap import mmap
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from blake3 import blake3
from commands import FEDZO, fedzo, simulate_options
from helpers import Victims, counted_reads, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from test_estimate import EPSILON, load, plain_loss
from test_simulate import wait_for_progress
from transformers import LlamaConfig, LlamaForCausalLM

from fedzo.base.checkpoint import Base, base_digest, load_base
from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.errors import ReplicaError, StateFileError
from fedzo.estimate import Estimator
from fedzo.journal import Commit, Entry, Record
from fedzo.noise import Distribution, get_backend
from fedzo.state.replica import Replica
from fedzo.state.statefile import load_state, save_state
from fedzo.tiers.disk import DiskStore
from fedzo.tiers.host import HostStore
from fedzo.tiers.page import write_at

MANIFEST = Manifest(
    (
        TensorSpec("a", (7,), 29, 2**29),
        TensorSpec("b", (33, 129), 28, 2**28),
        TensorSpec("c", (), 29, 1),
        TensorSpec("d", (0, 4), 29, 0),
        TensorSpec("e", (257, 19), 20, 2**28),
    )
)
HASHES = [blake3(position.to_bytes(2)).digest() for position in range(20_000)]
ENTRIES = st.lists(st.tuples(st.integers(0, 9), st.integers(-(2**42), 2**42)), max_size=6)


def states() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**28), 2**28, (MANIFEST.elements,), dtype=torch.int32, generator=generator)


def on_disk(path: Path, distribution=Distribution.RADEMACHER, buffer_elements=1000, cached=True) -> Replica:
    """A replica of fixed integers at position 0, in a file read a thousand integers at a time."""
    store = DiskStore(path, MANIFEST, buffer_elements=buffer_elements, cached=cached)
    store.write(0, states())
    replica = Replica(MANIFEST, store, distribution, threads=2)
    replica.record_hash = HASHES[0]
    return replica


def in_memory(distribution=Distribution.RADEMACHER, backend="reference") -> Replica:
    replica = Replica(MANIFEST, states(), distribution, backend=get_backend(backend))
    replica.record_hash = HASHES[0]
    return replica


def commit(position: int, entries) -> Record:
    return Record(position, Commit(tuple(Entry(*entry) for entry in entries), 0.1, ()))


def weights(replica: Replica, lanes) -> list[torch.Tensor]:
    """Every tensor materialised by itself, then all together."""
    increments = replica.increments([replica.overlay(*lane) for lane in lanes])
    made = []
    for tensors in (*([k] for k in range(len(MANIFEST))), range(len(MANIFEST))):
        targets = [MANIFEST.starts[k] - MANIFEST.starts[tensors[0]] for k in tensors]
        out = torch.zeros(len(lanes), sum(MANIFEST.tensors[k].size for k in tensors))
        replica.materialise(tensors, targets, increments, out)
        made.append(out)
    return made


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(Distribution), st.sampled_from([1, 64, 1000, 10**6]), st.lists(ENTRIES, max_size=8), st.data())
def test_a_state_on_disk_is_the_state_in_memory(tmp_path_factory, distribution, buffer_elements, rounds, data):
    path, cached = tmp_path_factory.mktemp("tier") / "state", data.draw(st.booleans())
    disk = on_disk(path, distribution, max(buffer_elements, 64), cached)
    memory = in_memory(distribution)
    disk.store.patience = data.draw(st.integers(0, 3))
    for position, entries in enumerate(rounds, start=1):
        for replica in (disk, memory):
            replica.apply(commit(position, entries), HASHES[position])
        lanes = [({3: 5 * 10**9}, [(4, 10**9)]), ({}, []), ({1: -(10**10)}, [])]
        assert all(map(torch.equal, weights(disk, lanes), weights(memory, lanes)))
    assert disk.maxima() == memory.maxima()
    assert disk.digest() == memory.digest()
    assert torch.equal(disk.state, memory.state)
    for entries in reversed(rounds):
        disk.add(Entry(seed, -coefficient) for seed, coefficient in entries)
    assert disk.digest() == in_memory().digest()


def test_few_entries_stay_an_overlay_and_the_file_is_clean_behind_them(tmp_path):
    path = tmp_path / "state"
    disk, memory = on_disk(path), in_memory()
    records = [commit(position, [(position, 10**10)]) for position in range(1, 41)]
    written = []
    for record, record_hash in zip(records, HASHES[1:], strict=False):
        disk.apply(record, record_hash)
        memory.apply(record, record_hash)
        save_state(path, disk)
        found = Replica(MANIFEST, states(), Distribution.RADEMACHER)
        load_state(path, found, HASHES)
        written.append(found.position)
        found.resume(records[: disk.position], HASHES[: disk.position + 1])
        assert found.digest() == memory.digest()
    assert written == [1] * 17 + [18] * 17 + [35] * 6
    assert disk.digest() == memory.digest()


def test_what_was_read_ahead_is_what_is_there_now(tmp_path):
    """Blocks expected, then not asked for, asked for in another order, or changed in between."""
    disk, memory = on_disk(tmp_path / "state"), in_memory()
    disk.store.reserve(MANIFEST.elements)
    chance = random.Random(5)
    for position in range(1, 60):
        disk.expect([tuple(chance.sample(range(5), 2)) for _ in range(3)])
        block = sorted(chance.sample(range(5), 2))
        for replica in (disk, memory):
            if position % 7 == 0:
                replica.add(Entry(seed, position * 10**8) for seed in range(20))
        for tensor in block:
            assert torch.equal(disk.weights(tensor), memory.weights(tensor))


def bytes_from_disk() -> int:
    """What this process has had the disk read so far."""
    return int(Path("/proc/self/io").read_text().split("\nread_bytes:")[1].split()[0])


def require_direct_reads(directory: Path) -> None:
    """Skip where files there have no reads past the page cache; some file systems take them and read from memory."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no reads past its page cache")
    probe = directory / "probe"
    probe.write_bytes(bytes(1 << 20))
    before = bytes_from_disk()
    try:
        descriptor = os.open(probe, os.O_RDONLY | os.O_DIRECT)
        with mmap(-1, 1 << 20) as buffer:
            os.readv(descriptor, [buffer])
        os.close(descriptor)
    except OSError:
        pytest.skip(f"{directory}: its file system has no reads past the page cache")
    if bytes_from_disk() - before < 1 << 20:
        pytest.skip(f"{directory}: its file system lies in memory")


def test_a_file_that_memory_could_not_hold_is_read_past_the_page_cache(tmp_path):
    """Just written, it lies in the page cache: from there no byte of it is read from the disk."""
    require_direct_reads(tmp_path)
    manifest = Manifest((TensorSpec("w", (3_000_001,), 29, 2**29),))
    integers = torch.arange(manifest.elements, dtype=torch.int32)
    for cached in (True, False):
        store = DiskStore(tmp_path / f"cached-{cached}", manifest, cached=cached)
        store.write(0, integers)
        os.fsync(store._descriptor)
        before = bytes_from_disk()
        found = torch.cat([piece.integers.clone() for piece in store.read([0])])
        assert torch.equal(found, integers)
        assert (bytes_from_disk() - before < integers.nbytes / 2) == cached


def test_a_file_system_that_refuses_direct_reads_is_read_through_the_cache(tmp_path, monkeypatch):
    """Some say so when a file is opened, others when it is read."""
    require_direct_reads(tmp_path)
    opened, refused = os.open, []

    def refuse(path, flags, *rest):
        if flags & os.O_DIRECT:
            refused.append("open")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert on_disk(tmp_path / "open", cached=False).digest() == in_memory().digest()
    disk = on_disk(tmp_path / "read", cached=False)
    direct, preadv = disk.store._pages._descriptor, os.preadv

    def refuse_to_read(descriptor, *rest):
        if descriptor == direct:
            refused.append("read")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(descriptor, *rest)

    monkeypatch.setattr(os, "preadv", refuse_to_read)
    assert disk.digest() == in_memory().digest()
    assert refused == ["open", "read"]


def test_an_error_in_the_middle_of_a_pass_leaves_nothing_behind(tmp_path):
    disk, memory = on_disk(tmp_path / "state"), in_memory()
    disk.expect([(1,), (4,)])
    pieces = disk.store.read((1,))
    next(pieces)
    pieces.close()
    assert torch.equal(disk.weights(4), memory.weights(4))


def test_a_state_that_is_not_this_replicas_own_is_refused(tmp_path):
    disk = on_disk(tmp_path / "state")
    save_state(tmp_path / "other", in_memory())
    with pytest.raises(StateFileError, match=r"lives in .*/state"):
        load_state(tmp_path / "other", disk, HASHES)


@pytest.mark.slow
def test_a_disk_without_room_is_an_error_that_names_the_file(tmp_path):
    script = """
import resource, signal, sys
from pathlib import Path
from test_tiers import MANIFEST
from fedzo.errors import StateFileError
from fedzo.tiers.disk import DiskStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
try:
    DiskStore(Path(sys.argv[1]), MANIFEST)
except StateFileError as error:
    print(error)
"""
    said = run_python(script, tmp_path / "state")
    assert said.startswith(f"{tmp_path / 'state'}: a state of {4 * MANIFEST.elements:,} bytes cannot be kept there")


def test_a_file_has_one_user_at_a_time(tmp_path):
    disk = on_disk(tmp_path / "state")
    save_state(tmp_path / "state", disk)
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(StateFileError, match="works with it"):
        DiskStore(tmp_path / "state", Manifest(MANIFEST.tensors[:1]))
    assert (tmp_path / "state").read_bytes() == before
    del disk
    DiskStore(tmp_path / "state", MANIFEST)


def test_resuming_twice_keeps_what_waits(tmp_path):
    """As engines do that follow a journal which other processes write."""
    disk, memory = on_disk(tmp_path / "state"), in_memory()
    records = [commit(position, [(position, 10**10)]) for position in range(1, 13)]
    for replica in (disk, memory):
        replica.resume(records[:7], HASHES[:8])
        replica.resume(records, HASHES[:13])
    assert disk.digest() == memory.digest()


def test_a_digest_leaves_the_file_clean(tmp_path):
    disk = on_disk(tmp_path / "state")
    for position in range(1, 5):
        disk.apply(commit(position, [(position, 10**10)]), HASHES[position])
    assert disk.digest()
    found = in_memory()
    load_state(tmp_path / "state", found, HASHES)
    assert (found.position, found.digest()) == (4, disk.digest())


@pytest.mark.parametrize("change", ["rewrite", "fill"])
def test_what_failed_half_way_is_never_taken_for_a_state(tmp_path, monkeypatch, tiny_model, change):
    base = load_base(tiny_model)
    path = tmp_path / "state"
    disk = Replica.from_base(
        base, Distribution.RADEMACHER, place=lambda manifest: DiskStore(path, manifest, buffer_elements=500)
    )
    disk.record_hash = HASHES[0]
    save_state(path, disk)
    whole, writes = disk.digest(), []

    def failing(descriptor, offset, data):
        writes.append(offset)
        if len(writes) == 3:
            raise OSError(5, "Input/output error")
        return write_at(descriptor, offset, data)

    monkeypatch.setattr("fedzo.tiers.disk.write_at", failing)
    if change == "fill":
        disk.take(load_base(tiny_model))
    with pytest.raises(StateFileError, match="Input/output error"):
        disk.fill() if change == "fill" else disk.add(Entry(seed, 10**9) for seed in range(99))
    monkeypatch.undo()
    for use in (
        disk.digest,
        lambda: save_state(path, disk),
        lambda: disk.weights(0) if change == "rewrite" else disk.maxima(),
    ):
        with pytest.raises(ReplicaError, match="failed half way"):
            use()
    with pytest.raises(StateFileError, match="was being written"):
        load_state(path, disk, HASHES)
    disk.take(load_base(tiny_model))
    disk.fill()
    assert disk.digest() == whole


REWRITING = """
from pathlib import Path
from test_tiers import HASHES, commit, on_disk

def work(path, say):
    replica = on_disk(Path(path))
    replica.store.patience = 4  # the file is rewritten every fifth time, and clean in between
    for position in range(1, 20_000):
        replica.apply(commit(position, [(position, 10**10)]), HASHES[position])
        say(position)
"""


@pytest.mark.slow
def test_killed_at_any_moment_of_a_rewrite_what_loads_is_right(tmp_path):
    chance = random.Random(11)
    loaded = 0
    with Victims(REWRITING) as victims:
        for trial in range(120):
            if trial >= 12 and loaded:
                break  # a slow disk is rarely met between two passes
            path = tmp_path / str(trial)
            said = victims.run_and_kill(path, chance.uniform(0, 0.05))
            found = in_memory(backend="auto")
            try:
                load_state(path, found, HASHES)
            except StateFileError as error:
                assert "was being written" in str(error)  # noqa: PT017 (any other refusal would be damage)
                continue
            loaded += 1
            assert int(said[-1]) - 4 <= found.position <= int(said[-1]) + 1
            straight = in_memory(backend="auto")
            straight.add(Entry(position, 10**10) for position in range(1, found.position + 1))
            assert found.digest() == straight.digest()
    assert loaded


@pytest.mark.parametrize("apart", [False, True], ids=["layers whole", "layers apart"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_lockstep_losses_from_disk_are_the_plain_forwards_bit_for_bit(name, apart, tmp_path, monkeypatch):
    """At 0 and ±ε, with entries in the file and others over it; a short run's digest is that of the tier in memory."""
    if apart:
        monkeypatch.setattr("fedzo.estimate.estimator.LARGE", 0)
    torch.manual_seed(0)
    model, batch = ARCHITECTURES[name]()
    plain, other = copy.deepcopy(model).eval(), copy.deepcopy(model)
    base = Base("made here", model, base_digest(model))
    disk = Replica.from_base(
        base,
        Distribution.RADEMACHER,
        threads=2,
        place=lambda manifest: DiskStore(tmp_path / "state", manifest, buffer_elements=300),
    )
    memory = Replica.from_base(Base("made here", other, base.digest), Distribution.RADEMACHER)
    estimators = Estimator(model, disk), Estimator(other, memory)
    for step in range(3):
        found = [estimator.losses(batch, [(5, (0, EPSILON, -EPSILON))]) for estimator in estimators]
        assert found[0] == found[1]
        for loss, perturbation in zip(found[0][0], ([], [(5, EPSILON)], [(5, -EPSILON)]), strict=True):
            load(plain, disk, perturbation)
            assert loss == plain_loss(plain, batch)
        for replica, ((_, plus, minus),) in zip((disk, memory), found, strict=True):
            replica.add(Entry(100 * step + k, (k + 1) * 10**8) for k in range(30 * step + 1))
            replica.add([Entry(5, round((minus - plus) * 2**40))])
    assert disk.digest() == memory.digest()
    assert isinstance(memory.store, HostStore)


def test_many_directions_in_a_pass_read_once_and_take_the_weights_of_one(tmp_path, monkeypatch):
    """Losses are those of a direction at a time, with entries in the file and others over it."""
    torch.manual_seed(0)
    model, batch = ARCHITECTURES["llama"]()
    read = counted_reads(monkeypatch)
    found = []
    for directions in (1, 4, 16):
        mine = copy.deepcopy(model)
        replica = Replica.from_base(
            Base("made here", mine, base_digest(mine)),
            Distribution.RADEMACHER,
            place=lambda manifest, name=str(directions): DiskStore(tmp_path / name, manifest, buffer_elements=300),
        )
        replica.add(Entry(k, k * 10**9) for k in range(1, 90))
        estimator = Estimator(mine, replica, lanes_at_once=2 * directions)
        losses = []
        for first in (100, 200):
            read.clear()
            losses += estimator.losses(batch, [(first + k, (EPSILON, -EPSILON)) for k in range(16)])
            replica.add(Entry(first + k, 10**9) for k in range(5))
        found.append((losses, sum(read), estimator.scratch_bytes))
    assert found[0][0] == found[1][0] == found[2][0]
    rows = 16 * 2 * 64  # more than an embedding's rows, which each lane reads for itself
    assert found[2][1] < found[0][1] / 8 + rows * 16
    assert found[2][2] == found[0][2]


_PEAK = """
import re, sys
from pathlib import Path
import torch
from fedzo.base.checkpoint import load_base
from fedzo.estimate import Estimator
from fedzo.journal import Entry
from fedzo.noise import Distribution
from fedzo.state.replica import Replica
from fedzo.tiers.disk import DiskStore

def kept(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def step(source, state):
    state.unlink(missing_ok=True)
    base = load_base(str(source))
    replica = Replica.from_base(
        base, Distribution.RADEMACHER, threads=2, place=lambda manifest: DiskStore(state, manifest)
    )
    estimator = Estimator(base.model, replica)
    ids = torch.arange(32)[None]
    for number in range(3):
        estimator.losses({"input_ids": ids, "labels": ids}, [(number, (10**9, -10**9))])
        replica.add(Entry(20 * number + k, 10**8) for k in range(20))
    replica.digest()
    return 4 * replica.manifest.elements

*models, state = map(Path, sys.argv[1:])
for source in models:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident
    before = kept("VmRSS")
    weights_bytes = step(source, state)
print(kept("VmHWM") - before, weights_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_a_model_of_four_times_its_memory_is_trained_from_disk(tiny_model, tmp_path):
    """Peak memory of loading, steps, commits and a digest, over what was resident before, against float32 weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(tmp_path / "model")
    grown, weights_bytes = map(int, run_python(_PEAK, tiny_model, tmp_path / "model", tmp_path / "state").split())
    assert weights_bytes > 750e6
    assert grown < weights_bytes / 4


@pytest.mark.slow
def test_a_run_may_change_its_tier_when_it_is_resumed(demo, finished, tmp_path):
    """Interrupted twice; the journal is that of the run in memory, and so is what the state file holds."""
    options = simulate_options(demo, tmp_path / "run", state="disk")
    process = subprocess.Popen([*FEDZO, "simulate", *options], stderr=subprocess.DEVNULL)
    wait_for_progress(tmp_path / "run", process)
    process.kill()
    process.wait()
    fedzo("simulate", "--resume", "--out", tmp_path / "run", "--state", "host")
    assert (tmp_path / "run" / "journal").read_bytes() == (finished / "journal").read_bytes()
    again = fedzo("simulate", "--resume", "--out", tmp_path / "run", "--state", "disk")
    assert "from the state file at position" in again.stderr
