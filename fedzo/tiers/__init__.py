"""Where a replica's integers lie: in memory, or in a file that is streamed through a fixed ring of buffers."""

TIERS = ("auto", "device", "host", "disk")
"""What a user can ask for; see `fedzo.tiers.choice`."""

COPIES = ("none", "bf16", "fp16", "int8")
"""What a user can ask for as a compute copy (`fedzo.state.compute_copy`); `none` reads the state itself."""

SAME = "same"
"""What a user can ask for as the tier of a compute copy, beside `TIERS`: that of the state."""


def copy_tier(copy_state: str, state: str) -> str:
    """What a copy's tier is asked to be, where that of the state is so."""
    return state if copy_state == SAME else copy_state


BUFFER_ELEMENTS = 1 << 21
"""Of a read from disk: 8 MiB, large enough for a disk's full bandwidth."""
LEAST_BUFFERS = 8
"""What the ring holds, whatever the model."""
