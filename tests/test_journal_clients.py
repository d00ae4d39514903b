"""What a journal says of each client, and a model without one of them."""

import json

import numpy as np
import pytest
import transformers as tf
from commands import fedzo, refused, simulate_options
from coordination import NAMES, started

from fedzo.coordinator import Purpose
from fedzo.journal import Commit, Entry, read_journal
from fedzo.methods import MethodRound, get_method, method_reports
from fedzo.results.client_statistics import client_statistics
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory

SCALARS = {0: (1.0, 2.0), 1: (2.0, 1.0), 2: (-10.0, -10.0)}


def told(run, client: int) -> dict:
    if run.plan.purpose is not Purpose.TRAIN:
        return {}
    return {"examples": 1 + client, "loss": 1.0 + client, "projected_gradients": SCALARS[client]}


@pytest.mark.parametrize("method", ["shared", "distinct"])
def test_statistics_are_those_computed_by_hand(method):
    run = started(3, method=method, directions=2, rounds=2)
    run.play(told)
    found = client_statistics(run.contents)
    assert [each.name for each in found] == list(NAMES[:3])
    assert [(each.commits, each.examples) for each in found] == [(2, 2), (2, 4), (2, 6)]
    assert [each.share for each in found] == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert [each.loss for each in found] == [1.0, 2.0, 3.0]
    assert [each.size for each in found] == pytest.approx([1, 1, 10 / np.sqrt(2.5)])
    if method == "distinct":
        assert [each.agreement for each in found] == [None] * 3
        return
    for each in found:
        own = np.array(SCALARS[each.client])
        others = np.mean([SCALARS[c] for c in SCALARS if c != each.client], axis=0)
        cosine = own @ others / np.linalg.norm(own) / np.linalg.norm(others)
        assert each.agreement == pytest.approx(cosine)
    assert found[2].agreement < -0.9


def test_a_client_that_took_no_part_is_listed():
    run = started(3, cohort=2, directions=2, rounds=1)
    run.play(told)
    idle = [each for each in client_statistics(run.contents) if each.commits == 0]
    assert [(each.examples, each.loss, each.size, each.agreement) for each in idle] == [(0, None, None, None)]


def test_a_hostile_client_disagrees(demo, tmp_path):
    run = tmp_path / "run"
    given = {"method": "shared", "partition": "iid", "directions": 4, "attack": "flip", "attackers": 0.25, "guard": 0}
    fedzo("simulate", *simulate_options(demo, run, **given | {"lr": 1e-3}))
    found = json.loads(fedzo("journal", "clients", run, "--json").stdout)
    assert [each["name"] for each in found] == [f"client-{k}" for k in range(4)]
    assert min(each["agreement"] for each in found[1:]) > found[0]["agreement"]
    assert found[0]["agreement"] < 0
    legend, *lines = fedzo("journal", "clients", run).stdout.splitlines()
    assert "agreement: cosine" in legend
    assert len(lines) == 4
    assert "agreement -" in lines[0]


def test_why_no_agreement_is_known_is_said_once(demo, finished, tmp_path):
    said = fedzo("journal", "clients", finished).stdout
    assert said.count("method 'distinct' has each client evaluate directions of its own") == 1
    assert said.count("agreement –") == 1 + 4
    fedzo("simulate", *simulate_options(demo, tmp_path / "run", method="shared", clients=1, partition="iid", rounds=2))
    said = fedzo("journal", "clients", tmp_path / "run").stdout
    assert said.count("agreement –: it is in no commit with another client's scalars") == 1


@pytest.mark.parametrize("method", ["distinct", "shared"])
def test_the_model_without_a_client_is_that_of_the_others_reports(method, demo, tmp_path):
    """Equal digest: base, and for every commit the entries that the method makes of the other reports."""
    run = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, run, method=method, rounds=6, guard=0, lr=1e-3))
    before = (run / "journal").read_bytes()
    done = fedzo("replay", run, "--without", "client-2", "--out", tmp_path / "model")
    assert "which is in 6 commits" in done.stdout
    contents = read_journal(run / "journal")
    replica, _, _ = rebuild(RunDirectory(run))
    commits = [record for record in contents.records if isinstance(record.body, Commit)]
    replica.add([Entry(seed, -coefficient) for record in commits for seed, coefficient in record.entries])
    for record in commits:
        lines = method_reports(report for report in record.body.reports if report.client != 2)
        at = MethodRound(contents.genesis, record.round)
        replica.add(get_method(method).aggregate(at, record.body.learning_rate, lines))
    assert f"state digest {replica.digest().hex()}" in done.stdout.splitlines()[-2]
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert bool((model.get_parameter(replica.manifest.tensors[0].name) == replica.weights(0)).all())
    assert (run / "journal").read_bytes() == before


def test_commits_that_a_rollback_undid_stay_undone(demo, tmp_path):
    run = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, run, rounds=3, guard=0))
    fedzo("rollback", run, "--to", 0)
    printed = fedzo("replay", run, "--without", "client-0").stdout.splitlines()
    assert "which is in 0 commits" in printed[-1]
    assert printed[-1].split()[-1] == printed[-2].split()[-1]


def test_what_cannot_be_taken_out_is_said(demo, finished, tmp_path):
    assert "no such client; the journal knows client-0" in refused("replay", finished, "--without", "bertl")
    assert "here it belongs to --without" in refused("replay", finished, "--out", tmp_path / "model")
    run = tmp_path / "run"
    given = {"method": "momentum", "momentum-window": 2, "momentum-decay": 0.5, "rounds": 2}
    fedzo("simulate", *simulate_options(demo, run, **given))
    assert "rest on the reports of earlier ones" in refused("replay", run, "--without", "client-0")
