"""What is trained: the base, and the task on it."""

from dataclasses import dataclass, replace
from typing import Annotated

from fedzo.tasks import require_task
from fedzo.tasks.definition import Definition, find_definition


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Where a run begins, where it is kept, and what it is for."""

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

    def definition(self) -> Definition:
        """The task's definition; a prompt, response or label field given as an option stands in its file's place.

        Raises:
            ConfigError: its file cannot be used.
        """
        given = {name: getattr(self, name) for name in ("prompt", "response", "label_field")}
        return replace(find_definition(self.task), **{name: value for name, value in given.items() if value})

    def check_task(self) -> None:
        """Raises ConfigError, naming the option."""
        require_task(self.definition().task)
