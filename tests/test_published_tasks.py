"""The tasks of the papers: each file, on its data; metrics, decoding and demonstrations against other computations."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from commands import fedzo, refused, simulate_options
from fedzo_simulations.options import SimulateOptions
from fedzo_simulations.setup import make_task
from metrics_by_hand import expected

from fedzo.base.checkpoint import load_base, load_tokenizer
from fedzo.config import write_toml
from fedzo.errors import ConfigError, DataError
from fedzo.estimate import Estimator
from fedzo.journal import Commit, read_journal
from fedzo.journal import Task as Spec
from fedzo.journal.genesis_codec import decode_task, encode_task
from fedzo.noise import Distribution
from fedzo.scopes import Kind, Scope
from fedzo.scopes.base import prepare
from fedzo.state.replica import Replica
from fedzo.tasks import get_task
from fedzo.tasks.decoding import greedy_answer
from fedzo.tasks.definition import definition_of, find_definition, published_tasks
from fedzo.tasks.metrics import METRICS, Answer, score
from fedzo.tasks.rows import Row, read_rows
from fedzo.tasks.task import class_names

HERE = Path(__file__).parent / "published"
REAL = {
    "sst2": "cls/sst2/dev",
    "cb": "cls/cb/val",
    "boolq": "cls/boolq/val",
    "copa": "cls/copa/val",
    "trec": "cls/trec/test",
    "dolly": "instr/dolly15k/open_qa",
    "gsm8k": "instr/gsm8k/test",
}
"""Tasks whose published rows are at hand; those of the others are in `published/`, written for these tests."""
ROWS = {"dolly": 2, "gsm8k": 1}
"""How many of them are evaluated, 8 where it is not said: long answers take long."""


def data_of(task: str, shared: Path) -> Path:
    return shared / "data" / f"{REAL[task]}.jsonl.gz" if task in REAL else HERE / f"{task}.jsonl"


# ── metrics, computed otherwise ─────────────────────────────────────────────────────────────────────


TEXTS = [
    Answer("The Cat.", ("cat",)),
    Answer("a cat sat on the mat", ("the cat sat", "on a mat it sat")),
    Answer("dog", ("cat", "a Dog!")),
    Answer("", ("nothing", "none at all")),
    Answer("one two three four", ("four three two one",)),
]


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric not in ("positive-f1", "group-accuracy")])
def test_metrics_of_texts_are_those_computed_by_hand(metric):
    assert score(metric, TEXTS) == pytest.approx(expected(metric, TEXTS, ()), abs=1e-6)
    assert 0 < score("f1", TEXTS) < 1


@pytest.mark.parametrize("classes", [("no", "yes"), ("no", "yes", "so", "never")])
def test_metrics_of_classes_are_those_computed_by_hand(classes):
    draw = np.random.default_rng(1)
    names = classes[:3]  # the fourth is neither said nor right: it does not count
    answers = [Answer(names[draw.integers(len(names))], (names[draw.integers(len(names))],)) for _ in range(40)]
    for metric in ("accuracy", "f1", *(["positive-f1"] if len(classes) == 2 else [])):
        assert score(metric, answers, classes) == pytest.approx(expected(metric, answers, classes), abs=1e-6)


@pytest.mark.parametrize(
    ("said", "right", "f1", "exact"),
    [
        ("5", "5.0", 1, 1),
        ("1,500 yards", "1500 yards", 1, 1),
        ("$1,500", "1500", 1, 1),
        ("the 5 Goals.", "5 goals", 1, 1),
        ("goals 5", "5 goals", 1, 0),
        ("5 and 5", "5", 0.67, 0),  # a set of {5, and}: 2 · 1 / (2 + 1)
        ("6 goals", "5 goals", 0, 0),  # no number of the right answer was said
        ("goals", "5 goals", 0, 0),
        ("5 goals", "goals", 0.67, 0),
        ("forty-two yards", "forty two yards", 1, 1),
        ("12 March 1918", "March 1918", 0.8, 0),
        ("the home side", "the guests", 0, 0),
        ("the", "a", 1, 1),  # nothing is left of either
        ("the", "cat", 0, 0),
    ],
)
def test_words_are_compared_as_drop_does(said, right, f1, exact):
    """Worked out by hand from the description of the metric: F1 of sets of words to two digits."""
    assert score("drop-f1", [Answer(said, (right,))]) == f1
    assert score("drop-exact-match", [Answer(said, (right,))]) == exact
    assert score("drop-f1", [Answer(said, ("12345", right)), Answer("", (right,))]) == f1 / 2


def test_a_group_is_right_where_all_of_it_is():
    answers = [
        Answer("yes", ("yes",), "0.0"),
        Answer("no", ("no",), "0.0"),
        Answer("yes", ("yes",), "0.1"),
        Answer("yes", ("no",), "0.1"),
        Answer("no", ("yes",), "1.0"),
        Answer("no", ("no",), "1.1"),
    ]
    assert score("group-accuracy", answers, ("no", "yes")) == 2 / 4
    assert score("group-accuracy", answers[::-1], ("no", "yes")) == 2 / 4
    assert score("group-accuracy", answers[2:4], ("no", "yes")) == 0


def test_the_rows_of_a_question_are_a_group(tokenizer):
    rows = read_rows(str(HERE / "multirc.jsonl"))
    task = task_of("multirc", rows, tokenizer)
    assert [example.group for example in task.examples(task.rows(rows, "data"))] == ["0.0", "0.0", "0.1", "0.1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": ("group-accuracy",)}, "metric 'group-accuracy' needs the key group in the task's file"),
        ({"group": "{g}", "objective": "group-accuracy"}, "a batch may hold parts; choose 'accuracy'"),
        ({"group": "{g!r}", "metrics": ("group-accuracy",)}, "option group is '{g!r}'"),
    ],
)
def test_groups_that_do_not_fit_are_refused(given, message):
    spec = Spec(tokenizer_digest=bytes(32), max_length=64, **FINAL | given)
    with pytest.raises(ConfigError, match=re.escape(message)):
        get_task("instruction").check(spec)


def test_a_metric_that_needs_torchmetrics_says_so(monkeypatch):
    monkeypatch.setattr("fedzo.tasks.metrics.find_spec", lambda name: None)
    assert score("accuracy", TEXTS) == 0
    with pytest.raises(
        ConfigError, match=r"needs the package torchmetrics: pip install -c constraints.txt '.\[metrics\]'"
    ):
        score("f1", TEXTS)


# ── every published task, on its data ───────────────────────────────────────────────────────────────


def task_of(name: str, rows: list[Row], tokenizer, **options):
    made = SimulateOptions(**{"model": "m", "data": "d", "out": "o", "task": name, "max_length": 512} | options)
    return make_task(made, tokenizer, rows)


def log_probability(model, ids, start: int) -> float:
    """Mean over ids[start:] of the log-probability given what is before, one sequence alone."""
    with torch.inference_mode():
        logits = model(torch.tensor([[int(i) for i in ids]])).logits[0].double().log_softmax(-1)
    return float(np.mean([float(logits[k - 1, int(ids[k])]) for k in range(start, len(ids))]))


@pytest.fixture(scope="module")
def model(stories):
    return tf.AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(stories):
    return load_tokenizer(stories)


@pytest.mark.parametrize("name", published_tasks())
def test_a_published_task_is_evaluated_and_its_metrics_are_right(name, shared, stories, model, tokenizer):
    """`fedzo evaluate`, and the same again one row at a time with transformers' own forward and generate."""
    source, most = data_of(name, shared), ROWS.get(name, 8)
    printed = fedzo(
        "evaluate", stories, "--task", name, "--data", source, "--rows", most, "--max-length", 512, "--json"
    )
    found = json.loads(printed.stdout)
    rows = read_rows(str(source))
    task = task_of(name, rows, tokenizer)
    examples = task.examples(task.rows(rows, "data")[:most])
    answers = []
    for example in examples:
        if task.spec.name == "classification":
            scores = [log_probability(model, s.ids, s.start) for s in example.sequences]
            answers.append(Answer(example.names[int(np.argmax(scores))], example.accepted))
        else:
            answers.append(Answer(said_by(model, tokenizer, example.prompt, task), example.accepted))
    assert set(task.spec.metrics) <= set(found)
    assert task.spec.metrics
    for metric in task.spec.metrics:
        assert found[metric] == pytest.approx(expected(metric, answers, class_names(task.spec)), abs=1e-6)


def said_by(model, tokenizer, prompt, task) -> str:
    given = torch.tensor([prompt.tolist()])
    most = task.spec.answer_tokens
    whole = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=most, do_sample=False)[0]
    text = tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True)
    said = text.split(task.spec.stop)[0].strip() if task.spec.stop else text.strip()
    if not task.spec.final_mark:
        return said
    return said.partition(task.spec.final_mark)[2].replace(",", "").strip()


@pytest.mark.parametrize("name", published_tasks())
def test_every_row_at_hand_is_an_example(name, shared, tokenizer):
    """All rows of the published file, or of the fixture: each has the fields, a known label, a filled prompt."""
    rows = read_rows(str(data_of(name, shared)))[:500]
    task = task_of(name, rows, tokenizer)
    kept = task.rows(rows, "data")
    assert len(kept) == len(rows)
    for row in kept[:100]:
        shown = task.shown(row)
        assert "{" not in re.sub(r"\{[^a-z]*\}", "", shown) or "{" in json.dumps(row.fields)
    assert len(task.examples(kept[:5])) == min(5, len(rows))


@pytest.mark.parametrize("name", published_tasks())
def test_a_published_task_survives_the_journal(name, tokenizer, shared):
    spec = task_of(name, [], tokenizer).spec
    assert decode_task(encode_task(spec)) == spec
    assert spec.name == find_definition(name).task


def test_what_counts_as_right(tokenizer):
    """Several references, several right choices, a final mark, labels that are said the same."""
    record = read_rows(str(HERE / "record.jsonl"))
    task = task_of("record", record, tokenizer)
    examples = task.examples(task.rows(record, "data"))
    assert [len(e.sequences) for e in examples] == [4, 3, 3]
    assert [(e.names[e.right], e.accepted) for e in examples] == [
        ("Oslo", ("Oslo",)),
        ("Millau", ("Millau",)),
        ("Voss", ("Voss", "Ada Voss")),
    ]
    squad = read_rows(str(HERE / "squad.jsonl"))
    task = task_of("squad", squad, tokenizer)
    assert task.examples(task.rows(squad, "data"))[0].accepted == ("1861", "in 1861")
    sums = [Row("", {"question": "How many?", "answer": "He has 900 + 334 = 1,234.\n#### 1,234"})]
    task = task_of("gsm8k", sums, tokenizer)
    assert task.examples(task.rows(sums, "data"))[0].accepted == ("1234",)
    rte = read_rows(str(HERE / "rte.jsonl"))
    task = task_of("rte", rte, tokenizer)
    assert [e.accepted for e in task.examples(task.rows(rte, "data"))] == [("yes",), ("no",), ("yes",), ("no",)]
    assert class_names(task.spec) == ("yes", "no")


FINAL = {"name": "instruction", "prompt": "{q}", "response": "{a}", "final_mark": "####", "answer_tokens": 8}


def marked(tokenizer, **values):
    """A task whose answers follow a mark."""
    spec = Spec(tokenizer_digest=bytes(32), max_length=64, metrics=("accuracy",), **(FINAL | values))
    return get_task("instruction")(spec, tokenizer)


def test_an_answer_without_the_final_mark_is_wrong(tokenizer):
    rows = [Row("", {"q": "what", "a": "6 × 7 #### 42", "right": ["42", "= #### 1,042"]}, "row 3")]
    task = marked(tokenizer, references="right")
    (example,) = task.examples(task.rows(rows, "data"))
    assert example.accepted == ("42", "1042")
    task = marked(tokenizer)
    (example,) = task.examples(task.rows(rows, "data"))
    assert example.accepted == ("42",)
    bare = [Row("", {"q": "what", "a": "just 42"}, "row 3")]
    with pytest.raises(DataError, match="row 3: the response 'just 42' has nothing after the final mark '####'"):
        task.examples(task.rows(bare, "data"))


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric not in ("positive-f1", "group-accuracy")])
def test_an_answer_that_says_nothing_is_never_right(metric):
    assert score(metric, [Answer("", ("",)), Answer("", ("the",))]) == 0
    assert score(metric, [Answer("", ("",)), Answer("cat", ("cat",))]) == 0.5


def test_multiple_choice_says_the_rows_own_texts(tokenizer):
    rows = [Row("", {"premise": "It rained.", "question": "effect", "choice1": "A", "choice2": "B", "label": 1})]
    task = task_of("copa", rows, tokenizer)
    assert task.shown(task.rows(rows, "data")[0]) == "It rained. What was the effect of this? B"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entities": ["a", "b"], "answers": ["c"]}, "none of .'c',. is among the row's choices .'a', 'b'."),
        ({"answers": ["c"]}, "no field 'entities'"),
        ({"entities": [1, 2], "answers": [1]}, r"row 7: 'entities' holds \[1, 2\]; expected a list of texts"),
        ({"entities": [["a"], ["b"]], "answers": ["a"]}, "row 7: 'entities' holds .*; expected a list of texts"),
        ({"entities": "abc", "answers": ["a"]}, "row 7: 'entities' holds 'abc'; expected a list of texts"),
        ({"entities": {"a": 1}, "answers": ["a"]}, "row 7: 'entities' holds {'a': 1}; expected a list of texts"),
        ({"entities": None, "answers": ["a"]}, "row 7: 'entities' holds None; expected a list of texts"),
        ({"entities": [], "answers": ["a"]}, r"row 7: 'entities' holds \[\]; expected a list of texts"),
        ({"entities": ["a", " "], "answers": ["a"]}, "row 7: 'entities' holds .*none of them blank"),
    ],
)
def test_a_row_that_does_not_fit_is_named(fields, message, tokenizer):
    rows = [Row("", {"passage": "p", "query": "q"} | fields, "row 7")]
    task = task_of("record", rows, tokenizer)
    with pytest.raises(DataError, match=message):
        task.examples(task.rows(rows, "data"))


def test_a_label_that_is_said_by_a_blank_field_is_refused(tokenizer):
    rows = [Row("", {"premise": "p", "question": "cause", "choice1": "A", "choice2": " ", "label": 0}, "row 7")]
    task = task_of("copa", rows, tokenizer)
    with pytest.raises(DataError, match="row 7: the label that is said '{choice2}' is blank here"):
        task.examples(task.rows(rows, "data"))


# ── decoding ────────────────────────────────────────────────────────────────────────────────────────


def test_decoding_stops_at_the_end_token_at_the_text_and_at_the_most(model, tokenizer):
    prompt = np.array(tokenizer("Once upon a time")["input_ids"])
    long = greedy_answer(model, tokenizer, prompt, answer_tokens=40)
    assert long.startswith(", there was a little girl")
    assert greedy_answer(model, tokenizer, prompt, answer_tokens=40, stop="little") == ", there was a"
    some = greedy_answer(model, tokenizer, prompt, answer_tokens=5)
    assert long.startswith(some)
    assert 0 < len(some) < len(long)
    assert len(tokenizer(some)["input_ids"]) <= 6 + 1

    class Ending:
        """The tokenizer, but its end token is the third that the model says."""

        decode = staticmethod(tokenizer.decode)
        eos_token_id = tokenizer("Once upon a time " + long)["input_ids"][len(prompt) + 2]

    assert len(greedy_answer(model, Ending, prompt, answer_tokens=40)) < len(some)


@pytest.mark.parametrize("kind", [Kind.PREFIX, Kind.LORA])
def test_an_adapted_model_answers_as_it_does_without_kept_keys(kind, stories, tokenizer):
    """Peft puts its prefix in the place of kept keys and values, whatever they are of."""
    settings = {"virtual_tokens": 5} if kind is Kind.PREFIX else {"lora_rank": 2, "lora_alpha": 4.0}
    scope = Scope(kind=kind, lora_targets=("q_proj",) if kind is Kind.LORA else (), **settings)
    model, _ = prepare(load_base(stories).model, scope, 0)
    prompt = np.array(tokenizer("Once upon a time there was a little girl")["input_ids"])
    tokens = torch.from_numpy(prompt).unsqueeze(0)
    with torch.inference_mode():
        for _ in range(20):
            likeliest = model(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(dim=-1)
            tokens = torch.cat([tokens, likeliest], dim=1)
    found = greedy_answer(model, tokenizer, prompt, answer_tokens=20)
    assert found == tokenizer.decode(tokens[0, len(prompt) :]).strip()


# ── demonstrations ──────────────────────────────────────────────────────────────────────────────────


def test_demonstrations_come_before_every_prompt_and_are_not_evaluated(tokenizer, stories, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"sentence": f"film {k}.", "label": k % 2}) + "\n" for k in range(9)))
    rows = read_rows(str(data))
    task = task_of("sst2", rows, tokenizer)
    kept = task.rows(rows, "data")
    task.demonstrate(kept[:2])
    choice = task.examples(kept[2:3])[0]
    text = tokenizer.decode(choice.sequences[0].ids, skip_special_tokens=True)
    ask = "On the whole the film is"
    assert text == f"film 0. {ask} bad\n\nfilm 1. {ask} good\n\nfilm 2. {ask} bad"
    assert tokenizer.decode(choice.sequences[0].ids[choice.sequences[0].start :]).strip() == "bad"
    given = ("--task", "sst2", "--data", data, "--json", "--max-length", 256)
    none, two, other = (
        json.loads(fedzo("evaluate", stories, *given, *more).stdout)
        for more in ([], ["--shots", 2], ["--shots", 2, "--seed", 1])
    )
    assert (none["examples"], two["examples"], other["examples"]) == (9, 7, 7)
    assert len({none["loss"], two["loss"], other["loss"]}) == 3
    from_elsewhere = json.loads(fedzo("evaluate", stories, *given, "--shots", 2, "--shots-from", data).stdout)
    assert from_elsewhere["examples"] == 9
    assert "there are 9 rows to draw from" in refused("evaluate", stories, *given, "--shots", 9)
    assert "say how many" in refused("evaluate", stories, *given, "--shots-from", data)
    lines = ("--task", "lm", "--text-field", "sentence", "--data", data)
    assert "no prompt to show demonstrations in" in refused("evaluate", stories, *lines, "--shots", 1)


def test_examples_that_fill_the_length_are_said(stories, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"sentence": "very " * 50 + "good.", "label": 1}) + "\n")
    done = fedzo("evaluate", stories, "--task", "sst2", "--data", data, "--max-length", 32)
    assert "1 examples fill --max-length" in done.stderr


# ── objectives without a gradient ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "objective"), [("trec", "accuracy"), ("trec", "f1"), ("squad", "f1")])
def test_an_objective_in_lockstep_is_that_of_the_perturbed_model_alone(name, objective, shared, stories, tokenizer):
    """Both lanes at once, against a plain model that was given each perturbation's weights; equal, not close."""
    rows = read_rows(str(data_of(name, shared)))[:24]
    task = task_of(name, rows, tokenizer, objective=objective, guard=0.0, lr=1e-3)
    batch, _ = task.collate(task.examples(task.rows(rows, "data")))
    base = load_base(stories)
    replica = Replica.from_base(base, Distribution.RADEMACHER)
    epsilon = 2**34
    estimator = Estimator(base.model, replica, loss=task.loss)
    found = estimator.losses(batch, [(5, (epsilon, -epsilon)), (6, (epsilon, 0))])
    for seed, coefficient, loss in ((5, epsilon, found[0][0]), (5, -epsilon, found[0][1]), (6, 0, found[1][1])):
        plain = load_base(stories).model.float().eval()
        moved = Replica.from_base(load_base(stories), Distribution.RADEMACHER)
        weights = moved_weights(moved, seed, coefficient)
        with torch.inference_mode():
            for tensor, values in weights.items():
                plain.get_parameter(tensor).copy_(values)
            _, answers = task.judge(plain, batch)
        assert loss == pytest.approx(1 - expected(objective, list(answers), class_names(task.spec)), abs=1e-6)


def moved_weights(replica: Replica, seed: int, coefficient: int) -> dict[str, torch.Tensor]:
    from fedzo.journal import Entry

    replica.add([Entry(seed, coefficient)])
    return {spec.name: replica.weights(k).clone() for k, spec in enumerate(replica.manifest)}


def test_an_objective_is_trained_and_its_losses_are_shares(stories, shared, tmp_path):
    run = tmp_path / "run"
    data = data_of("copa", shared)
    given = {
        "task": "copa",
        "objective": "accuracy",
        "guard": 0,
        "method": "distinct",
        "lr": 1e-3,
        "batch-size": 8,
        "rounds": 4,
        "max-length": 128,
    }
    options = {"model": stories, "data": data, "out": run, "clients": 2, "epsilon": 0.02, "threads": 1} | given
    fedzo("simulate", *(part for name, value in options.items() for part in (f"--{name}", value)))
    contents = read_journal(run / "journal")
    assert contents.genesis.task.objective == "accuracy"
    losses = [report.loss for r in contents.records if isinstance(r.body, Commit) for report in r.body.reports]
    assert losses
    assert all((loss * 16) == pytest.approx(round(loss * 16), abs=1e-6) for loss in losses)
    fedzo("replay", run)
    assert "accuracy" in json.loads(fedzo("evaluate", run, "--json").stdout)


def test_what_an_objective_cannot_be_is_refused(demo, tmp_path):
    def message(**given) -> str:
        return refused("simulate", *simulate_options(demo, tmp_path / "run", **given))

    assert "give --guard 0" in message(task="sst2", objective="accuracy")
    assert "objective 'bleu' is unknown; choose one of: accuracy, f1" in message(task="sst2", objective="bleu", guard=0)
    assert "option objective is 'accuracy', but task 'lm' has no use for it" in message(objective="accuracy", guard=0)
    assert "positive-f1' is for two classes, and the task has 3" in message(task="cb", objective="positive-f1", guard=0)
    assert "answer-tokens is 32 and --max-length 32" in message(task="squad")
    assert "task 'sst3' is unknown; choose one of: lm, instruction, classification" in message(task="sst3")
    assert "squad, sst2, trec" in message(task="sst3")


# ── what the journal holds ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*published_tasks(), "sequence-classification"])
def test_a_definition_comes_back_from_the_journal(name, tokenizer, tmp_path, shared):
    given = {"label_field": "l", "labels": "no,yes"} if name == "sequence-classification" else {}
    spec = task_of(name, [], tokenizer, **given).spec
    write_toml(tmp_path / "task.toml", definition_of(spec))
    assert task_of(str(tmp_path / "task.toml"), [], tokenizer).spec == spec


def test_the_bytes_of_a_task_without_the_new_fields_are_as_before():
    """Field numbers and order of the message, written by hand: tag, length, value."""
    spec = Spec(name="lm", tokenizer_digest=b"\x01" * 32, max_length=128)
    assert encode_task(spec).SerializeToString(deterministic=True) == (
        b"\x0a\x02lm" + b"\x12\x20" + b"\x01" * 32 + b"\x18\x80\x01"
    )


def test_a_classifications_loss_with_uneven_candidates_is_that_of_each_row(model, tokenizer):
    rows = read_rows(str(HERE / "record.jsonl"))
    task = task_of("record", rows, tokenizer)
    examples = task.examples(task.rows(rows, "data"))
    losses = []
    for example in examples:
        scores = [log_probability(model, s.ids, s.start) for s in example.sequences]
        losses.append(math.log(sum(map(math.exp, scores))) - scores[example.right])
    with torch.inference_mode():
        assert float(task.loss(model, task.collate(examples)[0])) == pytest.approx(np.mean(losses), abs=1e-4)
        assert get_task("classification") is type(task)
