"""The memory that a client may take.

Some of it is known before anything is loaded, the replica and the weights of a forward pass, and a run that cannot fit
is refused. Activations depend on model and batch: a run that turns out larger is left as soon as that shows.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

from fedzo.base.manifest import Manifest
from fedzo.errors import ConfigError, MemoryLimitError
from fedzo.estimate import LANES
from fedzo.scopes import Scope
from fedzo.state.compute_copy import CopyFormat
from fedzo.tiers import BUFFER_ELEMENTS, LEAST_BUFFERS
from fedzo.tiers.choice import peak_bytes

from .options import GIB

LOOK_S = 0.25
"""Seconds between looks at the memory taken."""


def tier_within(
    tier: str, manifest: Manifest, scope: Scope, *, itemsize: int, compute_copy: str, most_bytes: float
) -> str:
    """Where the state of a run goes, so that this process can hold it, and the largest tensor for every lane.

    What a scope leaves frozen is not counted, since the journal does not say how much that is.

    Args:
        tier: one of `fedzo.tiers.TIERS`; `auto` takes memory where that is enough, else the disk. A device's memory
            is counted like the host's.
        manifest, scope: of the run.
        itemsize: bytes of a weight in the compute type.
        compute_copy: one of `fedzo.tiers.COPIES`; counted as if it lay where the state does.
        most_bytes: the limit.

    Raises:
        ConfigError: it cannot.
    """
    if most_bytes == inf:
        return tier
    largest = max((spec.size for spec in manifest), default=0)
    now, weights = peak_bytes(), LANES * itemsize * largest
    ring = 4 * max(largest, LEAST_BUFFERS * BUFFER_ELEMENTS)
    copied = 0 if compute_copy == "none" else 4 * CopyFormat(compute_copy, manifest).layout().elements
    in_memory = scope.state_bytes(manifest.elements) + copied
    states = {"device": in_memory, "host": in_memory, "disk": ring}
    for chosen in ("host", "disk") if tier == "auto" else (tier,):
        needed = now + states[chosen] + weights
        if needed <= most_bytes:
            return tier if chosen == "host" else chosen
    held = "replica" if compute_copy == "none" else f"replica and its {compute_copy} copy"
    raise ConfigError(
        f"the run needs at least {_gib(needed)} here ({_gib(now)} before it is loaded, {_gib(states[chosen])} for the "
        f"{held} with --state {chosen}, {_gib(weights)} for weights at work), but --max-memory allows "
        f"{_gib(most_bytes)}; raise the limit, or stay out"
    )


@asynccontextmanager
async def watched_memory(most_bytes: float, leave: asyncio.Event) -> AsyncIterator[None]:
    """Set an event when the process passes the limit.

    Raises:
        MemoryLimitError: it did; raised at the end.
    """

    async def watch() -> None:
        while peak_bytes() <= most_bytes:
            await asyncio.sleep(LOOK_S)
        leave.set()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()  # it is not done by that alone
    if watching.done():
        raise MemoryLimitError(
            f"this client has taken {_gib(peak_bytes())} of memory, but --max-memory allows {_gib(most_bytes)}; its "
            "files are up to date: raise the limit and start it again, or stay out"
        )


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
