"""The options that make a run what it is, whoever hosts it; and how a run's options are read, stored and resumed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fedzo.config import make_options, option_name, parse_options, read_toml, write_toml
from fedzo.errors import ConfigError
from fedzo.journal import Genesis, Rules, Task, read_journal
from fedzo.manifest import Manifest
from fedzo.methods import get_method
from fedzo.methods.method import to_coefficient
from fedzo.noise import Distribution
from fedzo.run_directory import RunDirectory
from fedzo.schedule import SCHEDULES
from fedzo.scopes import Kind, Scope
from fedzo.scopes.scope import MILLION
from fedzo.tasks import get_task, require_task
from fedzo.tasks.definition import SUFFIX, Definition, definition_of, find_definition
from fedzo.tasks.labels import parse_labels

AUTO = "auto"
"""A learning rate that calibrations find."""
MOST = 2**32 - 1
"""The most that the journal's counts hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the genesis states. Defaults are meant to be kept until there is a reason."""

    model: Annotated[str, "Checkpoint directory or hub name."]
    out: Annotated[str, "Run directory; created, and resumed with --resume."]
    task: Annotated[
        str,
        "What is trained: lm, instruction, classification, sequence-classification, a published task such as sst2, a "
        "file of your own that ends in .toml, or an installed package's task.",
    ] = "lm"
    prompt: Annotated[str, "Prompt of a row, with {field} for its fields (instruction, classification)."] = ""
    response: Annotated[str, "Response of a row, likewise (instruction)."] = ""
    label_field: Annotated[str, "Field that holds a row's label (classification, sequence-classification)."] = ""
    labels: Annotated[
        str, "Label values and how each is said, VALUE=WORD,VALUE=WORD,…; a simulation finds them in its data."
    ] = ""
    objective: Annotated[
        str, "What is minimised: loss, or 1 − a metric of the answers: accuracy, f1, positive-f1, exact-match, rouge-l."
    ] = "loss"
    clients: Annotated[int, "Clients that the run starts with."] = 8
    cohort: Annotated[int, "Clients asked in a round; 0 asks all that the run starts with."] = 0
    quorum: Annotated[int, "Fewest reports that commit a round; 0 is half of the cohort, rounded up."] = 0
    deadline: Annotated[float, "Seconds after which a round ends without its late clients."] = 60.0
    rounds: Annotated[int, "Training rounds, void ones included."] = 500
    method: Annotated[
        str,
        "Federated method: distinct, shared, fedkseed, fedkseed-pro, sign, feedsign, momentum, fzoo, spsa15, or an "
        "installed package's.",
    ] = "distinct"
    directions: Annotated[
        int,
        "Directions of a client and local step; each costs two forward passes, or one with fzoo.",
    ] = 1
    local_steps: Annotated[int, "Steps that a client takes on its own in a round."] = 1
    pool_size: Annotated[
        int, "Seeds in the pool of fedkseed and fedkseed-pro, 1024 is usual; 0 for methods without."
    ] = 0
    momentum_window: Annotated[int, "Rounds that a step of momentum is made of, 10 is usual; 0 for other methods."] = 0
    momentum_decay: Annotated[float, "What a round counts in the next one's momentum; 0 for other methods."] = 0.0
    curvature_power: Annotated[
        float, "How far spsa15 goes in dividing by the curvature, 0.1 is usual, 1 is all of it; 0 for other methods."
    ] = 0.0
    clip: Annotated[float, "Scalars are brought into plus or minus this, whatever the method; 0 leaves them."] = 0.0
    aggregation: Annotated[
        str, "How clients' scalars along one direction become one, with shared: mean, median, trimmed-mean or krum."
    ] = "mean"
    tolerate: Annotated[
        float, "Share of the clients that may be hostile, for trimmed-mean and krum, 0.25 is usual; 0 for others."
    ] = 0.0
    buffer: Annotated[
        int, "Reports that make a commit of an asynchronous run, in which no client waits for another; 0 is rounds."
    ] = 0
    max_staleness: Annotated[
        int, "Most commits since the state that a report of an asynchronous run was made at, 16 is usual; 0 for rounds."
    ] = 0
    lr: Annotated[
        float | str, "Learning rate, or auto: found before the first round, and again as the run goes on."
    ] = "auto"
    schedule: Annotated[str, "Learning rate over rounds: constant, linear or cosine, the latter two to zero."] = (
        "linear"
    )
    warmup: Annotated[int, "Rounds over which the learning rate rises before that."] = 0
    epsilon: Annotated[float, "Size of the perturbation."] = 1e-3
    guard: Annotated[float, "Roll back when a loss exceeds this times the best; 0 turns the guard off."] = 1.25
    batch_size: Annotated[int, "Examples of a batch."] = 16
    max_length: Annotated[int, "Most tokens of an example."] = 128
    distribution: Annotated[str, "Directions: rademacher or gaussian."] = "rademacher"
    scope: Annotated[
        str, "What directions touch: all, sparse, layers, lora, prefix or head (docs/concepts/scopes.md)."
    ] = "all"
    sparsity: Annotated[
        float, "Share of a tensor's elements, the largest, that sparse leaves out, 0.75 is usual; 0 for other scopes."
    ] = 0.0
    layers_per_direction: Annotated[int, "Blocks that a direction touches with layers; 0 for other scopes."] = 0
    lora_rank: Annotated[int, "Rank of lora's matrices, 8 is usual; 0 for other scopes."] = 0
    lora_alpha: Annotated[float, "Lora's product is scaled by this over the rank, 16 is usual; 0 for other scopes."] = (
        0.0
    )
    lora_targets: Annotated[
        str, "Modules that lora adapts, NAME,NAME,… or all-linear, which is what lora takes where none is given."
    ] = ""
    virtual_tokens: Annotated[int, "Length of the trained prefix, 5 is usual; 0 for other scopes."] = 0
    eval_every: Annotated[int, "Rounds between evaluations; 0 never evaluates."] = 50
    attest_every: Annotated[int, "Rounds between state digests in the journal; 0 only at the end."] = 50
    seed: Annotated[int, "Seed of everything that is drawn."] = 0

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        require_task(self.definition().task)
        self._check_ranges()
        require_choice("schedule", self.schedule, SCHEDULES)
        require_choice("distribution", self.distribution, tuple(Distribution))
        require_choice("scope", self.scope, tuple(Kind))
        self.scope_spec()
        get_method(self.method).check(self.rules())

    def _check_ranges(self) -> None:
        for name, least in (("clients", 1), ("rounds", 0), ("directions", 1), ("local_steps", 1), ("batch_size", 1)):
            require_range(name, getattr(self, name), least, MOST)
        require_range("max_length", self.max_length, 2, MOST)
        require_range("cohort", self.cohort, 0, self.clients)
        require_range("quorum", self.quorum, 0, self.cohort or self.clients)
        require_range("directions × local-steps", self.directions * self.local_steps, 1, 2**16)
        require_range("pool_size", self.pool_size, 0, 2**16)
        require_range("momentum_window", self.momentum_window, 0, 2**10)
        require_range("momentum_decay", self.momentum_decay, 0.0, 1.0)
        require_range("curvature_power", self.curvature_power, 0.0, 1.0)
        require_range("sparsity", self.sparsity, 0.0, 1.0)
        for name in ("layers_per_direction", "lora_rank", "virtual_tokens"):
            require_range(name, getattr(self, name), 0, 2**16)
        require_range("clip", self.clip, 0.0, 2.0**20)
        require_range("tolerate", self.tolerate, 0.0, 0.5)
        self._check_asynchronous()
        require_range("warmup", self.warmup, 0, self.rounds)
        for name in ("eval_every", "attest_every"):
            require_range(name, getattr(self, name), 0, MOST)
        require_range("seed", self.seed, 0, 2**64 - 1)
        if isinstance(self.lr, str):
            require_choice("lr", self.lr, (AUTO,))
        else:
            require_range("lr", self.lr, 0.0, 1e3)
        require_range("epsilon", self.epsilon, 2.0**-40, 1.0)
        require_range("deadline", self.deadline, 1e-9, MOST)
        if self.guard and not 1 < self.guard < MOST:
            raise ConfigError(f"option guard is {self.guard}; give a factor above 1, or 0 to turn it off")
        if self.lr == AUTO and self.objective != "loss":
            raise ConfigError(
                f"option lr is 'auto', which follows from how curved the objective is, but {self.objective!r} rises in "
                "steps; give a learning rate"
            )
        if self.guard and self.objective != "loss":
            raise ConfigError(
                f"option guard is {self.guard}, a factor of the best loss, but objective {self.objective!r} is a share "
                "that may reach 0; give --guard 0"
            )

    def _check_asynchronous(self) -> None:
        require_range("buffer", self.buffer, 0, 2**16)
        require_range("max_staleness", self.max_staleness, 0, 2**16)
        if self.buffer and not self.max_staleness:
            raise ConfigError(
                "option max-staleness is 0, but an asynchronous run (option buffer) needs it; 16 is usual"
            )
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

    def rules(self) -> Rules:
        """What the journal states of these options."""
        cohort = self.cohort or self.clients
        return Rules(
            method=self.method,
            rounds=self.rounds,
            cohort=cohort,
            quorum=self.quorum or -(-cohort // 2),
            deadline_s=self.deadline,
            directions=self.directions,
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            epsilon=to_coefficient(self.epsilon),
            learning_rate=0.0 if isinstance(self.lr, str) else self.lr,
            schedule=self.schedule,
            evaluate_every=self.eval_every,
            attest_every=self.attest_every,
            guard_factor=self.guard,
            pool_size=self.pool_size,
            warmup_rounds=self.warmup,
            momentum_window=self.momentum_window,
            momentum_decay=self.momentum_decay,
            curvature_power=self.curvature_power,
            buffer_size=self.buffer,
            max_staleness=self.max_staleness,
            clip=self.clip,
            aggregation="" if self.aggregation == "mean" else self.aggregation,
            tolerate=self.tolerate,
            calibrated=self.lr == AUTO,
        )

    def scope_spec(self) -> Scope:
        """What the journal states of the scope.

        Raises:
            ConfigError: it needs another option, or has no use for one; names it.
        """
        targets = self.lora_targets or ("all-linear" if self.scope == Kind.LORA else "")
        return Scope(
            kind=Kind(self.scope),
            sparsity=round(self.sparsity * MILLION),
            layers_per_direction=self.layers_per_direction,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_targets=tuple(target for target in targets.split(",") if target),
            virtual_tokens=self.virtual_tokens,
        )

    def definition(self) -> Definition:
        """The task's definition; a prompt, response or label field given as an option stands in its file's place.

        Raises:
            ConfigError: its file cannot be used.
        """
        given = {name: getattr(self, name) for name in ("prompt", "response", "label_field")}
        return replace(find_definition(self.task), **{name: value for name, value in given.items() if value})

    def task_spec(self, tokenizer_digest: bytes, labels: str) -> Task:
        """What the journal states of the task.

        Args:
            tokenizer_digest: 32 bytes.
            labels: as the option, or as found in the data.

        Raises:
            ConfigError: the task needs another option, or has no use for one; names it.
        """
        defined = self.definition()
        kind = get_task(defined.task)
        values, words = parse_labels(labels) if labels else (tuple(defined.labels), tuple(defined.labels.values()))
        spec = Task(
            name=defined.task,
            tokenizer_digest=tokenizer_digest,
            max_length=self.max_length,
            prompt=defined.prompt,
            response=defined.response,
            label_field=defined.label_field,
            labels=values,
            candidates=() if kind.head else words,
            head=kind.head,
            choices=defined.choices,
            references=defined.references,
            final_mark=defined.final_mark,
            stop=defined.stop,
            answer_tokens=defined.answer_tokens,
            metrics=tuple(defined.metrics),
            objective="" if self.objective == "loss" else self.objective,
        )
        kind.check(spec)
        return spec

    def genesis(self, base_digest: bytes, manifest: Manifest, task: Task) -> Genesis:
        """The first frame of a run with these options."""
        return Genesis(
            base_digest=base_digest,
            manifest=manifest,
            distribution=Distribution(self.distribution),
            run_seed=self.seed,
            scope=self.scope_spec(),
            task=task,
            rules=self.rules(),
        )


Options = TypeVar("Options", bound=RunOptions)


def options_of_run(
    kind: type[Options],
    given: Mapping[str, Any],
    config: Path | None,
    *,
    resume: bool,
    places: Collection[str],
    changeable: Collection[str],
) -> tuple[RunDirectory, Options]:
    """A run's directory and options, from the command line, a TOML file and, where resumed, the run itself.

    Args:
        kind: of options.
        given: on the command line, parsed.
        config: a TOML file, which the command line overrides.
        resume: the run is there and goes on with its own options, and with the task that its journal states.
        places: options that may name a file or directory, and are made absolute.
        changeable: options that a resumed run may be given anew.

    Raises:
        ConfigError: an option is wrong, or the directory does not hold what it should.
    """
    values = parse_options(kind, read_toml(config), str(config)) if config else {}
    values = _absolute(values | dict(given), places)
    if str(values.get("task", "")).endswith(SUFFIX):
        values = _absolute(values, ("task",))
    if "out" not in values:
        raise ConfigError("option --out must be given (on the command line or in --config)")
    run = RunDirectory(Path(values["out"]))
    if not resume:
        options = make_options(kind, values)
        run.require_new()
        return run, options
    stored = parse_options(kind, read_toml(run.require().config), str(run.config))
    for name, value in values.items():
        if name not in changeable and stored.get(name, value) != value:
            raise ConfigError(
                f"option --{option_name(name)} is {value!r}, but {run.path} began with {stored[name]!r}; leave it out, "
                "or start another run"
            )
    if str(stored.get("task", "")).endswith(SUFFIX):  # the user's file may have changed, or be gone
        write_toml(run.task, definition_of(read_journal(run.journal).genesis.task))
        values["task"] = str(run.task)
    return run, make_options(kind, stored | values)


def require_range(name: str, value: float, least: float, most: float) -> None:
    """Raises ConfigError for a number out of range."""
    if not least <= value <= most:
        raise ConfigError(f"option {name.replace('_', '-')} is {value}; expected {least:g} to {most:g}")


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises ConfigError for a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} {value!r} is unknown; choose one of: {', '.join(choices)}")


def _absolute(values: dict[str, Any], places: Collection[str]) -> dict[str, Any]:
    """Paths that exist, made absolute; hub names and rules are left as they are."""
    given = {name: Path(values[name]) for name in places if values.get(name)}
    return values | {name: str(path.absolute()) for name, path in given.items() if path.exists()}
