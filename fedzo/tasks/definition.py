"""Tasks that are files: a TOML file says which of the tasks in code it is made with, and that one's options.

Those of the papers lie in `published/`, one file each; a user's own is a file anywhere. The journal states what a file
says, not its name, so that clients need no copy of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fedzo.config import make_options, parse_options, read_toml
from fedzo.errors import ConfigError
from fedzo.journal import records
from fedzo.plugins import find_named
from fedzo.tasks import GROUP, TASKS

SUFFIX = ".toml"
_PUBLISHED = files("fedzo.tasks") / "published"
_MOST_TOKENS = 2**32 - 1
"""That the journal can state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a task's file may state."""

    task: Annotated[str, "The task in code that does it: instruction, classification, …"]
    prompt: Annotated[str, "A row's prompt, with {field} or {field.key.0} for its fields."] = ""
    response: Annotated[str, "A row's response, likewise."] = ""
    label_field: Annotated[str, "Which field holds a row's label, or with choices the right ones."] = ""
    labels: Annotated[dict[str, str], "Label values and how each is said, a template; said the same, they are one."] = (
        field(default_factory=dict)
    )
    choices: Annotated[str, "Which field holds a row's own candidates."] = ""
    references: Annotated[str, "Which field holds the answers that count as right."] = ""
    final_mark: Annotated[str, "An answer is what follows this."] = ""
    stop: Annotated[str, "A generated answer ends before this."] = ""
    answer_tokens: Annotated[int, "Most tokens of a generated answer."] = 0
    metrics: Annotated[list[str], "What answers are judged by."] = field(default_factory=list)
    group: Annotated[str, "A row's group, a template; rows with the same are judged together."] = ""


def published_tasks() -> list[str]:
    """Names of the tasks that come with the package, sorted."""
    return sorted(_names())


def find_definition(name: str) -> Definition:
    """The definition of a task: a file's where the name ends in .toml, a published one's, or that of a task in code.

    Raises:
        ConfigError: unreadable, a key or a task in code that is unknown, or a value that cannot be; names the file.
    """
    if name.endswith(SUFFIX):
        return _parsed(read_toml(Path(name)), name)
    if name in _names():
        path = _PUBLISHED / f"{name}{SUFFIX}"
        return _parsed(read_toml(Path(str(path))), str(path))
    return Definition(task=name)


def definition_of(spec: records.Task) -> Definition:
    """The definition that makes a run's task again, of what its journal states."""
    return Definition(
        task=spec.name,
        prompt=spec.prompt,
        response=spec.response,
        label_field=spec.label_field,
        labels=dict(zip(spec.labels, spec.candidates or spec.labels, strict=True)),
        choices=spec.choices,
        references=spec.references,
        final_mark=spec.final_mark,
        stop=spec.stop,
        answer_tokens=spec.answer_tokens,
        metrics=list(spec.metrics),
        group=spec.group,
    )


def _names() -> Iterator[str]:
    return (entry.name.removesuffix(SUFFIX) for entry in _PUBLISHED.iterdir() if entry.name.endswith(SUFFIX))


def _parsed(values: dict[str, Any], source: str) -> Definition:
    parsed = parse_options(Definition, values, source)
    if "task" not in parsed:
        raise ConfigError(f"{source}: the key 'task' is missing; it names the task in code: {', '.join(TASKS)}, …")
    definition = make_options(Definition, parsed)
    try:
        find_named("task", definition.task, GROUP, TASKS)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    texts = [*definition.labels.values(), *definition.metrics]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{source}: labels and metrics must be text; put quotes around {texts!r}")
    if not 0 <= definition.answer_tokens <= _MOST_TOKENS:
        raise ConfigError(f"{source}: answer-tokens is {definition.answer_tokens}; expected 0 to {_MOST_TOKENS}")
    return definition
