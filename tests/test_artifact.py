"""The artifact: a tuned model from a small file and its base, to the bit; and every bad input refused by name."""

import dataclasses
import errno
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from commands import fedzo, refused
from helpers import Victims, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import fedzo as library
from fedzo.artifact import Artifact, read_artifact, write_artifact
from fedzo.artifact.codec import decode_artifact, encode_artifact
from fedzo.artifact.file import HEADER
from fedzo.artifact.replica import make_artifact, rebuild_artifact
from fedzo.errors import ArtifactError, BaseMismatchError, ConfigError, ReplicaError
from fedzo.journal import Commit, Entry, Journal, Task, read_journal
from fedzo.journal.view import state_digests
from fedzo.noise import BACKENDS, Distribution, get_backend
from fedzo.results.rebuild import rebuild, roll_back
from fedzo.run_directory import RunDirectory
from fedzo.v1 import artifact_pb2 as pb

GOLDEN = Path(__file__).parent / "golden" / "artifact.txt"
LARGEST = 2**64 - 1
SMALL = Artifact(
    base_digest=bytes(range(32)),
    manifest_digest=bytes(range(32, 64)),
    distribution=Distribution.RADEMACHER,
    run_seed=LARGEST,
    task=Task(name="lm", tokenizer_digest=bytes(range(64, 96)), max_length=128),
    position=300,
    record_hash=bytes(range(96, 128)),
    state_digest=bytes(range(128, 160)),
    entries=(Entry(0, -(2**62) + 1), Entry(17, 1), Entry(2**63, -(2**27)), Entry(LARGEST, 2**62 - 1)),
)


def framed(payload: bytes) -> bytes:
    """An artifact file of a payload, whose checksum holds."""
    return HEADER + payload + blake3(HEADER + payload).digest()


def run_until(run: Path, position: int, out: Path) -> Path:
    """A copy of a run as it was when its journal had that position."""
    contents = read_journal(run / "journal")
    out.mkdir()
    shutil.copy(run / "config.toml", out)
    with Journal.create(out / "journal", contents.genesis) as journal:
        for record in contents.records[:position]:
            journal.append(record)
    return out


# ── rebuilding ──────────────────────────────────────────────────────────────────────────────────────


def test_applied_on_any_backend_and_thread_count_it_is_what_export_writes(finished, demo, tmp_path):
    artifact = tmp_path / "tuned.fedzo"
    digest = read_journal(finished / "journal").records[-1].state_digest.hex()
    assert digest in fedzo("artifact", finished, "--out", artifact).stdout
    fedzo("export", finished, "--out", tmp_path / "exported")
    expected = (tmp_path / "exported" / "model.safetensors").read_bytes()
    for backend, threads in (("torch", 2), ("reference", 1)):
        out = tmp_path / backend
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        options = ["--base", demo.model, "--out", out, "--backend", backend]
        assert digest in fedzo("apply", artifact, *options, env=environment).stdout
        assert (out / "model.safetensors").read_bytes() == expected
        assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in (tmp_path / "exported").iterdir())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_rebuilt_replica_is_the_runs_own(finished, demo, backend, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rebuilt = rebuild_artifact(make_artifact(RunDirectory(finished)), demo.model, backend=get_backend(backend))
    finally:
        torch.set_num_threads(before)
    replayed, _, contents = rebuild(RunDirectory(finished))
    assert torch.equal(rebuilt.state, replayed.state)
    assert rebuilt.digest() == contents.records[-1].state_digest
    assert (rebuilt.position, rebuilt.record_hash) == (contents.position, contents.hashes[-1])


def test_an_unfinished_run_is_taken_where_it_stands(finished, demo, tmp_path):
    """After a commit the journal does not state the digest: it is computed from the base."""
    contents = read_journal(finished / "journal")
    known = state_digests(contents.records)
    commits = [p for p, record in enumerate(contents.records, start=1) if isinstance(record.body, Commit)]
    position = next(p for p in commits if p not in known)
    run = run_until(finished, position, tmp_path / "run")
    with (run / "journal").open("ab") as file:
        file.write(b"\x28\0\0")  # torn
    artifact = make_artifact(RunDirectory(run))
    assert (artifact.position, artifact.record_hash) == (position, contents.hashes[position])
    replica, _, _ = rebuild(RunDirectory(run))
    assert artifact.state_digest == replica.digest() == rebuild_artifact(artifact, demo.model).digest()


def test_where_the_journal_states_the_digest_no_base_is_needed(finished, tmp_path):
    run = run_until(finished, read_journal(finished / "journal").position, tmp_path / "run")
    (run / "config.toml").unlink()
    assert make_artifact(RunDirectory(run)) == make_artifact(RunDirectory(finished))


def test_what_was_rolled_back_leaves_no_entries(finished, demo, tmp_path):
    contents = read_journal(finished / "journal")
    middle = next(p for p in range(contents.position // 2, contents.position) if contents.records[p].entries)
    expected = make_artifact(RunDirectory(run_until(finished, middle, tmp_path / "middle")))
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    roll_back(RunDirectory(run), middle)
    artifact = make_artifact(RunDirectory(run))
    assert artifact.entries == expected.entries
    assert artifact.state_digest == expected.state_digest
    assert len(artifact.entries) < len(make_artifact(RunDirectory(finished)).entries)
    roll_back(RunDirectory(run), 0)
    artifact = make_artifact(RunDirectory(run))
    assert artifact.entries == ()
    replica = rebuild_artifact(artifact, demo.model)
    untouched = AutoModelForCausalLM.from_pretrained(demo.model, dtype=torch.float32)
    for tensor, spec in enumerate(replica.manifest):
        torch.testing.assert_close(replica.weights(tensor), untouched.get_parameter(spec.name), rtol=0, atol=2**-20)


def test_in_python_both_give_the_exported_model_ready_to_use(finished, demo, tmp_path):
    write_artifact(tmp_path / "tuned.fedzo", make_artifact(RunDirectory(finished)))
    fedzo("export", finished, "--out", tmp_path / "exported")
    expected = load_file(tmp_path / "exported" / "model.safetensors")
    for model in (library.tuned_model(finished), library.apply_artifact(tmp_path / "tuned.fedzo", demo.model)):
        assert isinstance(model, LlamaForCausalLM)
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert all(torch.equal(model.get_parameter(name), weight) for name, weight in expected.items())
    with pytest.raises(AttributeError, match="'fedzo' has no attribute 'model'"):
        library.model  # noqa: B018


def test_importing_fedzo_loads_neither_torch_nor_transformers():
    script = "import sys, fedzo; print({'torch', 'transformers', 'google.protobuf'} & set(sys.modules), fedzo.__all__)"
    assert run_python(script).startswith("set() ['apply_artifact', 'simulate', 'tuned_model']")


# ── the file ────────────────────────────────────────────────────────────────────────────────────────


def test_golden_artifact(tmp_path):
    """Byte for byte what earlier versions wrote. A difference is a change of format: it needs a version and a line in
    CHANGELOG.md. The failure prints the line that golden/artifact.txt would then hold.
    """
    write_artifact(tmp_path / "artifact", SMALL)
    actual = (tmp_path / "artifact").read_bytes()
    golden = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    assert [actual.hex()] == golden, f"the actual line:\n{actual.hex()}"
    (tmp_path / "golden").write_bytes(bytes.fromhex(golden[0]))
    assert read_artifact(tmp_path / "golden") == SMALL


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.integers(0, LARGEST), st.integers(-(2**48) + 1, 2**48 - 1).filter(bool)),
    st.sampled_from(Distribution),
)
def test_what_is_written_is_what_is_read_in_less_than_16_bytes_an_entry(totals, distribution):
    entries = tuple(Entry(seed, totals[seed]) for seed in sorted(totals))
    artifact = dataclasses.replace(SMALL, distribution=distribution, entries=entries)
    payload = encode_artifact(artifact)
    assert decode_artifact(payload) == artifact
    assert len(framed(payload)) < 1000 + 16 * len(entries)


def test_a_runs_artifact_is_small(finished, tmp_path):
    artifact = make_artifact(RunDirectory(finished))
    write_artifact(tmp_path / "artifact", artifact)
    assert len(artifact.entries) == 12 * 4
    assert (tmp_path / "artifact").stat().st_size < 1000 + 16 * len(artifact.entries)


def test_a_byte_flipped_anywhere_is_refused(tmp_path):
    path = tmp_path / "artifact"
    write_artifact(path, SMALL)
    whole = path.read_bytes()
    for offset in range(len(whole)):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ flip]) + whole[offset + 1 :])
            with pytest.raises(ArtifactError, match=r"version|not an artifact|cut short or altered"):
                read_artifact(path)


def test_one_cut_anywhere_or_run_on_is_refused(tmp_path):
    path = tmp_path / "artifact"
    write_artifact(path, SMALL)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"not an artifact|cut short or altered"):
            read_artifact(path)
    for more in (b"\0", b"\n", whole):
        path.write_bytes(whole + more)
        with pytest.raises(ArtifactError, match="cut short or altered"):
            read_artifact(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"numerics_version": 2}, "numerics version 2; this fedzo knows version 1"),
        ({"scope": "lora"}, "scope 'lora'"),
        ({"distribution": "cauchy"}, "distribution 'cauchy'"),
        ({"base_digest": b"short"}, "base_digest has 5 bytes; expected 32"),
        ({"state_digest": b""}, "state_digest has 0 bytes; expected 32"),
        ({"totals": [1]}, "4 seeds and 1 totals"),
        ({"seeds": [0, 18, 17, 19]}, "not in strictly ascending order"),
        ({"seeds": [0, 17, 17, 19]}, "not in strictly ascending order"),
        ({"totals": [1, 0, 1, 1]}, "seed 17 has total 0"),
        ({"totals": [2**62, 1, 1, 1]}, f"seed 0 has total {2**62}"),
        ({"distribution": "gaussian", "totals": [1, 1, 1, -(2**48)]}, f"seed {LARGEST} has total {-(2**48)}"),
    ],
)
def test_a_payload_that_cannot_be_rebuilt_is_refused_by_name(tmp_path, changed, message):
    parsed = pb.Artifact.FromString(encode_artifact(SMALL))
    for name in changed:
        parsed.ClearField(name)
    parsed.MergeFrom(pb.Artifact(**changed))
    path = tmp_path / "artifact"
    path.write_bytes(framed(parsed.SerializeToString()))
    with pytest.raises(ArtifactError, match=message) as error:
        read_artifact(path)
    assert str(path) in str(error.value)


def test_a_payload_of_something_else_and_another_version_are_named(tmp_path):
    path = tmp_path / "artifact"
    path.write_bytes(framed(b"\xff\xff\xff"))
    with pytest.raises(ArtifactError, match="is no artifact"):
        read_artifact(path)
    path.write_bytes(b"fedzo-artifact-2\n" + bytes(100))
    with pytest.raises(ArtifactError, match="version '2'; this fedzo reads version '1'"):
        read_artifact(path)


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device.*free space"):
        write_artifact(tmp_path / "artifact", SMALL)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import dataclasses
from pathlib import Path
from fedzo.artifact import write_artifact
from fedzo.journal import Entry
from test_artifact import SMALL

LARGE = dataclasses.replace(SMALL, entries=tuple(Entry(seed, -1) for seed in range(30_000)))

def work(argument, say):
    place, number = Path(argument), 0
    say("begins")
    while True:
        number += 1
        write_artifact(place / f"{number}.fedzo", dataclasses.replace(LARGE, position=number))
        say(number)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_files_alone(tmp_path):
    moments, written = random.Random(1), 0
    with Victims(WRITER) as writers:
        for attempt in range(8):
            place = tmp_path / str(attempt)
            place.mkdir()
            said = writers.run_and_kill(place, moments.uniform(0.01, 0.15))[1:]
            files = {int(path.stem) for path in place.glob("*.fedzo")}
            assert set(map(int, said)) <= files
            assert all(read_artifact(place / f"{number}.fedzo").position == number for number in files)
            written += len(files)
    assert written >= 3, "hardly anything was written: the test shows nothing"


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory) -> Path:
    """The finished run's artifact."""
    path = tmp_path_factory.mktemp("artifact") / "tuned.fedzo"
    write_artifact(path, make_artifact(RunDirectory(finished)))
    return path


def test_a_run_with_nothing_but_a_genesis_and_no_run_are_refused(finished, tmp_path):
    run = run_until(finished, 0, tmp_path / "run")
    assert "holds a genesis and no record" in refused("artifact", run, "--out", tmp_path / "artifact")
    assert "no run there" in refused("artifact", tmp_path, "--out", tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_what_is_there_is_not_replaced(finished, demo, made, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_text("mine")
    for out in (there, there / "file"):
        assert "exists already" in refused("artifact", finished, "--out", out)
        assert "not empty" in refused("apply", made, "--base", demo.model, "--out", out)
    assert "is not a directory" in refused("artifact", finished, "--out", tmp_path / "nowhere" / "artifact")
    assert "cannot be written" in refused("apply", made, "--base", demo.model, "--out", tmp_path / "nowhere" / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "file"]
    assert (there / "file").read_text() == "mine"


def test_what_is_no_artifact_or_a_damaged_one_is_refused(finished, demo, made, tmp_path):
    options = ("--base", demo.model, "--out", tmp_path / "model")
    assert "not an artifact" in refused("apply", finished / "journal", *options)
    assert "Is a directory" in refused("apply", finished, *options)
    assert "No such file" in refused("apply", tmp_path / "nowhere", *options)
    content = bytearray(made.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    assert "cut short or altered" in refused("apply", tmp_path / "damaged", *options)
    assert not (tmp_path / "model").exists()


def test_another_base_is_refused(demo, made, tmp_path):
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(demo.model)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(other)
    assert "was made from base" in refused("apply", made, "--base", other, "--out", tmp_path / "model")
    assert "nowhere" in refused("apply", made, "--base", "nowhere", "--out", tmp_path / "model")
    assert "backend 'cuda' is unknown" in refused(
        "apply", made, "--base", demo.model, "--out", tmp_path / "model", "--backend", "cuda"
    )
    assert not (tmp_path / "model").exists()


def test_another_manifest_or_another_result_is_refused(demo, made):
    artifact = read_artifact(made)
    with pytest.raises(BaseMismatchError, match="differ from the artifact's manifest"):
        rebuild_artifact(dataclasses.replace(artifact, manifest_digest=bytes(32)), demo.model)
    with pytest.raises(ReplicaError, match="the artifact states 0000"):
        rebuild_artifact(dataclasses.replace(artifact, state_digest=bytes(32)), demo.model)
    seed, total = artifact.entries[0]
    changed = (Entry(seed, -total), *artifact.entries[1:])
    with pytest.raises(ReplicaError, match="the rebuilt replica has state digest"):
        rebuild_artifact(dataclasses.replace(artifact, entries=changed), demo.model)
