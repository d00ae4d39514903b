"""A pretrained sentence encoder with a classification head, as the subject of a comparison.

In a TOML file of `fedzo compare`, `[subject] make = "benchmarks.encoder:make"` and the arguments of `prepared`.

The encoder is any BERT-like checkpoint; its token states are averaged, and a linear head makes one logit a label. The
head starts as the logistic regression on the frozen encoder's features of some training rows, so what a comparison
shows is what fine-tuning gains over that.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from os.path import expandvars
from typing import Any, NamedTuple

import torch
from fedzo_simulations.compare.subject import MadeSubject
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoTokenizer

from fedzo.noise.draws import partition_order
from fedzo.tasks.rows import Row, read_rows

_FITTING_STEPS = 200
_WEIGHT_DECAY = 1e-3
"""Of the logistic regression, on the mean loss."""


class Example(NamedTuple):
    """A row's tokens and the number of its label."""

    ids: list[int]
    label: int


class Classifier(nn.Module):
    """Mean-pooled token states through a linear head."""

    def __init__(self, encoder: nn.Module, features: int, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(features, labels)

    def features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float32[rows, features]: the mean over each row's tokens."""
        mask = batch["mask"]
        states = self.encoder(input_ids=batch["ids"], attention_mask=mask).last_hidden_state
        return (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float32[rows, labels]."""
        return self.head(self.features(batch))


class Prepared(NamedTuple):
    """What all cells of a comparison share."""

    model: Classifier
    training: list[Example]
    held_out: list[Example]


def make(*, clients: int, seed: int, **given: Any) -> MadeSubject:
    """The arguments of `fedzo.simulate`.

    Args:
        clients: the training rows are dealt to them in a seeded order, the held-out ones in turn.
        seed: of that order.
        given: arguments of `prepared`.
    """
    found = prepared(**given)
    order = partition_order(seed, len(found.training))
    return MadeSubject(
        model=deepcopy(found.model),
        datasets=[[found.training[k] for k in order[client::clients]] for client in range(clients)],
        evaluation=[found.held_out[client::clients] for client in range(clients)],
        collate=collate,
        loss=lambda model, batch: cross_entropy(model(batch), batch["label"]),
        measure=measure,
    )


@cache
def prepared(
    *,
    weights: str,
    data: str,
    held_out: str,
    text: str,
    label: str,
    rows: int,
    head_rows: int,
    held_out_rows: int,
    max_length: int,
) -> Prepared:
    """Load the encoder and the data, and fit the head.

    Args:
        weights: checkpoint directory; $VARIABLES are replaced.
        data, held_out: files of rows, likewise.
        text, label: fields.
        rows, held_out_rows: how many of them are used, drawn with seed 0.
        head_rows: how many of the training rows the head is fitted on.
        max_length: most tokens of a row.
    """
    source = expandvars(weights)
    training, held = _drawn(read_rows(expandvars(data)), rows), _drawn(read_rows(expandvars(held_out)), held_out_rows)
    labels = sorted({str(row.fields[label]) for row in training})
    tokenizer = AutoTokenizer.from_pretrained(source)

    def examples(given: Sequence[Row]) -> list[Example]:
        ids = tokenizer([row.fields[text] for row in given], truncation=True, max_length=max_length)["input_ids"]
        return [Example(i, labels.index(str(row.fields[label]))) for i, row in zip(ids, given, strict=True)]

    encoder = AutoModel.from_pretrained(source, add_pooling_layer=False)
    model = Classifier(encoder, encoder.config.hidden_size, len(labels)).eval()
    found = Prepared(model, examples(training), sorted(examples(held), key=lambda example: len(example.ids)))
    fit_head(model, found.training[:head_rows])
    return found


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """ids and mask, int64[rows, longest], padded right; label, int64[rows]."""
    width = max(len(example.ids) for example in examples)
    ids = torch.tensor([example.ids + [0] * (width - len(example.ids)) for example in examples])
    lengths = torch.tensor([len(example.ids) for example in examples])
    return {
        "ids": ids,
        "mask": (torch.arange(width) < lengths[:, None]).long(),
        "label": torch.tensor([example.label for example in examples]),
    }


def measure(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """Loss and accuracy."""
    logits = model(batch)
    return float(cross_entropy(logits, batch["label"])), float((logits.argmax(1) == batch["label"]).double().mean())


def fit_head(model: Classifier, examples: Sequence[Example]) -> None:
    """Logistic regression of the labels on the frozen encoder's features, by L-BFGS."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    batches = [collate(ordered[low : low + 32]) for low in range(0, len(ordered), 32)]
    with torch.no_grad():
        features = torch.cat([model.features(batch) for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    optimiser = torch.optim.LBFGS(model.head.parameters(), max_iter=_FITTING_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = cross_entropy(model.head(features), labels) + _WEIGHT_DECAY * model.head.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)


def _drawn(rows: Sequence[Row], count: int) -> list[Row]:
    return [rows[k] for k in partition_order(0, len(rows))[:count]]
