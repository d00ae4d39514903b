"""The pages of docs/tasks: each begins with a command for its task, and the command runs."""

import json
import os
import shlex
from pathlib import Path

import pytest
from commands import fedzo
from documents import ROOT, blocks_of

from fedzo.tasks.definition import find_definition, published_tasks

PLACE = ROOT / "docs" / "tasks"
FIXTURES = Path(__file__).parent / "published"


def first_command(name: str) -> list[str]:
    block = blocks_of(PLACE / f"{name}.md")[0]
    return shlex.split(block.body.replace("\\\n", " "))


def test_every_task_has_its_page_and_every_page_a_task():
    pages = {path.stem for path in PLACE.glob("*.md")} - {"index"}
    assert pages == set(published_tasks())
    index = (PLACE / "index.md").read_text()
    assert all(f"[{name}]({name}.md)" in index for name in pages)


@pytest.mark.parametrize("name", published_tasks())
def test_a_page_states_its_tasks_fields_and_metrics(name):
    page, definition = (PLACE / f"{name}.md").read_text(), find_definition(name)
    words = first_command(name)
    assert words[:2] == ["fedzo", "evaluate"]
    assert words[words.index("--task") + 1] == name
    for field in (definition.label_field, definition.choices, definition.references.partition(".")[0]):
        assert not field or f"`{field}`" in page
    said = {"accuracy": "ccuracy", "f1": "F1", "positive-f1": "F1", "exact-match": "xact match", "rouge-l": "ROUGE-L"}
    said |= {"group-accuracy": "share of questions", "drop-f1": "as DROP", "drop-exact-match": "as DROP"}
    assert all(said[metric] in page for metric in definition.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", published_tasks())
def test_the_command_of_a_page_runs(name, stories, shared):
    """On two rows; where the page names the hub, on the rows written for the tests."""
    words = [os.path.expandvars(word) for word in first_command(name)]
    data = words.index("--data") + 1
    if words[data].startswith("hub:"):
        words[data], words[2] = str(FIXTURES / f"{name}.jsonl"), stories
    found = json.loads(fedzo(*words[1:], "--rows", 2, "--json").stdout)
    assert set(find_definition(name).metrics) <= set(found)
