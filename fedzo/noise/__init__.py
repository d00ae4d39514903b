"""Directions and integer steps: counter-based noise that is equal to the bit everywhere (docs/numerics.md)."""

from fedzo.noise.backends import BACKENDS, CopyBackend, NoiseBackend, Scales, backend_at, get_backend
from fedzo.noise.directions import Distribution
from fedzo.noise.increments import COEFFICIENT_BITS, Increments, Mask, Segment, StepTables, Term

__all__ = [
    "BACKENDS",
    "COEFFICIENT_BITS",
    "CopyBackend",
    "Distribution",
    "Increments",
    "Mask",
    "NoiseBackend",
    "Scales",
    "Segment",
    "StepTables",
    "Term",
    "backend_at",
    "get_backend",
]
