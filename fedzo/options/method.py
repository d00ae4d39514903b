"""What clients send, and what becomes of it: the federated method and its own options."""

from dataclasses import dataclass
from typing import Annotated, Any

from fedzo.methods import get_method
from fedzo.methods.robust import USUALLY_TOLERATED
from fedzo.options.checks import MOST, require_range


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """A method's options; whether they go together is checked by the method itself."""

    method: Annotated[
        str,
        "Federated method: distinct, shared, fedkseed, fedkseed-pro, sign, feedsign, momentum, fzoo, spsa15, or an "
        "installed package's.",
    ] = "fzoo"
    directions: Annotated[
        int,
        "Directions of a client and local step; each costs two forward passes, or one with fzoo. 0: the usual, 8 with "
        "fzoo and 1 with others.",
    ] = 0
    local_steps: Annotated[int, "Steps that a client takes on its own in a round."] = 1
    pool_size: Annotated[
        int, "Seeds in the pool of fedkseed and fedkseed-pro; 0: the usual 1024, and none for other methods."
    ] = 0
    momentum_window: Annotated[
        int, "Rounds that a step of momentum is made of; 0: the usual 10, and none for other methods."
    ] = 0
    momentum_decay: Annotated[
        float, "What a round counts in the next one's momentum; 0: the usual 0.9, and nothing for other methods."
    ] = 0.0
    curvature_power: Annotated[
        float,
        "How far spsa15 goes in dividing by the curvature, 1 is all of it; 0: the usual 0.1, and none for others.",
    ] = 0.0
    clip: Annotated[float, "Scalars are brought into plus or minus this, whatever the method; 0 leaves them."] = 0.0
    aggregation: Annotated[
        str, "How clients' scalars along one direction become one, with shared: mean, median, trimmed-mean or krum."
    ] = "mean"
    tolerate: Annotated[
        float,
        "Share of the clients that may be hostile, for trimmed-mean and krum; 0: the usual 0.25, and none for others.",
    ] = 0.0

    def chosen(self, name: str) -> Any:
        """An option of the method or the aggregation: as given, or what is usual where that is 0."""
        return getattr(self, name) or self.usual_of_method().get(name, 0)

    def usual_of_method(self) -> dict[str, Any]:
        """What options of the method and the aggregation are where they are left at 0."""
        tolerated = USUALLY_TOLERATED.get(self.aggregation, 0.0)
        return {"directions": 1, "tolerate": tolerated, **get_method(self.method).usual}

    def check_ranges_of_method(self) -> None:
        """Raises ConfigError, naming the option."""
        require_range("directions", self.directions, 0, MOST)
        require_range("local_steps", self.local_steps, 1, MOST)
        require_range("directions × local-steps", self.chosen("directions") * self.local_steps, 1, 2**16)
        require_range("pool_size", self.pool_size, 0, 2**16)
        require_range("momentum_window", self.momentum_window, 0, 2**10)
        require_range("momentum_decay", self.momentum_decay, 0.0, 1.0)
        require_range("curvature_power", self.curvature_power, 0.0, 1.0)
        require_range("clip", self.clip, 0.0, 2.0**20)
        require_range("tolerate", self.tolerate, 0.0, 0.5)
