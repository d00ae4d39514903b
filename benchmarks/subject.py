"""What is measured: an OPT-shaped model with random weights as a replica, and the same weights in plain models."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from fedzo.base.checkpoint import Base, base_digest, unique_parameters
from fedzo.estimate import Batch, Estimator
from fedzo.noise import COEFFICIENT_BITS, Distribution
from fedzo.state.replica import Replica

EPSILON = round(1e-3 * 2**COEFFICIENT_BITS)
"""Units of 2⁻⁴⁰."""
LEARNING_RATE = 1e-6

_ROWS, _TOKENS = 16, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model, on all sides."""

    replica: Replica
    estimator: Estimator
    plain: nn.Module
    """For plain forwards; holds the replica's weights as `load` left them."""
    batch: Batch

    @classmethod
    def opt(cls, threads: int) -> "Subject":
        """23.4M parameters, float32, a batch of 16 × 64 tokens."""
        torch.manual_seed(0)
        model = OPTForCausalLM(_opt_config()).eval()
        ids = torch.randint(_opt_config().vocab_size, (_ROWS, _TOKENS))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "use_cache": False}
        plain = deepcopy(model)
        base = Base(source="random", model=model, digest=base_digest(model))
        replica = Replica.from_base(base, Distribution.RADEMACHER, threads=threads)
        subject = cls(replica=replica, estimator=Estimator(model, replica), plain=plain, batch=batch)
        subject.load()
        return subject

    def materialised(self, seed: int = 0, coefficient: int = 0) -> torch.Tensor:
        """float32[1, elements]: all weights at one perturbation, end to end."""
        replica = self.replica
        everything = range(len(replica.manifest))
        targets = replica.manifest.starts
        out = torch.empty(1, replica.manifest.elements)
        increments = replica.increments([replica.overlay({}, [(seed, coefficient)])])
        replica.materialise(everything, targets, increments, out)
        return out

    @torch.no_grad()
    def load(self, seed: int = 0, coefficient: int = 0) -> None:
        """Load the plain model with the replica's weights at one perturbation."""
        parts = self.materialised(seed, coefficient)[0].split([spec.size for spec in self.replica.manifest])
        for parameter, part in zip(unique_parameters(self.plain).values(), parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def _opt_config() -> OPTConfig:
    return OPTConfig(
        vocab_size=8192,
        hidden_size=512,
        word_embed_proj_dim=512,
        ffn_dim=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
