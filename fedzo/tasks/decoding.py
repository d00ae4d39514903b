"""Greedy decoding that leaves nothing on the model, so that lanes of a lockstep may decode side by side."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def greedy_answer(
    model: nn.Module, tokenizer: Any, prompt: NDArray[np.int64], *, answer_tokens: int, stop: str = ""
) -> str:
    """The likeliest token each time, until an end token, the text `stop`, or `answer_tokens` of them.

    Args:
        model: a causal language model, which keeps its keys and values between calls where it can. One with a trained
            prefix cannot: peft puts the prefix in the place of what was kept.
        tokenizer: the model's.
        prompt: tokens to continue, at least one.
        answer_tokens: most tokens.
        stop: text before which the answer ends; empty for none.

    Returns:
        The answer, without space around it.
    """
    ends = _end_tokens(model, tokenizer)
    ids = torch.from_numpy(prompt).unsqueeze(0).to(next(model.parameters()).device)
    given, past, text = ids, None, ""
    keeps = not getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    said: list[int] = []
    with torch.inference_mode():
        for _ in range(answer_tokens):
            cached: dict[str, Any] = {} if past is None else {"past_key_values": past}
            out = model(input_ids=given, use_cache=keeps, **cached)
            token = out.logits[:, -1:].argmax(dim=-1)
            if int(token) in ends:
                break
            said.append(int(token))
            text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if stop and stop in text:
                break
            past = getattr(out, "past_key_values", None) if keeps else None
            ids = torch.cat([ids, token], dim=1)
            given = ids if past is None else token
    return str(text.partition(stop)[0] if stop else text).strip()


def _end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}
