"""What a comparison's file says: read with its defaults, and what is wrong with it named before anything is run."""

from dataclasses import replace

import pytest
from commands import refused
from fedzo_simulations.compare.plan import read_comparison
from fedzo_simulations.compare.queue import Queue
from fedzo_simulations.compare.stated import stated

from fedzo.errors import ConfigError

BASE = {"model": "m", "data": "d"}


def read(**given):
    values = {"forwards": 100, "base": BASE, "rates": [1e-3], "row": [{"method": "distinct"}, {"method": "mezo"}]}
    return read_comparison({k: v for k, v in (values | given).items() if v is not None}, "here", {})


def test_a_comparison_is_read_with_its_defaults():
    found = read(**{"trial-share": 0.5, "base": BASE | {"batch-size": 4}})
    assert (found.budget, found.seeds, found.trial_share) == (("forwards", 100), (0,), 0.5)
    assert [row.name for row in found.rows] == ["distinct", "mezo"]
    assert found.rows[1].options == BASE | {"batch_size": 4}
    rates = read(row=[{"method": "distinct", "rates": ["auto"]}]).rows[0].rates
    assert rates == ("auto",)
    assert read(row=[{"method": "mezo", "objective": "accuracy"}]).rows[0].is_baseline, "it needs no gradient"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"forwards": None}, "give one budget of forwards, forwards_per_client, bytes, found none"),
        ({"bytes": 10}, "found forwards, bytes"),
        ({"seed": [1]}, "key 'seed' is unknown"),
        ({"seeds": [1, 1]}, "each once"),
        ({"row": []}, "needs rows"),
        ({"row": [{"name": "a"}]}, "row 'a': a row needs a method"),
        ({"row": [{"method": "nothing"}]}, "method 'nothing' is unknown"),
        ({"row": [{"method": "mezo", "rounds": 3}]}, "option 'rounds' is set by the comparison"),
        ({"row": [{"method": "mezo", "batchsize": 3}]}, "the nearest known one is 'batch-size'"),
        ({"row": [{"method": "mezo"}, {"method": "mezo"}]}, "give row 'mezo' another name"),
        ({"rates": []}, "rates is []"),
        ({"rates": ["auto", "auto"], "row": [{"method": "distinct"}]}, "row 'distinct': rates are auto, auto to six"),
        ({"rates": [1e-3, 1.0000001e-3]}, "row 'distinct': rates are 0.001, 0.001 to six digits"),
        ({"rates": ["auto"]}, "here, row 'mezo': rates has 'auto', and baseline 'mezo' has no calibration"),
        (
            {"row": [{"method": "fedavg", "objective": "accuracy", "guard": 0.0}]},
            "here, row 'fedavg': objective is 'accuracy', which has no gradient, and baseline 'fedavg' needs one",
        ),
        ({"reach": "x"}, "reach is 'x', which is no row"),
        ({"trial_share": 0.0}, "trial-share is 0.0"),
        (
            {"subject": {"make": "a:b", "weights": "$NOT_SET_ANYWHERE"}},
            "[subject]: '$NOT_SET_ANYWHERE' names a variable",
        ),
        ({"base": BASE | {"model": "$NOT_SET_ANYWHERE/m"}}, "names a variable of the environment that is not set"),
        (
            {"row": [{"method": "mezo", "rates": [1, 2, 3]}, {"method": "sgd", "rates": [1, 2]}]},
            "rows are tuned with the same number of trials, but there are: 'mezo' 3, 'sgd' 2",
        ),
    ],
)
def test_what_is_wrong_with_a_comparison_is_named(given, message):
    with pytest.raises(ConfigError) as error:
        read(**given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mezo", "--bytes", 1000], "baseline 'mezo' sends nothing, so bytes do not limit it"),
        (
            ["distinct", "--forwards", 10],
            "row 'distinct': a round of 'distinct' takes 16 of forwards, the budget is 10",
        ),
        (["fzoo", "--directions", 1, "--forwards", 100], "row 'fzoo': option directions is 1"),
        (["sgd", "--forwards", 100, "--rates", "fast"], "option rates is 'fast'"),
        (["adamw", "--forwards", 100, "--objective", "f1", "--guard", 0], "row 'adamw': objective is 'f1', which has"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(options, message, demo, tmp_path):
    rates = [] if "--rates" in options else ["--rates", "1e-3"]
    given = ["--model", demo.model, "--data", demo.data, "--out", tmp_path / "out"]
    assert message in refused("compare", *options, *rates, *given)
    assert not list(tmp_path.rglob("config.toml"))


def test_a_baseline_is_held_to_no_method_and_to_its_local_steps(tmp_path):
    """Whatever method is the default: its options are of no use to a baseline."""
    comparison = read(row=[{"method": "fedavg", "directions": 1, "local-steps": 5}], base=BASE | {"clients": 4})
    (cell,) = Queue(comparison, tmp_path).seeds(comparison.rows[0])
    now = stated(cell.options(), comparison, baseline=True)
    other = stated(replace(cell.options(), local_steps=1), comparison, baseline=True)
    assert now.difference(other) == "local-steps was 1, is 5"


def test_a_cell_states_what_was_chosen_and_is_the_same_as_one_that_stated_zeros(tmp_path):
    """Results of earlier versions have 0 where nothing was said."""
    comparison = read(row=[{"method": "momentum", "scope": "sparse"}], base=BASE | {"clients": 4})
    (cell,) = Queue(comparison, tmp_path).seeds(comparison.rows[0])
    now = stated(cell.options(), comparison, baseline=False)
    chosen = {"momentum_window": 10, "momentum_decay": 0.9, "sparsity": 0.75}
    assert {name: now.options[name] for name in chosen} == chosen
    zeros = replace(now, options=now.options | dict.fromkeys(chosen, 0))
    assert (now.difference(zeros), zeros.difference(now)) == ("", "")
    other = replace(now, options=now.options | {"sparsity": 0.5})
    assert now.difference(other) == "sparsity was 0.5, is 0.75"
