"""What each client's reports did to the held-out loss, and that finding it out leaves nothing behind."""

import json
from pathlib import Path

import pytest
from commands import fedzo, refused, simulate_options

from fedzo.journal import Entry

FLIP = {"method": "shared", "partition": "iid", "directions": 4, "attack": "flip", "attackers": 0.25, "guard": 0}


def influence(run, *options) -> dict:
    return json.loads(fedzo("influence", run, "--json", *options).stdout)


def evaluated(*arguments) -> float:
    return json.loads(fedzo("evaluate", *arguments, "--json").stdout)["loss"]


@pytest.fixture(scope="module")
def lines(demo, tmp_path_factory):
    """Text to evaluate on, not the run's own, so that a model directory can be evaluated on the same."""
    rows = [line for of_farm in json.loads(Path(demo.data).read_text()).values() for line in of_farm[:5]]
    path = tmp_path_factory.mktemp("lines") / "lines.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    "given",
    [
        {"method": "distinct"},
        {"method": "shared", "aggregation": "median"},
        {"method": "distinct", "buffer": 2, "max-staleness": 16},
        {"method": "fedkseed", "pool-size": 8, "local-steps": 2},
    ],
    ids=["distinct", "median", "asynchronous", "fedkseed"],
)
def test_the_loss_without_a_client_is_that_of_the_model_without_it(given, demo, lines, tmp_path):
    """Equal to the bit: `fedzo replay --without` writes that model, `fedzo evaluate` evaluates it."""
    run = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, run, guard=0, lr=1e-3, rounds=8, **given))
    fedzo("rollback", run, "--to", 7)
    before = (run / "journal").read_bytes()
    fedzo("replay", run, "--without", "client-2", "--out", tmp_path / "model")
    found = influence(run, "--data", lines)
    assert (run / "journal").read_bytes() == before
    assert [each["name"] for each in found["clients"]] == [f"client-{k}" for k in range(4)]
    assert found["loss"] == evaluated(run, "--data", lines)
    alone = evaluated(tmp_path / "model", "--data", lines, "--max-length", 32, "--batch-size", 4)
    [of_two] = [each for each in found["clients"] if each["client"] == 2]
    assert of_two["loss_without"] == alone != found["loss"]
    assert of_two["influence"] == alone - found["loss"]
    assert influence(run, "--data", lines, "--client", "client-2")["clients"] == [of_two]
    assert influence(run, "--data", lines, "--client", "client-2", "--state", "disk")["clients"] == [of_two]


def test_a_client_that_pulls_the_other_way_harms_and_the_others_help(demo, tmp_path):
    run = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, run, rounds=24, **FLIP | {"lr": 1e-3}))
    found = influence(run)
    assert found["loss"] == evaluated(run)
    flipping, *honest = [each["influence"] for each in found["clients"]]
    assert flipping < 0 < min(honest)
    printed = fedzo("influence", run).stdout.splitlines()
    assert "positive: the client helped" in printed[1]
    assert "not the loss of a run without it" in printed[1]
    assert [line.split()[1] for line in printed[2:]] == [f"client-{k}" for k in range(4)]
    assert "influence -" in printed[2]
    assert all("influence +" in line for line in printed[3:])


def test_without_an_outsized_client_the_model_is_as_the_others_made_it(demo, tmp_path):
    """The range is bounded from the base then; where the outsized client stays it cannot be, and that is said."""
    run = tmp_path / "run"
    given = {"method": "distinct", "partition": "iid", "directions": 4, "rounds": 24, "lr": 1e-3, "guard": 0}
    fedzo("simulate", *simulate_options(demo, run, attack="scale", attackers=0.25, **given))
    outsized, *others = influence(run)["clients"]
    assert outsized["influence"] < -1
    assert outsized["loss_without"] < 1
    assert {each["influence"] for each in others} == {None}
    assert "might leave their range" in fedzo("influence", run, "--client", "client-3").stdout


def test_a_client_in_no_commit_that_stands_has_none(demo, tmp_path):
    run = tmp_path / "run"
    fedzo("simulate", *simulate_options(demo, run, rounds=1, cohort=2))
    found = influence(run)["clients"]
    assert sorted(each["commits"] for each in found) == [0, 0, 1, 1]
    assert all((each["influence"] == 0) is (each["commits"] == 0) for each in found)
    fedzo("rollback", run, "--to", 0)
    assert all(each["influence"] == each["commits"] == 0 for each in influence(run)["clients"])


@pytest.mark.slow
def test_a_server_that_has_no_data_is_given_some(federation, lines):
    """The figures are those of the client's directory, which holds a copy of the journal."""
    found = federation(clients=2, rounds=4).start()
    found.finish()
    assert "no simulation, so its rows are not known here" in refused("influence", found.run)
    of_server = influence(found.run, "--data", lines)
    assert [each["commits"] for each in of_server["clients"]] == [4, 4]
    assert of_server["loss"] == evaluated(found.run, "--data", lines)
    assert influence(found.directory(1), "--data", lines, "--base", found.model) == of_server


def test_a_state_that_does_not_come_back_is_an_error(finished, monkeypatch):
    """As a fault of memory would have it: the state moves while the model is evaluated."""
    from fedzo_simulations import influence as module

    kept = []
    rebuilt, measured = module.rebuilt, module.measured

    def rebuilt_and_kept(*arguments):
        kept.append(rebuilt(*arguments))
        return kept[-1]

    def measured_with_a_fault(*arguments, **named):
        kept[-1][0].add([Entry(7, 1 << 30)])
        return measured(*arguments, **named)

    monkeypatch.setattr(module, "rebuilt", rebuilt_and_kept)
    influence(finished)
    monkeypatch.setattr(module, "measured", measured_with_a_fault)
    assert "after every part was put back the state digest is" in refused("influence", finished)


def test_what_has_no_influence_to_show_is_said(demo, finished, tmp_path):
    assert "no run there" in refused("influence", tmp_path)
    assert "no such client; the journal knows client-0" in refused("influence", finished, "--client", "bertl")
    nothing = tmp_path / "nothing"
    fedzo("simulate", *simulate_options(demo, nothing, rounds=1, **{"eval-data": "none"}))
    assert "holds nothing out; give --data" in refused("influence", nothing)
    momentum = tmp_path / "momentum"
    given = {"method": "momentum", "momentum-window": 2, "momentum-decay": 0.5, "rounds": 2}
    fedzo("simulate", *simulate_options(demo, momentum, **given))
    assert "rest on the reports of earlier ones" in refused("influence", momentum)
