"""What a 16-bit forward does not feel of a perturbation, and the warning of it."""

import pytest
import torch
from commands import fedzo, simulate_options

from fedzo.base.manifest import Manifest
from fedzo.base.quantise import describe_tensor, quantised
from fedzo.estimate.felt import unfelt, warning_of
from fedzo.noise import Distribution
from fedzo.state.replica import Replica

EPSILON = round(1e-3 * 2**40)


def replica_of(**weights: torch.Tensor) -> Replica:
    specs = [describe_tensor(name, weight) for name, weight in weights.items()]
    parts = [
        part.clone() for spec, w in zip(specs, weights.values(), strict=True) for part in quantised(w, spec.exponent)
    ]
    return Replica(Manifest(tuple(specs)), torch.cat(parts), Distribution.RADEMACHER)


def test_a_weight_feels_what_is_more_than_half_its_last_place():
    weights = {"bias": torch.full((8,), 100.0), "large": torch.full((40, 50), 1.0), "small": torch.full((40, 50), 0.01)}
    mixed = torch.where(torch.arange(2000) % 4 == 0, 0.01, 1.0).reshape(40, 50)
    replica = replica_of(**weights, tall=mixed)
    assert unfelt(replica, EPSILON, torch.bfloat16) == {"large": 1.0, "small": 0.0, "tall": 0.75}
    assert unfelt(replica, EPSILON, torch.float16) == {"large": 0.0, "small": 0.0, "tall": 0.0}
    assert unfelt(replica, 10 * EPSILON, torch.bfloat16)["large"] == 0.0


def test_the_warning_names_the_worst_tensor_and_what_to_do():
    shares = {"a": 0.2, "b": 0.51, "c": 0.97}
    said = warning_of(shares, 1e-3, "bfloat16")
    assert said is not None
    assert "97%" in said
    assert "'c'" in said
    assert "2 of 3 tensors" in said
    assert "--epsilon" in said
    assert warning_of({"a": 0.5}, 1e-3, "bfloat16") is None
    assert warning_of({}, 1e-3, "bfloat16") is None


@pytest.mark.parametrize(("dtype", "warned"), [("float32", False), ("bfloat16", True)])
def test_a_run_is_warned_once_before_it_starts(demo, tmp_path, dtype, warned):
    changed = {"rounds": 1, "epsilon": 1e-5, "dtype": dtype}
    said = fedzo("simulate", *simulate_options(demo, tmp_path / "run", **changed)).stderr
    assert said.count("not felt") == warned
    assert said.index("warning") < said.index("partition") if warned else "warning" not in said
