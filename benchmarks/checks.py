"""Do both sides compute the same thing? Each check says what holds, and whether it does."""

from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

import torch
from fedzo_simulations.baselines.mezo import Mezo, plain_loss, rademacher_direction

from benchmarks.subject import EPSILON, LEARNING_RATE, Subject
from fedzo.journal import Entry
from fedzo.noise import COEFFICIENT_BITS, Distribution, NoiseBackend, Segment, get_backend
from fedzo.state.replica import Replica

_SEED = 7
_SLICE = 5000
_ROUNDING = 1e-5
"""Relative. Equality to the bit cannot be asked: in place a weight is rounded at every pass, materialised once."""


class Check(NamedTuple):
    """What was compared and how it came out."""

    claim: str
    holds: bool
    found: str


def run_checks(subject: Subject, entries: list[Entry]) -> Iterator[Check]:
    """Every check; replica and plain model are left as they were.

    Args:
        subject: its plain model is loaded with the replica's weights.
        entries: a replay.
    """
    yield _losses(subject, "the loss at coefficient zero is the plain forward's, bit for bit", [0])
    yield _losses(subject, "the losses at ±ε are plain forwards' at materialised weights", [EPSILON, -EPSILON])
    yield _materialised(subject)
    yield _committed(subject, entries[:1])
    yield _replayed(subject, entries)
    yield _mezo(subject)


def _losses(subject: Subject, claim: str, coefficients: list[int]) -> Check:
    ours = subject.estimator.losses(subject.batch, [(_SEED, coefficients)])[0]
    plain = []
    for coefficient in coefficients:
        subject.load(_SEED, coefficient)
        plain.append(plain_loss(subject.plain, subject.batch))
    subject.load()
    return Check(claim, ours == plain, f"{ours} and {plain}")


def _materialised(subject: Subject) -> Check:
    """A slice in the middle of every tensor, by the replica's backend and by the reference."""
    replica = subject.replica
    specs = replica.manifest.tensors
    increments = replica.increments([replica.overlay({}, [(_SEED, EPSILON)])]).of(range(len(specs)))
    slices = [
        Segment(row, spec.size // 3, min(_SLICE, spec.size // 2), start + spec.size // 3, row * _SLICE)
        for row, (spec, start) in enumerate(zip(specs, replica.manifest.starts, strict=True))
    ]
    reference = torch.zeros(1, len(specs) * _SLICE)
    get_backend("reference").materialise(replica.state, slices, increments, reference, 1)
    made = subject.materialised(_SEED, EPSILON)
    different = sum(
        not torch.equal(made[0, s.source : s.source + s.size], reference[0, s.target : s.target + s.size])
        for s in slices
    )
    claim = "materialised weights are the reference backend's on a slice of every tensor"
    return Check(claim, different == 0, f"{different} of {len(specs)} tensors differ")


def _committed(subject: Subject, entries: list[Entry]) -> Check:
    ours, reference = _copy(subject.replica), _copy(subject.replica, get_backend("reference"))
    ours.add(entries)
    reference.add(entries)
    return _same_digest("a commit gives the reference backend's state digest", ours, reference)


def _replayed(subject: Subject, entries: list[Entry]) -> Check:
    together, singly = _copy(subject.replica), _copy(subject.replica)
    together.add(entries)
    for entry in entries:
        singly.add([entry])
    return _same_digest(f"{len(entries)} entries at once give the state digest of one at a time", together, singly)


def _mezo(subject: Subject) -> Check:
    """Equal losses where MeZO is fed our directions."""
    epsilon = EPSILON / 2**COEFFICIENT_BITS
    mezo = Mezo(deepcopy(subject.plain), rademacher_direction, epsilon=epsilon, learning_rate=LEARNING_RATE)
    theirs = mezo.step(subject.batch, _SEED)
    ours = subject.estimator.losses(subject.batch, [(_SEED, (EPSILON, -EPSILON))])[0]
    furthest = max(abs(a - b) / abs(b) for a, b in zip(theirs, ours, strict=True))
    claim = f"MeZO fed our z has our losses to {_ROUNDING:.0e} relative (in place, each pass rounds anew)"
    return Check(claim, furthest <= _ROUNDING, f"{list(theirs)} and {ours}, at most {furthest:.0e} apart")


def _copy(replica: Replica, backend: NoiseBackend | None = None) -> Replica:
    return Replica(
        replica.manifest, replica.state.clone(), Distribution.RADEMACHER, backend=backend, threads=replica.threads
    )


def _same_digest(claim: str, first: Replica, second: Replica) -> Check:
    a, b = first.digest().hex()[:16], second.digest().hex()[:16]
    return Check(claim, a == b, f"{a}… and {b}…")
