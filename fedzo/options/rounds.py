"""Who is asked, and who is waited for: rounds, or an asynchronous run."""

from dataclasses import dataclass
from typing import Annotated, Any

from fedzo.errors import ConfigError
from fedzo.options.checks import MOST, require_range


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """How many rounds, and how many clients in each."""

    clients: Annotated[int, "Clients that the run starts with."] = 8
    cohort: Annotated[int, "Clients asked in a round; 0 asks all that the run starts with."] = 0
    quorum: Annotated[int, "Fewest reports that commit a round; 0 is half of the cohort, rounded up."] = 0
    deadline: Annotated[float, "Seconds after which a round ends without its late clients."] = 60.0
    rounds: Annotated[int, "Training rounds, void ones included."] = 500

    def check_rounds(self) -> None:
        """Raises ConfigError, naming the option."""
        require_range("clients", self.clients, 1, MOST)
        require_range("cohort", self.cohort, 0, self.clients)
        require_range("quorum", self.quorum, 0, self.cohort or self.clients)
        require_range("deadline", self.deadline, 1e-9, MOST)
        require_range("rounds", self.rounds, 0, MOST)


@dataclass(frozen=True, kw_only=True)
class AsynchronousOptions(RoundOptions):
    """What a run needs in which no client waits for another."""

    buffer: Annotated[
        int, "Reports that make a commit of an asynchronous run, in which no client waits for another; 0 is rounds."
    ] = 0
    max_staleness: Annotated[
        int, "Most commits since the state that a report of an asynchronous run was made at; 0: the usual 16."
    ] = 0

    def usual_of_asynchronous(self) -> dict[str, Any]:
        """What options of an asynchronous run are where they are left at 0; nothing for a run of rounds."""
        return {"max_staleness": 16} if self.buffer else {}

    def check_asynchronous(self) -> None:
        """Raises ConfigError, naming the option."""
        require_range("buffer", self.buffer, 0, 2**16)
        require_range("max_staleness", self.max_staleness, 0, 2**16)
        if self.max_staleness and not self.buffer:
            raise ConfigError(
                f"option max-staleness is {self.max_staleness}, but a run of rounds has no use for it; leave it 0, or "
                "give --buffer"
            )
        if self.buffer and self.cohort not in (0, self.clients):
            raise ConfigError(
                f"option cohort is {self.cohort}, but an asynchronous run (option buffer) has all clients at work; "
                "leave it 0"
            )
