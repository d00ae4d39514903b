"""`fedzo generate`: what a model says, from a run or from the directory that was exported from it."""

import pytest
import torch
from commands import fedzo, refused
from transformers import GenerationConfig

import fedzo as library
from fedzo.base.checkpoint import load_base, load_tokenizer
from fedzo.errors import ConfigError
from fedzo.results.generate import continuation, load_target
from fedzo.scopes import Kind, Scope
from fedzo.scopes.base import prepare

PROMPT = "the cat is"
LORA = Scope(kind=Kind.LORA, lora_rank=2, lora_alpha=4.0, lora_targets=("q_proj",))
PREFIX = Scope(kind=Kind.PREFIX, virtual_tokens=3)


@pytest.fixture(scope="module")
def loaded(finished):
    """The finished run's model and its tokenizer."""
    return load_target(str(finished))


def test_at_temperature_0_each_token_is_the_likeliest(loaded):
    model, tokenizer = loaded
    tokens = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    said = continuation(model, tokenizer, PROMPT, max_new_tokens=12)
    assert PROMPT + said == tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert said == continuation(model, tokenizer, PROMPT, max_new_tokens=12, seed=5)


def test_above_it_the_seed_decides_and_the_process_keeps_its_random_state(loaded):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    said = [continuation(*loaded, PROMPT, max_new_tokens=24, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_models_own_sampling_settings_do_not_matter(loaded):
    model, tokenizer = loaded
    said = continuation(model, tokenizer, PROMPT, max_new_tokens=12)
    own = model.generation_config
    model.generation_config = type(own)(do_sample=True, temperature=9.0, repetition_penalty=5.0, max_length=1)
    changed = model.generation_config
    assert continuation(model, tokenizer, PROMPT, max_new_tokens=12) == said
    assert model.generation_config is changed
    model.generation_config = own


@pytest.mark.parametrize("scope", [LORA, PREFIX], ids=lambda scope: scope.kind.value)
def test_nor_those_of_a_model_in_an_adapter(demo, scope):
    model, _ = prepare(load_base(demo.model).model, scope, 0)
    tokenizer, base = load_tokenizer(demo.model), model.get_base_model()
    said = continuation(model, tokenizer, PROMPT, max_new_tokens=12)
    own = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=5.0, max_length=1)
    base.generation_config = own
    assert continuation(model, tokenizer, PROMPT, max_new_tokens=12) == said
    assert base.generation_config is own
    assert model.generation_config is own


def test_a_run_and_its_export_say_the_same(finished, loaded, tmp_path):
    fedzo("export", finished, "--out", tmp_path / "model")
    said = [
        fedzo("generate", target, "--prompt", PROMPT, "--max-new-tokens", 12).stdout
        for target in (finished, tmp_path / "model")
    ]
    model, tokenizer = loaded
    assert said == [continuation(model, tokenizer, PROMPT, max_new_tokens=12) + "\n"] * 2
    assert torch.equal(model.lm_head.weight, library.tuned_model(finished).lm_head.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens is 0; expected 1 or more"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"temperature": -1.0}, "--temperature is -1.0"),
        ({"seed": -1}, "--seed is -1"),
        ({"max_new_tokens": 100_000}, "--max-new-tokens is 100000; together more than the"),
    ],
)
def test_values_out_of_range_are_refused_by_name(loaded, options, message):
    with pytest.raises(ConfigError, match=message):
        continuation(*loaded, PROMPT, **({"max_new_tokens": 4} | options))


def test_a_prompt_without_a_token_is_refused(loaded):
    def silent(prompt: str, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.empty(1, 0)}

    with pytest.raises(ConfigError, match="--prompt has no token"):
        continuation(loaded[0], silent, "", max_new_tokens=4)


def test_a_target_that_is_none_is_refused_by_name(finished, demo, tmp_path):
    assert "nowhere" in refused("generate", "nowhere", "--prompt", PROMPT)
    assert f"{tmp_path}" in refused("generate", tmp_path, "--prompt", PROMPT)
    assert "is a file" in refused("generate", finished / "journal", "--prompt", PROMPT)
    assert "leave --base out" in refused("generate", demo.model, "--prompt", PROMPT, "--base", demo.model)
    assert "nowhere" in refused("generate", finished, "--prompt", PROMPT, "--base", "nowhere")
