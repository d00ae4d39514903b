"""The options of `fedzo simulate`, on the command line and in its TOML file alike."""

from dataclasses import dataclass, replace
from typing import Annotated

from fedzo.errors import ConfigError
from fedzo.journal import Rules
from fedzo.options.checks import MOST, require_choice, require_range
from fedzo.options.compute import ComputeOptions
from fedzo.options.run import RunOptions
from fedzo.tasks.partition import held_out_every
from fedzo.tiers import TIERS

from .attacks import ATTACKS

ENGINES = ("inline", "processes", "flower")


@dataclass(frozen=True, kw_only=True)
class CrowdOptions:
    """The virtual clients: where they run, what rows they hold, and how they answer."""

    data: Annotated[
        str, "Rows: .txt, .jsonl or .json, each also .gz, a directory of such, or hub:NAME[:CONFIG[:SPLIT]]."
    ]
    eval_data: Annotated[
        str,
        "Held-out rows: a source like --data, or every:N to hold out every Nth row of each client and group, or none.",
    ] = "every:10"
    eval_batch_size: Annotated[int, "Held-out examples of a batch; 0 takes as many as in training."] = 0
    text_field: Annotated[str, "Field that holds the text, where rows are objects."] = "text"
    engine: Annotated[
        str,
        "Where clients run: inline, all in this process; processes, a server and each client on loopback in their own; "
        "flower, in Flower's simulation, with one replica for each process of Ray.",
    ] = "inline"
    partition: Annotated[str, "How rows are dealt to clients: iid, by:FIELD, or dirichlet:FIELD:ALPHA."] = "iid"
    drop: Annotated[float, "Chance that a client does not answer in a round, 0 to 1."] = 0.0
    delay: Annotated[
        float,
        "Most seconds of simulated time that an answer is late, drawn uniformly; in an asynchronous run, that a plan "
        "takes longer than one second, half of it drawn for the client, half for the plan.",
    ] = 0.0
    attack: Annotated[
        str, "What hostile clients report: flip, scale, random, collude, lazy (docs/concepts/methods.md), or none."
    ] = "none"
    attackers: Annotated[float, "Share of the clients that are hostile, those with the lowest indices."] = 0.0

    def check_crowd(self) -> None:
        """Raises ConfigError, naming the option."""
        held_out_every(self.eval_data)
        require_range("eval_batch_size", self.eval_batch_size, 0, MOST)
        require_choice("engine", self.engine, ENGINES)
        require_range("drop", self.drop, 0.0, 1.0)
        require_range("delay", self.delay, 0, MOST)
        require_choice("attack", self.attack, ("none", *ATTACKS))
        require_range("attackers", self.attackers, 0.0, 1.0)
        if (self.attack == "none") is not (self.attackers == 0):
            raise ConfigError(
                f"options attack {self.attack!r} and attackers {self.attackers:g} belong together; give both, or none"
            )
        if self.engine != "inline":
            self._check_real_time()

    def _check_real_time(self) -> None:
        for name in ("drop", "delay", "attackers"):
            if getattr(self, name):
                raise ConfigError(
                    f"option {name} is {getattr(self, name)}: processes answer as clients do; leave it out, or give "
                    "--engine inline"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions(ComputeOptions, CrowdOptions, RunOptions):
    """What a simulation runs with."""

    state: Annotated[
        str,
        "Where the exact state lives: device (the memory of --device), host (memory), disk (streamed from the run's "
        "state file), or auto: the first of these where half of what is free holds it.",
    ] = "auto"
    threads: Annotated[int, "CPU threads, of each client where it is a process; 0 shares all cores out."] = 0

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        RunOptions.__post_init__(self)
        self.check_crowd()
        self.check_compute()
        require_choice("state", self.state, TIERS)
        if self.attackers and not self.hostile:
            raise ConfigError(
                f"option attackers is {self.attackers:g}, which of {self.clients} clients is none; give "
                f"{1 / self.clients:g} or more, or leave attack out"
            )
        if self.buffer and self.drop:
            raise ConfigError(
                f"option drop is {self.drop}, but in an asynchronous run (option buffer) no client waits for another: "
                "one that does not answer is one client less; leave it out"
            )
        if self.buffer and self.engine == "flower":
            raise ConfigError(
                f"option buffer is {self.buffer}, but engine 'flower' simulates rounds, in Flower's messages; leave "
                "it 0, or choose engine 'inline' or 'processes'"
            )

    @property
    def hostile(self) -> int:
        """How many clients are hostile."""
        return round(self.attackers * self.clients)

    def rules(self) -> Rules:
        """What the journal states of these options."""
        rules = RunOptions.rules(self)
        return replace(rules, evaluate_every=0) if self.eval_data == "none" else rules
