"""`fedzo plan-memory` and what a simulation says of its memory: held against a real run's."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import FEDZO, fedzo, refused, simulate_options
from fedzo_simulations import runner
from helpers import run_python
from transformers import LlamaConfig, MixtralConfig, Qwen3MoeConfig, T5Config

from fedzo.base.checkpoint import load_base
from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.errors import CheckpointError
from fedzo.noise import Distribution
from fedzo.plan.forward import outline
from fedzo.state.replica import Replica
from fedzo.tiers.choice import place_of, tier_for

TOLERANCE = 0.2
"""Of the planned peak; allocators and thread stacks are not planned."""


def planned(*arguments: object) -> dict:
    return json.loads(fedzo("plan-memory", "--json", *arguments).stdout)


def test_a_plan_needs_a_config_and_no_weights(demo, tmp_path):
    shutil.copy(Path(demo.model) / "config.json", tmp_path)
    found = planned("--model", tmp_path, "--host-memory", "2GB", "--batch-size", 4, "--max-length", 32)
    base = load_base(demo.model)
    assert found["plan"]["elements"] == sum(p.numel() for p in base.model.parameters())
    assert found["plan"]["state_bytes"] == 4 * found["plan"]["elements"]
    assert found["fits_host"]
    assert found["seconds"]["step"] > 0


def test_shapes_and_blocks_are_those_of_the_loaded_model(demo):
    replica = Replica.from_base(load_base(demo.model), Distribution.RADEMACHER)
    assert outline(demo.model, 1, 8, None).shapes == {spec.name: spec.shape for spec in replica.manifest}


def test_activations_are_the_models_own(demo):
    """They grow with the batch; what lives where a layer begins is less, and more where one begins inside of it."""
    few, many = (outline(demo.model, batch, 16, None).forward for batch in (1, 4))
    assert 2 * few.activation_bytes < many.activation_bytes <= 4 * few.activation_bytes
    assert many.flops == 4 * few.flops
    config = LlamaConfig.from_pretrained(demo.model)
    assert 4 * 16 * config.hidden_size <= few.pause_bytes < 4 * 16 * 3 * config.hidden_size
    inside = outline(demo.model, 1, 16, 0).forward
    assert 2 * few.pause_bytes < inside.pause_bytes < few.activation_bytes == inside.activation_bytes


def test_tiers_follow_the_memory_allowed(demo):
    elements = planned("--model", demo.model)["plan"]["elements"]
    for allowed, tier in ((9 * elements, "host"), (7 * elements, "disk")):
        found = planned("--model", demo.model, "--host-memory", f"{allowed / 1000}KB", "--compute-copy", "int8")
        assert found["plan"]["state_tier"] == tier
        assert found["plan"]["copy_tier"] == "host"
        assert not found["fits_host"]
    manifest = Manifest((TensorSpec("w", (1000,), 29, 0),))
    assert [tier_for("auto", manifest, free) for free in (8000, 7999)] == ["host", "disk"]


def test_a_state_on_the_device_is_in_the_memory_of_a_gpu_where_there_is_one(demo):
    given = ("--model", demo.model, "--host-memory", "2GB")
    host = planned(*given, "--state", "host", "--device-memory", "1GB")["plan"]
    here = planned(*given, "--state", "device")["plan"]
    assert here["state_tier"] == "device"
    assert here["state_bytes"] == host["state_bytes"] == 4 * host["elements"], "a CPU's memory is the machine's"
    there = planned(*given, "--state", "device", "--device-memory", "1GB")["plan"]
    assert there["state_bytes"] == there["ring_bytes"] == there["disk_bytes"] == 0
    rest = there["device_bytes"] - 4 * there["elements"]
    assert rest == there["scratch_bytes"] + there["activation_bytes"]
    copied = planned(*given, "--state", "device", "--device-memory", "1GB", "--compute-copy", "bf16")["plan"]
    assert (copied["copy_tier"], copied["copy_bytes"]) == ("device", 0)
    assert copied["device_bytes"] > there["device_bytes"]
    assert "state 'gpu' is unknown; choose one of: auto, device, host, disk" in refused(
        "plan-memory", *given, "--state", "gpu"
    )


def test_a_copy_has_a_tier_of_its_own(demo):
    given = ("--model", demo.model, "--host-memory", "2GB", "--compute-copy", "int8", "--state", "disk")
    tiers = {}
    for where in ("same", "host", "auto"):
        plan = planned(*given, "--copy-state", where)["plan"]
        tiers[where] = plan["state_tier"], plan["copy_tier"]
    assert tiers == {"same": ("disk", "disk"), "host": ("disk", "host"), "auto": ("disk", "host")}


def test_auto_is_decided_by_the_same_code(monkeypatch, tmp_path):
    manifest = Manifest((TensorSpec("w", (1000,), 29, 0),))
    for free, path in ((8000, None), (7999, tmp_path / "state")):
        monkeypatch.setattr("fedzo.tiers.choice.free_bytes", lambda free=free: free)
        assert place_of("auto", tmp_path / "state")(manifest).path == path


@pytest.mark.parametrize("config", [MixtralConfig, Qwen3MoeConfig])
def test_experts_are_planned(config, tmp_path):
    """Each token goes through two of four: more than that than in a model of one expert, and not twice the whole."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    config(**shape, **experts, intermediate_size=96, vocab_size=128).save_pretrained(tmp_path)
    few, many = (outline(str(tmp_path), batch, 16, None).forward for batch in (1, 4))
    chosen = 2 * 16 * 2 * 2 * 3 * 64 * 96  # two flops, tokens, experts, layers, matrices
    assert chosen < few.flops < 2 * chosen
    assert many.flops == 4 * few.flops
    assert 0 < few.activation_bytes < many.activation_bytes


def test_a_model_whose_memory_cannot_be_planned_is_trained(demo, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise CheckpointError("'model' does not run on tensors without values: why")

    monkeypatch.setattr("fedzo.plan.run.outline", refuse)
    monkeypatch.setattr("fedzo.plan.run._WORTH_BYTES", 0)
    given = {"model": demo.model, "data": demo.data, "rounds": 1, "clients": 2, "out": str(tmp_path / "run")}
    runner.run_simulation(given | {"eval_every": 0}, None, resume=False)
    said = capsys.readouterr().err
    assert "memory is not planned: 'model' does not run on tensors without values: why\n" in said
    assert "done: 1 rounds" in said


def test_what_cannot_be_planned_is_said(demo, tmp_path):
    given = ("plan-memory", "--model", demo.model)
    assert "option threads is -1; expected 0 to" in refused(*given, "--threads", -1)
    assert "option dir is '/nowhere', which is no directory" in refused(*given, "--dir", "/nowhere")
    T5Config().save_pretrained(tmp_path / "t5")
    said = refused("plan-memory", "--model", tmp_path / "t5")
    assert "is no causal language model that transformers knows (T5Config)" in said
    assert "option host-memory is '16'; expected a number and a unit" in refused(
        "plan-memory", "--model", demo.model, "--host-memory", "16"
    )
    assert "no model's config" in refused("plan-memory", "--model", tmp_path)
    said = fedzo("plan-memory", "--model", demo.model, "--host-memory", "1MB", "--device-memory", "1MB").stdout
    assert "IT DOES NOT FIT" in said
    assert "its time is not known here" in said


_MODEL = """

import sys
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[2])
shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 4}
LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"state": "host"},
        {"state": "disk"},
        {"state": "disk", "compute-copy": "int8", "directions": 4, "directions-per-pass": 4},
    ],
)
def test_a_run_takes_what_was_planned(demo, tmp_path, options):
    run_python(_MODEL, demo.model, tmp_path / "model")
    os.sync()  # what is mapped and not on disk yet is not given back
    (tmp_path / "rows.txt").write_text("the cat sat on the mat.\n" * 40)
    few = {"clients": 1, "rounds": 2, "batch-size": 4, "max-length": 64, "eval-every": 0, "partition": "iid"}
    given = few | options | {"model": tmp_path / "model", "data": tmp_path / "rows.txt"}
    command = [*FEDZO, "simulate", *simulate_options(demo, tmp_path / "run", **given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"planned ([\d,]+) MB, measured ([\d,]+) MB", done.stderr)
    assert found is not None, done.stderr
    assert done.stderr.index(f"planned {found[1]} MB") < done.stderr.index("done: 2 rounds") < found.start()
    plan, measured = (float(part.replace(",", "")) for part in found.groups())
    assert measured == pytest.approx(plan, rel=TOLERANCE), done.stderr
