"""Forward passes on a device, as far as a machine without one can tell.

Stores that say that they lie elsewhere make the CPU the device: everything goes the way to a GPU, through the ring and
without looking rows up, and must give what it gives where the integers lie at hand.
"""

import copy

import pytest
import torch
from architectures import ARCHITECTURES, LLAMA_LIKE, TEXT
from commands import fedzo, refused, simulate_options
from helpers import backend_for_cpu, run_python
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from fedzo.base.checkpoint import Base, base_digest
from fedzo.device import get_device, moved
from fedzo.errors import ConfigError
from fedzo.estimate import Estimator
from fedzo.estimate.copied import CopiedWeights
from fedzo.estimate.weights import ExactWeights
from fedzo.journal import Entry
from fedzo.noise import Distribution
from fedzo.scopes import ALL, Kind, Scope
from fedzo.state.compute_copy import CopyFormat
from fedzo.state.replica import Replica
from fedzo.tiers.choice import scratch_place
from fedzo.tiers.device import DeviceRing

EPSILON = round(1e-3 * 2**40)
EVALUATIONS = [(seed, (EPSILON, 0, -EPSILON)) for seed in (5, 6, 7)]


def elsewhere(place):
    """What makes a store that says that it does not lie on the CPU."""

    def placed(manifest):
        store = place(manifest)
        store.device = torch.device("meta")
        return store

    return placed


def losses(made, batch, directory, *, kind="none", tier="host", lanes=2, away=False, backend="auto", scope=ALL):
    """Of a copy of a model, whose state (and copy) lie at hand or elsewhere."""
    model = copy.deepcopy(made)
    place = scratch_place(tier, directory)
    if away:
        place = elsewhere(place)
    base = Base("made here", model, base_digest(model))
    replica = Replica.from_base(
        base, Distribution.RADEMACHER, place=place, backend=backend_for_cpu(backend), threads=1, scope=scope
    )
    replica.add(Entry(k, 10**9) for k in range(5))
    weights = ExactWeights(replica) if kind == "none" else CopiedWeights(replica, kind, place)
    assert weights.by_rows is not away
    return Estimator(model, replica, lanes_at_once=lanes, weights=weights).losses(batch, EVALUATIONS, {3: 10**8})


def small_buffers(monkeypatch) -> None:
    """A ring that brings a block in many pieces."""
    monkeypatch.setattr(DeviceRing.__init__, "__defaults__", (500,))
    monkeypatch.setattr(DeviceRing, "reserve", lambda ring, elements: None)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_losses_of_weights_that_are_brought_are_those_of_weights_at_hand(name, tier, tmp_path, monkeypatch):
    small_buffers(monkeypatch)
    torch.manual_seed(0)
    model, batch = ARCHITECTURES[name]()
    for kind in ("none", "int8"):
        at_hand = losses(model, batch, tmp_path, kind=kind)
        for lanes in (2, 6):
            assert losses(model, batch, tmp_path, kind=kind, tier=tier, lanes=lanes, away=True) == at_hand


def test_a_mask_is_brought_with_the_integers(tmp_path, monkeypatch):
    small_buffers(monkeypatch)
    torch.manual_seed(0)
    model, batch = ARCHITECTURES["llama"]()
    scope = Scope(kind=Kind.SPARSE, sparsity=750_000)
    at_hand = losses(model, batch, tmp_path, scope=scope)
    assert losses(model, batch, tmp_path, scope=scope, tier="disk", away=True) == at_hand
    assert losses(model, batch, tmp_path, away=True) != at_hand


class _Waits(TorchDispatchMode):
    """Names the operations for which a host would wait for a device: those whose result it must see."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "nonzero", "_unique", "unique", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name == "index" and any(index is not None and index.dtype is torch.bool for index in args[1])
        if masks or name.startswith(self.NAMES):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["none", "int8"])
def test_the_host_waits_once_for_a_batch_when_it_reads_the_losses(kind, tmp_path, monkeypatch):
    """Whatever the number of lanes and passes, and of layers."""
    read = []
    for name in ("tolist", "numpy", "cpu", "__array__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, plain=plain, name=name, **k: (read.append(name), plain(self, *a, **k))[1],
        )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE | {"num_hidden_layers": 4}))
    place = elsewhere(scratch_place("host", tmp_path))
    base = Base("made here", model, base_digest(model))
    replica = Replica.from_base(base, Distribution.RADEMACHER, place=place, backend=backend_for_cpu("numba"))
    weights = ExactWeights(replica) if kind == "none" else CopiedWeights(replica, kind, place)
    estimator = Estimator(model, replica, weights=weights)
    estimator.losses(TEXT, EVALUATIONS)
    read.clear()
    with _Waits() as waits:
        estimator.losses(TEXT, EVALUATIONS)
    assert waits.found == []
    assert [name for name in read if name != "numpy"] == ["tolist"]


_AWAY = """
import sys
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from architectures import ARCHITECTURES
from fedzo.base.checkpoint import Base, base_digest
from fedzo.estimate import Estimator
from fedzo.estimate.weights import ExactWeights
from fedzo.noise import Distribution
from fedzo.state.replica import Replica
from fedzo.tiers.host import HostStore

backend_registration._setup_privateuseone_for_python_backend("away")
torch.away.get_amp_supported_dtype = list
AWAY, read = torch.device("away", 0), []

class Nobody:
    name = "nobody"
    def materialise(self, state, segments, steps, out, threads):
        assert out.device == AWAY

class Store(HostStore):
    def __init__(self, manifest):
        super().__init__(manifest)
        self.device = AWAY

def losses(tensor):
    read.append((tensor.device.type, len(tensor)))
    return [0.0] * len(tensor)

FakeTensor.tolist = losses
torch.Tensor.pin_memory = lambda tensor: tensor
for name in sys.argv[1:]:
    model, batch = ARCHITECTURES[name]()
    type(model).to = lambda model, device: model  # there is no device to go to until there are fake tensors
    base = Base("made here", model, base_digest(model))
    replica = Replica.from_base(base, Distribution.RADEMACHER, place=Store, backend=Nobody())
    estimator = Estimator(model, replica, weights=ExactWeights(replica, AWAY))
    with FakeTensorMode() as mode:
        for module in model.modules():
            for key, value in module._buffers.items():
                module._buffers[key] = None if value is None else mode.from_tensor(value).to(AWAY)
        given = {key: mode.from_tensor(value) for key, value in batch.items()}
        given |= {} if name == "bert" else {"use_cache": False}
        estimator.losses(given, [(5, (2**30, 0, -(2**30))), (6, (2**30,))])
print(read)
"""


def test_nothing_is_left_on_the_cpu_and_nothing_read_but_the_losses():
    """Tensors without values, on a device that torch does not mix with the CPU, and whose values it does not tell."""
    names = ("llama-tied", "opt", "gpt2", "bert", "t5")
    assert run_python(_AWAY, *names) == f"{[('away', 4)] * len(names)}\n"


def test_a_run_with_its_state_on_the_device_is_the_run_in_memory(demo, finished, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, whose losses differ in the last digits")
    fedzo("simulate", *simulate_options(demo, tmp_path / "run"), "--state", "device", "--device", "auto")
    assert (tmp_path / "run" / "journal").read_bytes() == (finished / "journal").read_bytes()


def test_a_device_that_is_not_there_is_refused_by_name(finished, monkeypatch):
    with pytest.raises(ConfigError, match="device 'gpu' is unknown; choose cpu, cuda, cuda:N or auto"):
        get_device("gpu")
    with pytest.raises(ConfigError, match="device 'cuda:x' is unknown"):
        get_device("cuda:x")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert get_device("auto") == get_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device 'cuda' needs 1 CUDA device, and torch .* sees 0; choose 'cpu'"):
        get_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert get_device("auto") == get_device("cuda") == torch.device("cuda", 0)
    assert get_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="'cuda:2' needs 3 CUDA devices, and torch .* sees 2"):
        get_device("cuda:2")
    with pytest.raises(ConfigError, match="backend 'numba' works on the CPU alone, device is 'cuda'"):
        get_device("cuda", "numba")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_commands_refuse_it_too(finished):
    for command in (("evaluate", finished), ("generate", finished, "--prompt", "the cat")):
        assert "device 'cuda' needs 1 CUDA device" in refused(*command, "--device", "cuda")


def test_a_batch_for_the_cpu_is_left_alone():
    batch = {"ids": torch.ones(2), "names": ("a", "b")}
    assert moved(batch, torch.device("cpu")) is batch


def test_scales_are_told_by_tensor():
    model = LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE))
    replica = Replica.from_base(Base("made here", model, base_digest(model)), Distribution.RADEMACHER)
    form = CopyFormat("int8", replica.manifest)
    scales = form.scales([3, 1])
    assert scales.widths == [replica.manifest.tensors[k].shape[1] for k in (3, 1)]
    assert CopyFormat("bf16", replica.manifest).scales([3, 1]) is None
