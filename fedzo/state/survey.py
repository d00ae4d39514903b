"""What a pass over a state finds: its digest and each tensor's largest magnitude (docs/numerics.md, "Digests")."""

from blake3 import blake3

from fedzo.base.checkpoint import raw_bytes
from fedzo.base.manifest import Manifest
from fedzo.tiers.store import Piece


class Survey:
    """Goes through all of a state, piece by piece in manifest order."""

    def __init__(self, manifest: Manifest, threads: int) -> None:
        self._manifest = manifest
        self._digests = [blake3(max_threads=threads) for _ in manifest]
        self._maxima = [0] * len(manifest)

    def add(self, piece: Piece) -> None:
        """Look at the next integers."""
        for tensor, segment in zip(piece.tensors, piece.segments, strict=True):
            part = piece.integers[segment.source : segment.source + segment.size].cpu()
            if segment.size:
                self._digests[tensor].update(raw_bytes(part))
                self._maxima[tensor] = max(self._maxima[tensor], -int(part.min()), int(part.max()))

    def result(self) -> tuple[bytes, tuple[int, ...]]:
        """The state digest, 32 bytes, and max|Θ| of every tensor."""
        hasher = blake3(self._manifest.to_bytes())
        for digest in self._digests:
            hasher.update(digest.digest())
        return hasher.digest(), tuple(self._maxima)
