"""A client's turns: told and answered in one message each, where there is no stream (docs/protocol.md)."""

from collections.abc import Callable

from fedzo.journal import Journal
from fedzo.run_directory import RunDirectory
from fedzo.v1 import rounds_pb2 as rounds
from fedzo.v1 import turns_pb2 as pb
from fedzo.wire.handshake import encode_join
from fedzo.wire.turns import genesis_contents, known_steps

from .home import Home, Say, open_journal
from .options import WorkOptions
from .participant import Participant
from .runner import allowed_tier, make_participant


class Seat:
    """A replica, and the clients that this process works for on it.

    A turn may go to any process that has such a replica: what it lacks of the journal is in the turn, or it says so.

    Args:
        home: of the replica.
        make_client: a client's part on that home, given its name.
    """

    def __init__(self, home: Home, make_client: Callable[[str], Participant]) -> None:
        self._home = home
        self._make_client = make_client
        self._clients: dict[str, Participant] = {}

    def take(self, turn: pb.Turn, name: str) -> rounds.ClientMessage:
        """Catch up and do what the plan asks: the report, or, without a plan or where the steps do not fit, a join.

        Raises:
            FedzoError: the steps do not follow on what is here, or the plan is refused; by name.
        """
        if name not in self._clients:
            self._clients[name] = self._make_client(name)
        client, replica = self._clients[name], self._home.replica
        known = known_steps(turn, replica.position, replica.record_hash)
        if known is None or turn.genesis_hash != self._home.genesis_hash:
            return encode_join(client.join())
        news = rounds.ServerMessage()
        news.CopyFrom(turn.news)
        del news.steps[:known]
        plans = client.catch_up([news])
        return client.carry_out(plans[0]) if plans else encode_join(client.join())


def take_turn(turn: pb.Turn, options: WorkOptions, say: Say) -> rounds.ClientMessage:
    """A turn of a client that keeps journal and replica in a directory of its own; both are up to date afterwards.

    Raises:
        FedzoError: as `Seat.take`, or base, data or journal cannot be used.
    """
    options.directory.mkdir(parents=True, exist_ok=True)
    path = RunDirectory(options.directory).journal
    journal = open_journal(path, say, excerpts=False)  # turns bring records from the genesis on
    if journal is None:
        if not turn.HasField("genesis"):
            return rounds.ClientMessage()
        genesis_contents(turn.genesis_hash, turn.genesis)
        journal = Journal.create_copy(path, turn.genesis.payload)
    with journal:
        participant, home = make_participant(options, journal, allowed_tier(options, journal.contents.genesis), say)
        answer = Seat(home, lambda name: participant).take(turn, options.name)
        home.save()
    return answer
