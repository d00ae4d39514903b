"""Scopes in runs, as a user runs them: they learn, survive kills, and come back from every file to the same bits."""

import json
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import FEDZO, fedzo, refused, simulate_options
from test_api import DATASETS, HELD_OUT, OPTIONS, network, squared_error
from test_engine_flower import Simulated, by_flower
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import fedzo as library
from fedzo.base.checkpoint import Head, load_base, unique_parameters
from fedzo.errors import ConfigError
from fedzo.journal import Evaluation, read_journal
from fedzo.noise import Distribution, get_backend
from fedzo.results.rebuild import rebuild
from fedzo.results.tuned import tuned_model
from fedzo.run_directory import RunDirectory
from fedzo.scopes import Kind, Scope
from fedzo.scopes.adapters import add_adapter, trained_parameters
from fedzo.scopes.base import prepare, scoped
from fedzo.state.replica import Replica

OPTIONS_OF = {
    "sparse": {"scope": "sparse", "sparsity": 0.75},
    "layers": {"scope": "layers", "layers-per-direction": 2},
    "lora": {"scope": "lora", "lora-rank": 4, "lora-alpha": 8, "lora-targets": "q_proj,v_proj"},
    "prefix": {"scope": "prefix", "virtual-tokens": 5, "epsilon": 0.01, "lr": 0.03},
    "head": {"scope": "head", "lr": 0.03},
}
KINDS = tuple(OPTIONS_OF)
LORA = Scope(kind=Kind.LORA, lora_rank=4, lora_alpha=8.0, lora_targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """A finished run of each kind, made when it is first asked for; copy it before changing it."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "run"
            fedzo("simulate", *simulate_options(demo, made[kind], **OPTIONS_OF[kind]))
        return made[kind]

    return run


def held_out(run: Path) -> list[float]:
    return [r.body.loss for r in read_journal(run / "journal").records if isinstance(r.body, Evaluation)]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in unique_parameters(model).items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_pretrained_model_improves_in_every_scope(stories, shared, tmp_path, kind):
    data = shared / "data" / "text" / "shakespeare_by_role.json.gz"
    rate = {"lora": 3e-3, "prefix": 1e-2, "head": 1e-2}.get(kind, 3e-4)
    options = {
        "method": "distinct",
        "rounds": 40,
        "clients": 2,
        "directions": 2,
        "batch-size": 8,
        "max-length": 48,
        "partition": "iid",
    }
    options |= {"eval-every": 40, "eval-data": "every:40", "threads": 1} | OPTIONS_OF[kind] | {"lr": rate}
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    fedzo("simulate", "--model", stories, "--data", data, "--out", tmp_path / "run", *given)
    first, *_, last = held_out(tmp_path / "run")
    assert last < first - 1e-3
    fedzo("replay", tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_comes_back_from_its_files_to_the_same_bits(runs, demo, tmp_path, kind):
    run = runs(kind)
    first, *_, last = held_out(run)
    assert last < first
    genesis = json.loads(fedzo("journal", "show", run, "--json").stdout)["genesis"]
    assert genesis["scope"] == kind
    digest = read_journal(run / "journal").records[-1].state_digest
    for backend in ("numba", "torch"):
        replica, _, _ = rebuild(RunDirectory(run), backend=get_backend(backend))
        assert replica.digest() == digest
    fedzo("artifact", run, "--out", tmp_path / "tuned.fedzo")
    applied = fedzo("apply", tmp_path / "tuned.fedzo", "--base", demo.model, "--out", tmp_path / "applied").stdout
    assert digest.hex() in applied
    fedzo("export", run, "--out", tmp_path / "exported")
    files = sorted(path.name for path in (tmp_path / "exported").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "applied").iterdir())
    for name in files:
        if name.endswith(".safetensors"):
            assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "applied" / name).read_bytes()
    assert f"perplexity {np.exp(last):.2f}"[:13] in fedzo("evaluate", run).stdout
    assert fedzo("generate", run, "--prompt", "the", "--max-new-tokens", "4").stdout.strip()


@pytest.mark.parametrize("kind", ["sparse", "layers", "head"])
def test_what_a_scope_leaves_out_is_the_base_to_the_bit(runs, demo, kind):
    base = load_base(demo.model)
    tuned, before = weights(tuned_model(runs(kind))), weights(base.model)
    plain = Replica.from_base(base, Distribution.RADEMACHER)
    exact = dict(
        zip((spec.name for spec in plain.manifest), map(plain.weights, range(len(plain.manifest))), strict=True)
    )
    moved = {name: tuned[name] != (exact[name] if kind != "head" else before[name].float()) for name in tuned}
    if kind == "head":
        assert [name for name, found in moved.items() if found.any()] == ["lm_head.weight"]
    elif kind == "sparse":
        for name, found in moved.items():
            magnitudes = exact[name].abs()
            kept = found.numel() - found.numel() * 750_000 // 10**6
            assert bool((magnitudes[found] <= magnitudes.flatten().sort().values[kept - 1]).all())
            assert bool(found.any())
    else:
        assert all(bool(found.any()) for found in moved.values()), "12 rounds of 4 clients reach every block"


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_an_adapter_is_exported_as_peft_loads_it(runs, demo, tmp_path, kind):
    from peft import PeftModel

    fedzo("export", runs(kind), "--out", tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names
    base = AutoModelForCausalLM.from_pretrained(demo.model, dtype=torch.float32)
    before = {name: parameter.clone() for name, parameter in weights(base).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.arange(3, 15)[None]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ours = tuned_model(runs(kind))
    with torch.inference_mode():
        assert torch.equal(loaded(**given).logits, ours(**given).logits)
        assert not torch.allclose(
            ours(**given).logits, AutoModelForCausalLM.from_pretrained(demo.model)(**given).logits.float(), atol=1e-5
        )
    frozen = {
        name.replace(".base_layer", ""): p for name, p in ours.get_base_model().named_parameters(remove_duplicate=False)
    }
    assert frozen.keys() >= before.keys()
    assert all(torch.equal(frozen[name], before[name]) for name in before)


def test_a_lora_adapter_is_merged_where_asked_and_nothing_else_is(runs, tmp_path):
    fedzo("export", runs("lora"), "--out", tmp_path / "whole", "--merge")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        ours = tuned_model(runs("lora"))(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, ours, atol=1e-4)
    assert "scope 'head' has no LoRA adapter to merge; leave --merge out" in refused(
        "export", runs("head"), "--out", tmp_path / "none", "--merge"
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["sparse", "layers", "lora"])
@pytest.mark.parametrize("state", ["host", "disk"])
def test_killed_and_resumed_is_the_run_left_alone_in_either_tier(runs, demo, tmp_path, kind, state):
    out = tmp_path / "killed"
    given = simulate_options(demo, out, **OPTIONS_OF[kind], state=state)
    process = subprocess.Popen([*FEDZO, "simulate", *given], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and not ((out / "journal").exists() and read_journal(out / "journal").position >= 5):
        assert time.monotonic() < deadline, "the run does not get on"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    fedzo("simulate", "--resume", "--out", out)
    assert (out / "journal").read_bytes() == (runs(kind) / "journal").read_bytes()


def test_a_run_is_not_resumed_in_another_scope(runs):
    said = refused("simulate", "--resume", "--out", runs("sparse"), "--scope", "layers")
    assert "option --scope is 'layers', but" in said
    assert "began with 'sparse'" in said
    said = refused("simulate", "--resume", "--out", runs("sparse"), "--sparsity", "0.5")
    assert "option --sparsity is 0.5" in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sparsity": 0.5}, "scope 'all' has no use for sparsity"),
        ({"scope": "layers", "layers-per-direction": 99}, "layers-per-direction is 99; this model has"),
        ({"scope": "lora", "lora-alpha": -1}, "lora-alpha is -1.0; expected a number above 0"),
        ({"scope": "lora", "lora-rank": 4, "lora-alpha": 8, "lora-targets": "nothing"}, "Target modules"),
        ({"scope": "loras"}, "scope 'loras' is unknown; choose one of: all, sparse, layers, lora, prefix, head"),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_anything_is_written(demo, tmp_path, changed, message):
    assert message in refused("simulate", *simulate_options(demo, tmp_path / "run", **changed))
    assert not (tmp_path / "run" / "journal").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sparse", "lora"])
def test_a_server_and_its_clients_write_the_journal_of_the_simulation(runs, demo, tmp_path, kind):
    out = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, out, **OPTIONS_OF[kind], engine="processes"))
    assert (out / "journal").read_bytes() == (runs(kind) / "journal").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["layers", "prefix"])
def test_flowers_simulation_writes_it_too(runs, demo, tmp_path, kind):
    out = tmp_path / "run"
    with Simulated(by_flower(demo, out, **OPTIONS_OF[kind]), out) as run:
        said = run.said()
        assert run.returncode == 0, said
    assert (out / "journal").read_bytes() == (runs(kind) / "journal").read_bytes()


def test_an_adapter_starts_from_the_runs_seed_and_never_from_torchs(demo):
    found = []
    for torch_seed, run_seed in ((0, 7), (1, 7), (0, 8)):
        torch.manual_seed(torch_seed)
        model = add_adapter(load_base(demo.model).model.float(), LORA, run_seed)
        found.append({name: p.detach().clone() for name, p in trained_parameters(model).items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    for name, weight in found[0].items():
        if "lora_B" in name:
            assert not weight.any()
        else:
            assert not torch.equal(weight, found[2][name])
            assert float(weight.std()) == pytest.approx(1 / (3 * weight.shape[1]) ** 0.5, rel=0.4)


def test_golden_first_weights_of_an_adapter(tiny_model):
    """A change of these values is a new numerics version (CONTRIBUTING.md)."""
    model = add_adapter(load_base(tiny_model).model.float(), LORA, 3)
    name, weight = next(iter(trained_parameters(model).items()))
    assert name == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    found = [value.hex() for value in weight[0, :4].tolist()]
    assert found == ["-0x1.2423a40000000p-5", "-0x1.83fab80000000p-9", "0x1.c006180000000p-8", "-0x1.02f10c0000000p-3"]


def test_the_identity_of_the_base_is_that_of_all_of_it(demo):
    whole, part = load_base(demo.model), scoped(load_base(demo.model), LORA, 0)
    assert part.digest == whole.digest
    replica = Replica.from_base(part, Distribution.RADEMACHER)
    assert all("lora_" in spec.name for spec in replica.manifest)


def test_a_classifier_trains_its_head_beside_the_adapter(demo):
    base = load_base(demo.model, Head(("no", "yes"), 0))
    assert isinstance(base.model, AutoModelForSequenceClassification._model_mapping[type(base.model.config)])
    names = list(unique_parameters(scoped(base, LORA, 0).model))
    assert any("modules_to_save" in name for name in names)
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    head = scoped(load_base(demo.model, Head(("no", "yes"), 0)), Scope(kind=Kind.HEAD), 0)
    assert list(unique_parameters(head.model)) == ["score.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize(
    "scope",
    [
        Scope(kind=Kind.LORA, lora_rank=4, lora_alpha=8.0, lora_targets=("nothing",)),
        Scope(kind=Kind.LORA, lora_rank=4, lora_alpha=8.0, lora_targets=("q_proj", "norm")),
        Scope(kind=Kind.HEAD),
    ],
    ids=["none", "some", "head"],
)
def test_a_scope_that_is_refused_leaves_the_model_as_it_was(demo, scope, dtype):
    model = network().to(dtype) if scope.kind is Kind.HEAD else load_base(demo.model).model.to(dtype)
    before = {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    with pytest.raises(ConfigError):
        prepare(model, scope, 0)
    assert {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("scope", [LORA, Scope(kind=Kind.PREFIX, virtual_tokens=5)], ids=lambda scope: scope.kind.value)
def test_a_base_in_16_bits_gets_the_adapter_of_its_float32(demo, scope):
    half = load_base(demo.model).model.half()
    whole = load_base(demo.model).model.half().float()
    (one, of_one), (other, of_other) = prepare(half, scope, 3), prepare(whole, scope, 3)
    assert list(of_one) == list(of_other)
    assert all(torch.equal(of_one[name], of_other[name]) for name in of_one)
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    assert all(a[0] == b[0] and a[1].dtype is torch.float32 and torch.equal(a[1], b[1]) for a, b in pairs)


def test_a_module_in_memory_is_given_back_with_its_adapter():
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    done = library.simulate(
        model,
        DATASETS,
        loss=squared_error,
        evaluation=HELD_OUT,
        **OPTIONS,
        scope="lora",
        lora_rank=2,
        lora_alpha=4.0,
        lora_targets="0,2",
    )
    first, *_, last = done.held_out_losses
    assert last[1] < first[1]
    for name, parameter in done.model.named_parameters():
        assert type(parameter) is torch.nn.Parameter
        if "base_layer" in name:
            assert torch.equal(parameter, before[name.replace("base_model.model.", "").replace(".base_layer", "")])
    with torch.no_grad():
        assert done.model(HELD_OUT[0][0]["x"]).isfinite().all()
    with pytest.raises(
        ConfigError, match="scope 'head' needs a model of transformers with a head; Sequential has none"
    ):
        library.simulate(network(), DATASETS, loss=squared_error, **OPTIONS, scope="head")


def test_sparse_and_layers_work_on_any_module():
    for options in ({"scope": "sparse", "sparsity": 0.5}, {"scope": "layers", "layers_per_direction": 1}):
        done = library.simulate(network(), DATASETS, loss=squared_error, evaluation=HELD_OUT, **OPTIONS, **options)
        assert done.held_out_losses[-1][1] < done.held_out_losses[0][1]
