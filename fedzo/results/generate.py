"""Text from a tuned model or any other: `fedzo generate`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from fedzo.base.checkpoint import load_base, load_tokenizer
from fedzo.errors import ConfigError
from fedzo.estimate import Estimator, weights_of
from fedzo.results.rebuild import plain_model, rebuild
from fedzo.run_directory import RunDirectory
from fedzo.tiers.choice import CPU
from fedzo.tiers.host import HostStore

_SEED_LIMIT = 2**64


Call = Callable[[Callable[[], str]], str]
"""Runs what uses a model, its weights there while it runs."""


def load_target(target: str, base: str | None = None) -> tuple[PreTrainedModel, Any]:
    """A language model and its tokenizer.

    Args:
        target: run directory, else checkpoint directory or hub name.
        base: the base of a run, where it is not the one that its config names.

    Raises:
        FedzoError: as `open_target`.
    """
    model, tokenizer, _ = open_target(target, base, state="host", device=CPU)
    return model, tokenizer


def open_target(
    target: str, base: str | None, *, state: str, device: torch.device
) -> tuple[PreTrainedModel, Any, Call]:
    """A language model, its tokenizer, and what to use the model through.

    Args:
        target, base: as of `load_target`.
        state: where a run's weights lie, one of `fedzo.tiers.TIERS`; on disk they come in as the model is used.
        device: where the model computes.

    Raises:
        ConfigError: the target is a file or a run with a classification head, or a base is given for what is no run.
        FedzoError: as `rebuild` and `load_base`.
    """
    run = RunDirectory(Path(target))
    if run.journal.exists():
        replica, loaded, contents = rebuild(run, base, state=state, device=device)
        task = contents.genesis.task
        if task.head:
            raise ConfigError(f"{target}: its model has a classification head (task {task.name!r}) and says nothing")
        tokenizer = load_tokenizer(loaded.source)
        if isinstance(replica.store, HostStore):
            return plain_model(replica, loaded).to(device), tokenizer, _at_once
        weights = weights_of(replica, "none", state, run.path, device)
        return loaded.model, tokenizer, Estimator(loaded.model, replica, weights=weights).call
    if Path(target).is_file():
        raise ConfigError(
            f"{target}: is a file; give a run directory, a model directory (`fedzo apply` makes one of an "
            "artifact) or a hub name"
        )
    if base is not None:
        raise ConfigError(f"--base {base}: {target} is not a run directory, which alone has a base; leave --base out")
    if state in ("disk", "device"):
        raise ConfigError(f"--state {state}: {target} is not a run directory, which alone has a state; leave it out")
    return load_base(target).model.float().to(device), load_tokenizer(target), _at_once


def _at_once(function: Callable[[], str]) -> str:
    return function()


def continuation(
    model: PreTrainedModel, tokenizer: Any, prompt: str, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> str:
    """What a model says after a prompt, up to its end token or `max_new_tokens`.

    Args:
        model: a language model; its own sampling settings are put aside.
        tokenizer: the model's.
        prompt: tokenised as it stands, with the tokenizer's own special tokens.
        max_new_tokens: at least 1.
        temperature: 0 takes the likeliest token each time; else tokens are drawn from softmax(logits / temperature).
        seed: of the draws; the process's random state is as before afterwards.

    Raises:
        ConfigError: a value is out of range, the prompt has no token, or the model has too few positions.
    """
    _check_sampling(max_new_tokens, temperature, seed)
    encoded = tokenizer(prompt, return_tensors="pt")
    start = encoded["input_ids"].to(model.device, torch.int64)
    _check_room(model, start.shape[1], max_new_tokens)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    own = [model.device] if model.device.type == "cuda" else []
    with _settings_aside(model), torch.random.fork_rng(devices=own):
        torch.manual_seed(seed)
        tokens = model.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=max_new_tokens, **sampling
        )[0]
    # Decoded with the prompt before it, since many tokenizers drop a space that comes first.
    before, whole = (
        tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for part in (start[0], tokens)
    )
    return str(whole[len(before) :])


@contextmanager
def _settings_aside(model: Any) -> Iterator[None]:
    """Of a model's own sampling settings nothing but its end and padding tokens; an adapter reads what it is around."""
    holder = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = holder.generation_config
    padding = 0 if own.pad_token_id is None else own.pad_token_id  # of one sequence there is none
    holder.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=padding)
    try:
        yield
    finally:
        holder.generation_config = own


def _check_sampling(max_new_tokens: int, temperature: float, seed: int) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"option --max-new-tokens is {max_new_tokens}; expected 1 or more")
    if not (isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"option --temperature is {temperature}; expected 0 (the likeliest token) or more")
    if not 0 <= seed < _SEED_LIMIT:
        raise ConfigError(f"option --seed is {seed}; expected 0 to {_SEED_LIMIT - 1}")


def _check_room(model: PreTrainedModel, tokens: int, max_new_tokens: int) -> None:
    if not tokens:
        raise ConfigError("option --prompt has no token and the tokenizer no token to begin with; give some text")
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and tokens + max_new_tokens > room:
        raise ConfigError(
            f"the prompt has {tokens} tokens and --max-new-tokens is {max_new_tokens}; together more than the {room} "
            "positions of the model: give less"
        )
