"""What is done with a run whose weights are streamed from disk: what it gives in memory, in less memory."""

import os
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from commands import fedzo, refused, simulate_options
from helpers import run_python
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedzo.base.checkpoint import Base, base_digest, load_base
from fedzo.journal import Entry
from fedzo.noise import Distribution
from fedzo.results.export import export_model
from fedzo.results.rebuild import plain_model, rebuild
from fedzo.run_directory import RunDirectory
from fedzo.state.replica import Replica
from fedzo.tiers.choice import scratch_place
from fedzo.tiers.disk import DiskStore
from fedzo.tiers.host import HostStore

STATES = ("host", "disk")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_run_on_disk_says_measures_and_exports_what_it_does_in_memory(finished, tmp_path):
    found = []
    for state in STATES:
        fedzo("export", finished, "--out", tmp_path / state, "--state", state)
        commands = (
            ("evaluate", finished, "--json", "--threads", 1),
            ("evaluate", finished, "--json", "--threads", 1, "--batch-size", 3),
            ("generate", finished, "--prompt", "the cat", "--max-new-tokens", 8, "--temperature", 0.7),
            ("replay", finished),
        )
        found.append([fedzo(*command, "--state", state).stdout for command in commands])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert files(tmp_path / "host") == files(tmp_path / "disk")
    names = {"config.toml", "journal", "metrics.jsonl", "replica.state"}
    assert {path.name for path in finished.iterdir()} == names


def test_the_state_asked_for_is_the_state_used(finished):
    stores = [type(rebuild(RunDirectory(finished), state=state)[0].store) for state in STATES]
    assert stores == [HostStore, DiskStore]


def test_an_export_is_the_whole_models_own(finished, tmp_path):
    replica, base, _ = rebuild(RunDirectory(finished))
    export_model(replica, base, tmp_path / "streamed")
    base = load_base(base.source)
    plain_model(replica, base).save_pretrained(tmp_path / "whole")
    weights = [(tmp_path / kind / "model.safetensors").read_bytes() for kind in ("streamed", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt"])
def test_an_architectures_export_loads_as_the_same_weights(name, demo, tmp_path):
    """Tied weights, and experts that a checkpoint stores one by one."""
    torch.manual_seed(0)
    made, _ = ARCHITECTURES[name]()
    made.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(demo.model).save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    replica = Replica.from_base(base, Distribution.RADEMACHER, place=scratch_place("disk", tmp_path))
    replica.add([Entry(4, 10**9)])
    export_model(replica, base, tmp_path / "out")
    loaded = load_base(str(tmp_path / "out"))
    again = Replica.from_base(Base("", loaded.model, base_digest(loaded.model)), Distribution.RADEMACHER)
    for index in range(len(replica.manifest)):
        assert torch.equal(again.weights(index), replica.weights(index))


def test_what_has_no_state_is_refused_by_name(finished, demo):
    assert "which alone has a state" in refused("generate", demo.model, "--prompt", "x", "--state", "disk")
    assert "which alone has a state" in refused("evaluate", demo.model, "--data", demo.data, "--state", "disk")
    assert "state 'ram' is unknown" in refused("evaluate", finished, "--state", "ram")


_PEAK = """
import re, sys
from pathlib import Path
from commands import fedzo

def kept(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

small, large, out = map(Path, sys.argv[1:])
for run in (small, large):
    for command in (
        ("evaluate", run, "--threads", 1),
        ("generate", run, "--prompt", "the", "--max-new-tokens", 2),
        ("export", run, "--out", out / (run.name + "-" + str(run == large))),
    ):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident
        before = kept("VmRSS")
        fedzo(*command, "--state", "disk")
        print(command[0], kept("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_a_model_of_four_times_its_memory_is_evaluated_used_and_exported(demo, finished, tmp_path):
    """Peak memory over what was resident before, against float32 weights; the export is that of the memory's tier."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo.model)
    tokenizer.save_pretrained(tmp_path / "model")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    few = {"clients": 1, "rounds": 1, "batch-size": 1, "max-length": 8, "eval-every": 0, "partition": "iid"}
    rows = tmp_path / "rows.txt"
    rows.write_text("the cat sat on the mat.\n" * 20)
    fedzo(
        "simulate",
        *simulate_options(demo, tmp_path / "run", **few, model=tmp_path / "model", data=rows, state="disk"),
    )
    peaks = run_python(_PEAK, finished, tmp_path / "run", tmp_path).split()[6:]
    replica, base, _ = rebuild(RunDirectory(tmp_path / "run"))
    weights_bytes = 4 * replica.manifest.elements
    assert weights_bytes > 400e6
    print(peaks, weights_bytes)
    for command, grown in zip(peaks[::2], peaks[1::2], strict=True):
        assert int(grown) < weights_bytes / 4, command
    plain_model(replica, base).save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "run-True" / "model.safetensors"
    ).read_bytes()
