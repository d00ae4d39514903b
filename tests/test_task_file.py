"""A task that is a file of one's own: what it says is in the journal, and what is wrong with it is named by its key."""

import json

import pytest
from commands import fedzo, refused, simulate_options

from fedzo.journal import read_journal


def test_a_file_is_a_task_and_the_journal_holds_what_it_says(demo, tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    rows = [{"q": {"text": f"where is the {a}?"}, "animal": a} for a in ("cat", "dog") * 20]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "mine.toml"
    file.write_text(
        'task = "classification"\nprompt = "{q.text} the"\nlabel-field = "animal"\n'
        'metrics = ["accuracy", "positive-f1"]\n[labels]\ncat = "cat"\ndog = "dog, woof"\n'
    )
    monkeypatch.chdir(tmp_path)
    given = {"task": "mine.toml", "data": data, "partition": "iid", "rounds": 3}
    fedzo("simulate", *simulate_options(demo, tmp_path / "run", **given))
    spec = read_journal(tmp_path / "run" / "journal").genesis.task
    assert (spec.name, spec.prompt, spec.labels) == ("classification", "{q.text} the", ("cat", "dog"))
    assert (spec.candidates, spec.metrics) == (("cat", "dog, woof"), ("accuracy", "positive-f1"))
    monkeypatch.chdir("/")
    fedzo("simulate", "--resume", "--out", tmp_path / "run")
    file.unlink()
    ended = (tmp_path / "run" / "journal").read_bytes()
    (tmp_path / "run" / "journal").write_bytes(ended[:-1])
    fedzo("simulate", "--resume", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "journal").read_bytes() == ended
    found = json.loads(fedzo("evaluate", tmp_path / "run", "--data", data, "--json").stdout)
    assert found["examples"] == 40
    assert {"accuracy", "positive-f1"} <= set(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task = "classification"\npromt = "x"', "option 'promt' is unknown; the nearest known one is 'prompt'"),
        (
            'task = "classification"\nmax-length = 9',
            "option 'max-length' is unknown; choose one of: task, prompt, resp",
        ),
        ('task = "classification"\nlabel = "a"', "option 'label' is unknown; the nearest known one is 'labels'"),
        ('prompt = "x"', "the key 'task' is missing; it names the task in code: lm, instruction, classification"),
        ('task = "clasification"', "task 'clasification' is unknown; choose one of: lm, instruction"),
        ('task = "sst2"', "choose one of: lm, instruction, classification, sequence-classification"),
        (
            'task = "classification"\nmetrics = ["f1"]',
            "task 'classification' needs options prompt, label-field, labels",
        ),
        ('task = "instruction"\nprompt="x"\nresponse="y"\nanswer-tokens=-3', "answer-tokens is -3; expected 0 to"),
        (
            'task = "classification"\nprompt = "x"\nlabel-field = "a"\nchoices = "c"\n[labels]\na = "a"\nb = "b"',
            "needs option labels, or choices in its file; it has both",
        ),
        ('task = "classification"\nlabels = "a"', "is 'a'; expected dict"),
        ('task = "classification"\n[labels]\na = 1', "labels and metrics must be text"),
        ('task = "classification"\nprompt = "{a.b!r}"\nlabel-field = "a"\n[labels]\na="a"\nb="b"', "must be a field"),
        ('task = "classification"\nprompt = "x"\nlabel-field = "a"\n[labels]\na="a"\nb="a"', "all are said 'a'"),
        ('task = "instruction"\nprompt="x"\nresponse="y"\nmetrics=["bleu"]', "metric 'bleu' is unknown"),
        ('task = "lm"\nstop = "x"', "option stop is 'x', but task 'lm' has no use for it"),
        ("task = ", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_key(text, message, demo, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    given = {"task": file, "partition": "iid"}
    said = refused("simulate", *simulate_options(demo, tmp_path / "run", **given))
    assert said.startswith(f"error: {file}: ")
    assert message in said
    assert "cannot be read" in refused(
        "simulate", *simulate_options(demo, tmp_path / "run", task=tmp_path / "none.toml")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task="classification"\nprompt="x"\nlabel-field="sort"', "name the label's field with --label-field, or"),
        ('task="classification"\nprompt="x"\nlabel-field="sort"\nchoices="text"', "holds 'a cat'; expected a list"),
        ('task="classification"\nprompt="x"\nlabel-field="text"\nchoices="sort"', "the task's file names it"),
    ],
)
def test_a_row_that_lacks_what_the_file_names_is_refused_by_line(text, message, demo, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a cat"}\n' * 9)
    given = {"task": tmp_path / "mine.toml", "data": data, "partition": "iid", "clients": 1}
    said = refused("simulate", *simulate_options(demo, tmp_path / "run", **given))
    assert f"{data}, line " in said
    assert message in said
