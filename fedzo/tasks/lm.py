"""`lm`: the causal-language-model loss on text, packed into windows.

A client's rows are tokenised and laid end to end (the tokenizer's own special tokens between them, else its end
token), then cut into windows of `max_length` tokens; a shorter rest is a window of its own. Examples are windows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedzo.errors import DataError
from fedzo.estimate import Batch
from fedzo.noise.draws import epoch_order
from fedzo.tasks.rows import Row

IGNORED_LABEL = -100
Windows = list[NDArray[np.int64]]


def lm_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the next token, as the model computes it; no key-value cache is kept."""
    return model(**batch, use_cache=False).loss  # type: ignore[no-any-return]


def make_windows(rows: Sequence[Row], tokenizer: Any, max_length: int) -> Windows:
    """Token windows of some rows: int64, `max_length` each but the last; a rest of one token is dropped."""
    separated = tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]
    end = [] if separated or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for row in rows:
        stream += [*tokenizer(row.text)["input_ids"], *end]
    ids = np.array(stream, dtype=np.int64)
    windows = [ids[low : low + max_length] for low in range(0, len(ids), max_length)]
    return [window for window in windows if len(window) > 1]


def collate(windows: Sequence[NDArray[np.int64]]) -> tuple[Batch, int]:
    """A batch of windows and the number of tokens that its loss is the mean of. Short windows are padded right."""
    width = max(len(window) for window in windows)
    ids = torch.zeros(len(windows), width, dtype=torch.int64)
    labels = torch.full((len(windows), width), IGNORED_LABEL)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.from_numpy(window)
        labels[row, : len(window)] = torch.from_numpy(window)
    batch = {"input_ids": ids, "labels": labels}
    if any(len(window) < width for window in windows):
        batch["attention_mask"] = (labels != IGNORED_LABEL).to(torch.int64)
    return batch, sum(len(window) - 1 for window in windows)


class LanguageModelData:
    """One client's windows; batches follow a seeded order through each epoch.

    Args:
        training: windows to train on.
        held_out: windows to evaluate on.
        run_seed, client: what the order is drawn from.
        evaluation_batch: windows of an evaluation batch.
    """

    def __init__(
        self, training: Windows, held_out: Windows, *, run_seed: int, client: int, evaluation_batch: int
    ) -> None:
        if not training:
            raise DataError(f"client {client} has no training tokens; use fewer clients, more data or longer rows")
        self._training = training
        self._held_out = held_out
        self._run_seed = run_seed
        self._client = client
        self._evaluation_batch = evaluation_batch
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    @property
    def training_windows(self) -> int:
        """Number of training examples."""
        return len(self._training)

    def training_batch(self, step: int, batch_size: int) -> tuple[Batch, int]:
        """See `fedzo.worker.ClientData`; a client with fewer windows than a batch gives all it has."""
        total = len(self._training)
        size = min(batch_size, total)
        first = step * size
        chosen = [self._order_of(k // total)[k % total] for k in range(first, first + size)]
        batch, _ = collate([self._training[k] for k in chosen])
        return batch, size

    def held_out_batches(self) -> list[tuple[Batch, int]]:
        """See `fedzo.worker.ClientData`; windows of one length go together."""
        ordered = sorted(self._held_out, key=len, reverse=True)
        size = self._evaluation_batch
        return [collate(ordered[low : low + size]) for low in range(0, len(ordered), size)]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self._run_seed, self._client, epoch, len(self._training)))
        return self._order[1]
