"""What a client without a journal begins its copy with: the genesis, and totals where these are less than records."""

from fedzo.coordinator import History
from fedzo.journal import Entry, Genesis, Journal, Start
from fedzo.journal.genesis_codec import encode_start
from fedzo.methods import get_method
from fedzo.v1 import rounds_pb2 as pb


def totals_suffice(genesis: Genesis) -> bool:
    """Do totals say all that a client needs of a run's past, in a size that does not grow with it?

    They do where seeds come from a pool and the method remembers nothing of earlier rounds but what it added. Elsewhere
    seeds are as many as the scalars, and whoever joins gets the records.
    """
    rules = genesis.rules
    return rules.pool_size > 0 and get_method(rules.method).memory(genesis) is None


class Beginnings:
    """Of one run.

    Args:
        journal: the run's.
        history: of it; it may be some records behind.
    """

    def __init__(self, journal: Journal, history: History) -> None:
        self._journal = journal
        self._contents = journal.contents
        self._history = history
        self._genesis = pb.GenesisReply(payload=journal.payload(0), record_hash=self._contents.hashes[0])
        self._totals_suffice = totals_suffice(self._contents.genesis)

    def reply(self, request: pb.GenesisRequest) -> pb.GenesisReply:
        """The genesis; and totals where they were asked for, suffice, and are fewer bytes than the records.

        They are those of the last attested state, since the record after it states the digest that they must give.
        """
        anchor = self._history.anchor
        possible = self._totals_suffice and self._history.anchor_is_behind
        if not (request.totals and possible and self._is_before(request, anchor)):
            return self._genesis
        payload, digest = self._journal.payload(anchor + 1), self._contents.hashes[anchor + 1]
        reply = pb.GenesisReply(
            start=encode_start(self._contents.genesis, self._start(anchor, request.name)),
            first=pb.Step(record_hash=digest, payload=payload),
        )
        cheaper = reply.ByteSize() < self._journal.bytes_of(anchor + 1) - self._journal.bytes_of(request.position)
        reply.MergeFrom(self._genesis)
        return reply if cheaper else self._genesis

    def _is_before(self, request: pb.GenesisRequest, anchor: int) -> bool:
        """Is the caller on this journal, and short of the anchor? Who is on another one is told so when it joins."""
        if request.position >= anchor:
            return False
        return request.position == 0 or self._contents.hashes[request.position] == request.record_hash

    def _start(self, position: int, name: str) -> Start:
        history = self._history
        enrolled = name in history.clients
        return Start(
            position=position,
            record_hash=self._contents.hashes[position],
            entries=tuple(Entry(seed, total) for seed, total in history.range_guard.anchors.items()),
            highest_rate=history.highest_rate,
            client=name if enrolled else "",
            index=history.clients[name] if enrolled else 0,
        )
