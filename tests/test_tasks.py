"""Tasks: what is predicted and what is not, losses against an independent computation, heads, plug-ins."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from commands import fedzo, refused, simulate_options
from fedzo_simulations.evaluate import Evaluated

from fedzo.base.checkpoint import Head, load_base, load_tokenizer
from fedzo.base.initial_weights import normal_values
from fedzo.errors import CheckpointError, ConfigError, DataError
from fedzo.journal import Commit, Evaluation, read_journal
from fedzo.journal import Task as Spec
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory
from fedzo.tasks import get_task
from fedzo.tasks.labels import parse_labels
from fedzo.tasks.partition import partition
from fedzo.tasks.rows import Row, read_rows
from fedzo.tasks.sequences import answered

BEGIN, END = 1, 2


class Letters:
    """A tokenizer: a begin token, then a letter a token."""

    bos_token_id: int | None = BEGIN
    eos_token_id: int | None = END

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        return {"input_ids": [BEGIN, *map(ord, text)]}


def said(tokens) -> str:
    return "".join(chr(t) if t > END else "<>"[t - 1] for t in tokens)


def answer_of(prompt: str, answer: str, max_length: int = 99, *, end: bool = True) -> tuple[str, str]:
    """What is given and what is predicted."""
    ids, start = answered(Letters(), prompt, answer, max_length, end=end)
    return said(ids[:start]), said(ids[start:])


def test_the_answer_is_predicted_and_the_prompt_is_not():
    assert answer_of("ask", "yes") == ("<ask", " yes>")
    assert answer_of("ask\n", "yes") == ("<ask\n", "yes>")
    assert answer_of("ask", " yes", end=False) == ("<ask", " yes")
    assert answer_of("", "yes") == ("<", "yes>")


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (9, ("<ask", " yes>")),
        (8, ("<sk", " yes>")),
        (7, ("<k", " yes>")),
        (6, ("<", " yes>")),
        (5, ("<", " yes")),
        (3, ("<", " y")),
    ],
)
def test_too_long_a_prompt_is_cut_from_the_left_then_the_answer_from_the_right(max_length, expected):
    assert answer_of("ask", "yes", max_length) == expected


def test_without_a_begin_token_one_token_of_the_prompt_stays():
    class Plain(Letters):
        bos_token_id = None

        def __call__(self, text, **_):
            return {"input_ids": list(map(ord, text))}

    ids, start = answered(Plain(), "ask", "yes", 4, end=False)
    assert (said(ids[:start]), said(ids[start:])) == ("k", " ye")
    ids, start = answered(Plain(), "", "yes", 4, end=False)
    assert (said(ids[:start]), said(ids[start:])) == ("y", "es")


def spec(name: str, **values) -> Spec:
    return Spec(name=name, tokenizer_digest=bytes(32), max_length=64, **values)


def rows_of(*fields: dict) -> list[Row]:
    return [Row("", dict(f), f"row {k}") for k, f in enumerate(fields)]


@pytest.fixture(scope="module")
def language_model() -> tf.PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=128, **shape)).eval()


def log_probability(model, ids, start: int) -> tuple[float, int]:
    """Sum over ids[start:] of the log-probability given what is before, one sequence alone, and their number."""
    with torch.inference_mode():
        logits = model(torch.tensor([[int(i) for i in ids]])).logits[0].double().log_softmax(-1)
    found = [float(logits[k - 1, int(ids[k])]) for k in range(start, len(ids))]
    return sum(found), len(found)


def test_instruction_loss_is_the_mean_over_the_responses_tokens(language_model):
    task = get_task("instruction")(spec("instruction", prompt="{q}?\n", response="{a}"), Letters())
    rows = task.rows(rows_of({"q": "who", "a": "me"}, {"q": "where is it", "a": "here"}, {"q": "x", "a": " "}), "data")
    batch, predicted = task.collate(task.examples(rows))
    sequences = [example.sequence for example in task.examples(rows)]
    each = [log_probability(language_model, s.ids, s.start) for s in sequences]
    assert predicted == sum(count for _, count in each) == len("me>") + len("here>")
    with torch.inference_mode():
        found, metric = task.measure(language_model, batch)
    assert found == pytest.approx(-sum(p for p, _ in each) / predicted, abs=1e-5)
    assert metric is None


CLASSIFICATION = {
    "prompt": "{text}: it was",
    "label_field": "label",
    "labels": ("0", "1"),
    "candidates": ("bad", "so good"),
}


def test_candidate_loss_and_accuracy_are_those_of_mean_log_probabilities(language_model):
    """MeZO: a candidate's score is the mean log-probability of its tokens; the loss a cross-entropy over the scores."""
    task = get_task("classification")(spec("classification", **CLASSIFICATION), Letters())
    fields = [{"text": f"film {k}" * (1 + k % 3), "label": k % 2} for k in range(7)]
    examples = task.examples(task.rows(rows_of(*fields), "data"))
    batch, count = task.collate(examples)
    losses, right = [], []
    for choice in examples:
        scores = [p / n for p, n in (log_probability(language_model, s.ids, s.start) for s in choice.sequences)]
        losses.append(math.log(sum(map(math.exp, scores))) - scores[choice.right])
        right.append(scores[choice.right] == max(scores))
    with torch.inference_mode():
        loss, accuracy = task.measure(language_model, batch)
        assert loss == float(task.loss(language_model, batch))
    assert count == 7
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert accuracy == np.mean(right)


def test_a_label_that_the_task_does_not_know_is_named_with_its_row():
    task = get_task("classification")(spec("classification", **CLASSIFICATION), Letters())
    with pytest.raises(DataError, match="row 1: label '2' is unknown; the task knows 0, 1"):
        task.examples(task.rows(rows_of({"text": "a", "label": 0}, {"text": "b", "label": 2}), "data"))
    with pytest.raises(DataError, match="no field 'label'; it has 'text': name the label's field with --label-field"):
        task.examples(task.rows(rows_of({"text": "a"}), "data"))


def test_labels_are_values_and_how_they_are_said():
    assert parse_labels("0=terrible,1=great") == (("0", "1"), ("terrible", "great"))
    assert parse_labels("no, yes=of course") == (("no", "yes"), ("no", "of course"))
    for wrong in ("", "one", "a,a", "a=,b", "a,,b"):
        with pytest.raises(ConfigError, match="option labels is"):
            parse_labels(wrong)


# ── a head on the model ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A small BERT without a classification head."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    path = tmp_path_factory.mktemp("encoder")
    tf.BertForMaskedLM(tf.BertConfig(vocab_size=128, **shape)).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_new_head_is_initialised_from_the_runs_seed_and_nothing_else(kind, encoder, tiny_model):
    source = encoder if kind == "encoder" else tiny_model
    found = []
    for torch_seed, run_seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(torch_seed)
        found.append(load_base(source, Head(("no", "yes", "so"), run_seed)))
    assert found[0].digest == found[1].digest != found[2].digest
    from fedzo.base.checkpoint import unique_parameters

    named = unique_parameters(found[0].model)
    name = "classifier.weight" if kind == "encoder" else "score.weight"
    index = list(named).index(name)
    assert torch.equal(named[name].flatten(), torch.from_numpy(normal_values(5, index, 0, named[name].numel())))
    assert 0.01 < float(named[name].detach().std()) < 0.03
    if kind == "encoder":
        assert not named["classifier.bias"].any()
        assert not named["bert.pooler.dense.bias"].any()
    assert found[0].model.config.id2label == {0: "no", 1: "yes", 2: "so"}


def test_a_backbone_that_lacks_a_tensor_is_refused_head_or_not(encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((Path(encoder) / "config.json").read_text())
    tensors = load_file(Path(encoder) / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 'bert.encoder.layer.1.output.dense.weight'"):
        load_base(str(tmp_path), Head(("a", "b"), 0))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_padding_does_not_change_what_a_head_says(kind, encoder, tiny_model):
    model = load_base(encoder if kind == "encoder" else tiny_model, Head(("0", "1"), 3)).model

    class Numbers(Letters):
        def __call__(self, text, **_):
            return {"input_ids": np.array([[3, *(ord(c) % 60 + 3 for c in text)]])}

    task = get_task("sequence-classification")(
        spec("sequence-classification", label_field="label", labels=("0", "1"), head=True), Numbers()
    )
    fields = [{"text": "ab" * (1 + 3 * k), "label": k % 2} for k in range(4)]
    examples = task.examples(task.rows(rows_of(*fields), "data"))
    with torch.inference_mode():
        alone = [float(task.loss(model, task.collate([example])[0])) for example in examples]
        together = float(task.loss(model, task.collate(examples)[0]))
    assert together == pytest.approx(np.mean(alone), abs=1e-5)


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────

ANIMALS = ("cat", "dog")


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Rows with a question, an answer, a label and a farm, in the demo model's words."""
    path = tmp_path_factory.mktemp("questions") / "rows.jsonl"
    rows = [
        {
            "question": f"where is the {ANIMALS[k % 2]}?",
            "answer": f"the {ANIMALS[k % 2]} is in the barn.",
            "animal": ANIMALS[k % 2],
            "key": f"farm {k % 4}",
        }
        for k in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TASKS = {
    "instruction": {"prompt": "{question}", "response": "{answer}"},
    "classification": {"prompt": "{question} the", "label-field": "animal"},
    "sequence-classification": {"text-field": "question", "label-field": "animal", "labels": "cat,dog"},
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_replays_and_exports(task, demo, questions, tmp_path):
    run = tmp_path / "run"
    given = {"task": task, "data": questions, "method": "shared", "directions": 2} | TASKS[task]
    done = fedzo("simulate", *simulate_options(demo, run, **given))
    records = read_journal(run / "journal").records
    assert all(len(r.body.entries) == 2 for r in records if isinstance(r.body, Commit))
    evaluations = [r.body for r in records if isinstance(r.body, Evaluation)]
    assert evaluations[-1].loss < evaluations[0].loss
    assert ("accuracy" in done.stderr) == (task != "instruction")
    assert all((e.metric is None) == (task == "instruction") for e in evaluations)
    replica, _, contents = rebuild(RunDirectory(run))
    assert replica.digest() == contents.records[-1].state_digest
    fedzo("export", run, "--out", tmp_path / "model")
    kind = tf.AutoModelForSequenceClassification if task == "sequence-classification" else tf.AutoModelForCausalLM
    model = kind.from_pretrained(tmp_path / "model")
    assert torch.equal(model.get_parameter(replica.manifest.tensors[0].name), replica.weights(0))
    assert load_tokenizer(str(tmp_path / "model"))("the cat") == load_tokenizer(demo.model)("the cat")


def test_an_evaluations_accuracy_is_that_of_the_exported_model(demo, questions, tmp_path):
    """The journal's last accuracy, computed again one row at a time on the exported directory."""
    run = tmp_path / "run"
    given = {"task": "classification", "data": questions, "rounds": 5} | TASKS["classification"]
    fedzo("simulate", *simulate_options(demo, run, **given))
    contents = read_journal(run / "journal")
    fedzo("export", run, "--out", tmp_path / "model")
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    task = get_task("classification")(contents.genesis.task, load_tokenizer(demo.model))
    assert task.spec.labels == task.spec.candidates == ("cat", "dog")
    held = [row for k, row in enumerate(read_rows(str(questions))) if (k // 4) % 10 == 9]
    right = 0
    for choice in task.examples(task.rows(held, "data")):
        scores = [p / n for p, n in (log_probability(model, s.ids, s.start) for s in choice.sequences)]
        right += scores[choice.right] == max(scores)
    last = [r.body for r in contents.records if isinstance(r.body, Evaluation)][-1]
    assert sum(client.examples for client in last.clients) == len(held) == 8
    assert last.metric == right / len(held)


# ── sources of data and partitions that need other packages ─────────────────────────────────────────


def test_a_hub_dataset_is_rows(questions):
    """`datasets.load_dataset` reads a directory of files as it reads the hub."""
    pytest.importorskip("datasets")
    found = read_rows(f"hub:{questions.parent}")
    assert [row.fields for row in found] == [row.fields for row in read_rows(str(questions))]
    with pytest.raises(DataError, match="hub:no/such-data: cannot be loaded"):
        read_rows("hub:no/such-data")
    with pytest.raises(DataError, match="cannot be loaded.*nowhere"):
        read_rows(f"hub:{questions.parent}::nowhere")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_dirichlet_partition_deals_every_row_once_and_unevenly():
    pytest.importorskip("flwr_datasets")
    rows = [Row(f"text {k}", {"label": k % 4}) for k in range(400)]
    shares = partition(rows, 5, "dirichlet:label:0.1", 7)
    assert sorted(row.text for share in shares for row in share) == sorted(row.text for row in rows)
    assert shares == partition(rows, 5, "dirichlet:label:0.1", 7)
    assert shares != partition(rows, 5, "dirichlet:label:0.1", 8)
    largest = [max(sum(row.fields["label"] == v for row in share) for v in range(4)) / len(share) for share in shares]
    even = partition(rows, 5, "dirichlet:label:1000", 7)
    least = [max(sum(row.fields["label"] == v for row in share) for v in range(4)) / len(share) for share in even]
    assert np.mean(largest) > 0.6
    assert np.mean(least) < 0.35
    with pytest.raises(ConfigError, match="'dirichlet:label:much' cannot be made"):
        partition(rows, 5, "dirichlet:label:much", 7)
    with pytest.raises(DataError, match="row 0 has no field 'colour'"):
        partition(rows, 5, "dirichlet:colour:1", 7)


# ── other packages ──────────────────────────────────────────────────────────────────────────────────

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "fedzo-test-plugin"
version = "1"
[project.entry-points."fedzo.methods"]
halved = "test_plugin:Halved"
[project.entry-points."fedzo.tasks"]
shouting = "test_plugin:Shouting"
broken = "test_plugin:Absent"
[tool.setuptools]
py-modules = ["test_plugin"]
"""
MODULE = '''
from fedzo.journal import Entry
from fedzo.methods.distinct import Distinct
from fedzo.tasks.lm import LanguageModelling


class Halved(Distinct):
    """Half of every step."""

    def aggregate(self, *arguments):
        return tuple(Entry(seed, coefficient // 2) for seed, coefficient in super().aggregate(*arguments))


class Shouting(LanguageModelling):
    """Text in capitals."""

    def text(self, fields):
        return super().text(fields).upper()
'''


def test_a_package_that_is_installed_adds_a_method_and_a_task(demo, tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "test_plugin.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True, timeout=120)
    env = os.environ | {"PYTHONPATH": str(site)}
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    fedzo("simulate", *simulate_options(demo, plain, rounds=1))
    fedzo("simulate", *simulate_options(demo, ours, rounds=1, method="halved"), env=env)
    entries = [
        next(r.body.entries for r in read_journal(run / "journal").records if isinstance(r.body, Commit))
        for run in (plain, ours)
    ]
    assert [(e.seed, e.coefficient // 2) for e in entries[0]] == [tuple(e) for e in entries[1]]
    fedzo("replay", ours)
    fedzo("simulate", *simulate_options(demo, tmp_path / "loud", rounds=1, task="shouting"), env=env)
    assert read_journal(tmp_path / "loud" / "journal").genesis.task.name == "shouting"
    message = refused("simulate", *simulate_options(demo, tmp_path / "x", method="nonsense"), env=env)
    assert (
        "choose one of: distinct, shared, fedkseed, fedkseed-pro, sign, feedsign, momentum, fzoo, spsa15, halved"
        in message
    )
    assert "task 'broken' is test_plugin:Absent, which cannot be imported" in refused(
        "simulate", *simulate_options(demo, tmp_path / "x", task="broken"), env=env
    )


# ── fedzo evaluate ──────────────────────────────────────────────────────────────────────────────────


def test_evaluating_a_run_of_text_gives_its_journals_last_evaluation(demo, tmp_path):
    """Each client's held-out text is laid end to end on its own."""
    run = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, run, rounds=3, **{"eval-every": 3}))
    last = [r.body for r in read_journal(run / "journal").records if isinstance(r.body, Evaluation)][-1]
    found = json.loads(fedzo("evaluate", run, "--json").stdout)
    assert found["loss"] == pytest.approx(last.loss, rel=1e-5)
    assert found["examples"] == sum(client.examples for client in last.clients)


@pytest.mark.parametrize("task", TASKS)
def test_evaluating_a_run_gives_its_journals_last_evaluation(task, demo, questions, tmp_path):
    run = tmp_path / "run"
    given = {"task": task, "data": questions, "rounds": 3, "eval-every": 3} | TASKS[task]
    fedzo("simulate", *simulate_options(demo, run, **given))
    last = [r.body for r in read_journal(run / "journal").records if isinstance(r.body, Evaluation)][-1]
    found = json.loads(fedzo("evaluate", run, "--json").stdout)
    assert found["loss"] == pytest.approx(last.loss, rel=1e-5)
    assert found["examples"] == sum(client.examples for client in last.clients)
    assert found.get("accuracy") == last.metric
    fedzo("export", run, "--out", tmp_path / "model")
    names = ("task", "prompt", "response", "label-field", "labels", "text-field")
    options = [f"--{name}={given[name]}" for name in names if name in given]
    everything = json.loads(fedzo("evaluate", run, "--data", questions, "--json").stdout)
    exported = fedzo("evaluate", tmp_path / "model", "--data", questions, "--max-length=32", "--json", *options)
    assert json.loads(exported.stdout) == pytest.approx(everything, rel=1e-5)


def test_a_perplexity_beyond_floats_is_infinite():
    assert Evaluated(710.0, {}, 1, True, 0).perplexity == math.inf
    assert Evaluated(2.0, {}, 1, True, 0).perplexity == math.exp(2.0)
    assert Evaluated(710.0, {}, 1, False, 0).perplexity is None


def test_what_cannot_be_evaluated_is_said(demo, questions, tmp_path):
    assert "give --data" in refused("evaluate", demo.model)
    run = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, run, rounds=0, **{"eval-data": "none"}))
    assert "the run holds nothing out; give --data" in refused("evaluate", run)
    assert "option prompt: " in refused("evaluate", run, "--prompt", "x")
