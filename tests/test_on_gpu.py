"""What only a machine with a GPU can show: a state's bits are the CPU's, losses nearly so, and memory is bounded."""

import copy
import json
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from commands import fedzo, simulate_options
from transformers import OPTConfig

from fedzo.base.checkpoint import Base, base_digest
from fedzo.device import get_device
from fedzo.estimate import Estimator, weights_of
from fedzo.journal import Entry
from fedzo.noise import Distribution
from fedzo.scopes import ALL, Kind, Scope
from fedzo.state.replica import Replica
from fedzo.state.statefile import load_state
from fedzo.tiers.choice import CPU, place_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device: not run on a GPU")
EPSILON = round(1e-3 * 2**40)
ENTRIES = [Entry(seed, (-1) ** seed * 10**10) for seed in range(20)]


def made(model, device, tier, directory, kind="none", scope=ALL, dtype=torch.float32) -> tuple[Estimator, Replica]:
    model = copy.deepcopy(model)
    place = place_of(tier, directory / "state", device)
    base = Base("made here", model, base_digest(model))
    replica = Replica.from_base(base, Distribution.RADEMACHER, place=place, scope=scope)
    weights = weights_of(replica, kind, tier, directory, device)
    return Estimator(model, replica, weights=weights, dtype=dtype), replica


@pytest.mark.parametrize("scope", [ALL, Scope(kind=Kind.SPARSE, sparsity=750_000)])
@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_digests_are_the_cpus_and_losses_nearly(tier, scope, tmp_path):
    torch.manual_seed(0)
    model, batch = ARCHITECTURES["llama-tied"]()
    found = []
    for device, where in ((CPU, "host"), (get_device("cuda"), tier)):
        estimator, replica = made(model, device, where, tmp_path, scope=scope)
        replica.add(ENTRIES)
        losses = [loss for each in estimator.losses(batch, [(5, (EPSILON, -EPSILON)), (6, (0,))]) for loss in each]
        found.append((replica.digest(), replica.maxima(), losses))
    assert found[0][:2] == found[1][:2]
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-4)


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
@pytest.mark.parametrize("kind", ["bf16", "fp16", "int8"])
def test_copies_on_the_device_are_the_cpus(kind, tier, tmp_path):
    torch.manual_seed(0)
    model, batch = ARCHITECTURES["opt"]()
    found = []
    for device, where in ((CPU, "host"), (get_device("cuda"), tier)):
        estimator, replica = made(model, device, where, tmp_path, kind)
        replica.add(ENTRIES)
        found.append(estimator.losses(batch, [(5, (EPSILON, -EPSILON))])[0])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_state_goes_from_the_device_to_a_file_and_back(tmp_path):
    torch.manual_seed(0)
    model, _ = ARCHITECTURES["opt"]()
    device = get_device("cuda")
    _, replica = made(model, device, "device", tmp_path)
    replica.add(ENTRIES)
    replica.record_hash = bytes(32)
    replica.keep(tmp_path / "kept")
    for where, tier in ((CPU, "host"), (device, "device"), (device, "host")):
        _, again = made(model, where, tier, tmp_path)
        load_state(tmp_path / "kept", again, [replica.record_hash])
        assert again.digest() == replica.digest()


def test_the_host_waits_for_the_gpu_once_for_a_batch(tmp_path):
    """torch itself warns of every wait that it knows of; the one allowed is for the losses."""
    torch.manual_seed(0)
    model, batch = ARCHITECTURES["llama"]()
    estimator, _ = made(model, get_device("cuda"), "host", tmp_path)
    estimator.losses(batch, [(5, (EPSILON, -EPSILON))])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            estimator.losses(batch, [(seed, (EPSILON, -EPSILON)) for seed in (5, 6, 7)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1


def test_memory_of_the_device_does_not_grow_with_the_layers():
    from benchmarks.gpu import streamed_model

    peaks = []
    for layers in (4, 12):
        config = OPTConfig(
            vocab_size=2000, hidden_size=1024, word_embed_proj_dim=1024, ffn_dim=4096, num_hidden_layers=layers
        )
        device = get_device("cuda")
        model, replica = streamed_model(config, device)
        estimator = Estimator(
            model, replica, dtype=torch.float16, weights=weights_of(replica, "none", "host", Path(), device)
        )
        ids = torch.randint(4, 1000, (1, 512))
        torch.cuda.reset_peak_memory_stats(device)
        estimator.losses({"input_ids": ids, "labels": ids, "use_cache": False}, [(5, (EPSILON, -EPSILON))])
        peaks.append(torch.cuda.max_memory_allocated(device))
        del estimator, model, replica
    assert peaks[1] < 1.05 * peaks[0]


def test_a_run_on_the_gpu_is_replayed_on_the_cpu_to_the_same_digest(demo, tmp_path):
    fedzo("simulate", *simulate_options(demo, tmp_path / "run"), "--device", "cuda")
    assert "all equal" in fedzo("replay", tmp_path / "run").stdout
    losses = []
    for device in ("cpu", "cuda"):
        losses.append(json.loads(fedzo("evaluate", tmp_path / "run", "--device", device, "--json").stdout)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
