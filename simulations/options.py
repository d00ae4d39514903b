"""The options of `fedzo simulate`, on the command line and in its TOML file alike."""

from dataclasses import dataclass, replace
from typing import Annotated

from fedzo.device import get_device
from fedzo.errors import ConfigError
from fedzo.journal import Rules
from fedzo.noise import get_backend
from fedzo.run_options import MOST, RunOptions, require_choice, require_range
from fedzo.tasks.partition import held_out_every
from fedzo.tiers import COPIES, TIERS

from .attacks import ATTACKS

DTYPES = ("float32", "bfloat16", "float16")
ENGINES = ("inline", "processes", "flower")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions(RunOptions):
    """What a simulation runs with."""

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
    dtype: Annotated[str, "Compute type of the forward: float32, bfloat16 or float16. The state is exact in all."] = (
        "float32"
    )
    state: Annotated[
        str,
        "Where the exact state lives: device (the memory of --device), host (memory), disk (streamed from the run's "
        "state file), or auto: the first of these where half of what is free holds it.",
    ] = "auto"
    compute_copy: Annotated[
        str,
        "What forward passes read: none (the state itself), or a copy of it in bf16, fp16 or int8.",
    ] = "none"
    directions_per_pass: Annotated[
        int,
        "Directions that go through the model together; what is streamed is read once for all of them.",
    ] = 1
    device: Annotated[
        str, "Where forward passes run: cpu, cuda, cuda:N, or auto: a GPU where there is one (docs/concepts/memory.md)."
    ] = "cpu"
    threads: Annotated[int, "CPU threads, of each client where it is a process; 0 shares all cores out."] = 0
    backend: Annotated[
        str, "Who makes the noise: auto, numba, torch, triton (interpreted, slow) or reference. The bits are the same."
    ] = "auto"

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        RunOptions.__post_init__(self)
        require_range("directions_per_pass", self.directions_per_pass, 1, 2**16)
        for name in ("threads", "delay", "eval_batch_size"):
            require_range(name, getattr(self, name), 0, MOST)
        require_range("drop", self.drop, 0.0, 1.0)
        require_choice("attack", self.attack, ("none", *ATTACKS))
        require_range("attackers", self.attackers, 0.0, 1.0)
        if (self.attack == "none") is not (self.attackers == 0):
            raise ConfigError(
                f"options attack {self.attack!r} and attackers {self.attackers:g} belong together; give both, or none"
            )
        if self.attackers and not self.hostile:
            raise ConfigError(
                f"option attackers is {self.attackers:g}, which of {self.clients} clients is none; give "
                f"{1 / self.clients:g} or more, or leave attack out"
            )
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("state", self.state, TIERS)
        require_choice("compute-copy", self.compute_copy, COPIES)
        get_backend(self.backend)
        get_device(self.device, self.backend)
        held_out_every(self.eval_data)
        require_choice("engine", self.engine, ENGINES)
        if self.buffer and self.drop:
            raise ConfigError(
                f"option drop is {self.drop}, but in an asynchronous run (option buffer) no client waits for another: "
                "one that does not answer is one client less; leave it out"
            )
        if self.engine != "inline":
            self._check_real_time()
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

    def _check_real_time(self) -> None:
        for name in ("drop", "delay", "attackers"):
            if getattr(self, name):
                raise ConfigError(
                    f"option {name} is {getattr(self, name)}: processes answer as clients do; leave it out, or give "
                    "--engine inline"
                )
