"""All options of a run, and what its journal states of them."""

from dataclasses import dataclass
from typing import Annotated

from fedzo.base.manifest import Manifest
from fedzo.errors import ConfigError
from fedzo.journal import Genesis, Rules, Task
from fedzo.methods import get_method
from fedzo.methods.method import to_coefficient
from fedzo.noise import Distribution
from fedzo.options.checks import MOST, require_range
from fedzo.options.method import MethodOptions
from fedzo.options.rounds import AsynchronousOptions, RoundOptions
from fedzo.options.scope import ScopeOptions
from fedzo.options.step import AUTO, StepOptions
from fedzo.options.task import TaskOptions
from fedzo.tasks import get_task
from fedzo.tasks.definition import SUFFIX
from fedzo.tasks.labels import parse_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(ScopeOptions, StepOptions, AsynchronousOptions, MethodOptions, RoundOptions, TaskOptions):
    """What the genesis states. Defaults are meant to be kept until there is a reason.

    The last group's options come first, in the file and on the pages. Groups have no slots, since Python lets a class
    inherit from only one that has.
    """

    eval_every: Annotated[int, "Rounds between evaluations; 0 never evaluates."] = 50
    attest_every: Annotated[int, "Rounds between state digests in the journal; 0 only at the end."] = 50
    seed: Annotated[int, "Seed of everything that is drawn."] = 0

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        self.check_task()
        self.check_rounds()
        self.check_ranges_of_method()
        self.check_asynchronous()
        self.check_step(self.rounds)
        self.check_scope()
        require_range("eval_every", self.eval_every, 0, MOST)
        require_range("attest_every", self.attest_every, 0, MOST)
        require_range("seed", self.seed, 0, 2**64 - 1)
        if self.objective != "loss":
            self._check_objective()
        get_method(self.method).check(self.rules())

    def _check_objective(self) -> None:
        """Whether what needs a loss does without."""
        if self.lr == AUTO:
            raise ConfigError(
                f"option lr is 'auto', which follows from how curved the objective is, but {self.objective!r} rises in "
                "steps; give a learning rate"
            )
        if self.guard:
            raise ConfigError(
                f"option guard is {self.guard}, a factor of the best loss, but objective {self.objective!r} is a share "
                "that may reach 0; give --guard 0"
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
            directions=self.chosen("directions"),
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            epsilon=to_coefficient(self.epsilon),
            learning_rate=0.0 if isinstance(self.lr, str) else self.lr,
            schedule=self.schedule,
            evaluate_every=self.eval_every,
            attest_every=self.attest_every,
            guard_factor=self.guard,
            pool_size=self.chosen("pool_size"),
            warmup_rounds=self.warmup,
            momentum_window=self.chosen("momentum_window"),
            momentum_decay=self.chosen("momentum_decay"),
            curvature_power=self.chosen("curvature_power"),
            buffer_size=self.buffer,
            max_staleness=self.max_staleness or self.usual_of_asynchronous().get("max_staleness", 0),
            clip=self.clip,
            aggregation="" if self.aggregation == "mean" else self.aggregation,
            tolerate=self.chosen("tolerate"),
            calibrated=self.lr == AUTO,
        )

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
            group=defined.group,
        )
        try:
            kind.check(spec)
        except ConfigError as error:
            if not self.task.endswith(SUFFIX):
                raise
            raise ConfigError(f"{self.task}: {error}") from error
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
