"""Options of a run that are left at 0 become what is usual with the method, the scope or the aggregation."""

from pathlib import Path

import pytest
from helpers import make_genesis

from fedzo.config import read_toml, write_toml
from fedzo.errors import ConfigError
from fedzo.journal import Journal
from fedzo.methods import get_method
from fedzo.options.reading import options_of_run
from fedzo.options.run import RunOptions
from fedzo.scopes import Kind, Scope

USUAL = [
    ({"method": "distinct"}, {"directions": 1, "pool_size": 0}),
    ({"method": "fzoo"}, {"directions": 8}),
    ({"method": "fzoo", "directions": 3}, {"directions": 3}),
    ({"method": "fedkseed"}, {"directions": 1, "pool_size": 1024}),
    ({"method": "fedkseed-pro", "pool_size": 64}, {"pool_size": 64}),
    ({"method": "momentum"}, {"momentum_window": 10, "momentum_decay": 0.9}),
    ({"method": "spsa15"}, {"curvature_power": 0.1}),
    ({"method": "shared", "aggregation": "krum"}, {"tolerate": 0.25}),
    ({"method": "shared", "aggregation": "median"}, {"tolerate": 0.0}),
    ({"buffer": 2}, {"max_staleness": 16}),
    ({"buffer": 2, "max_staleness": 3}, {"max_staleness": 3}),
]


def run_options(**given):
    return RunOptions(model="m", out="o", **given)


@pytest.mark.parametrize(("given", "expected"), USUAL)
def test_what_is_not_said_is_as_usual_with_the_method(given, expected):
    rules = run_options(**given).rules()
    assert {name: getattr(rules, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"scope": "all"}, Scope()),
        ({"scope": "sparse"}, Scope(kind=Kind.SPARSE, sparsity=750_000)),
        ({"scope": "sparse", "sparsity": 0.5}, Scope(kind=Kind.SPARSE, sparsity=500_000)),
        ({"scope": "layers"}, Scope(kind=Kind.LAYERS, layers_per_direction=1)),
        ({"scope": "lora"}, Scope(kind=Kind.LORA, lora_rank=8, lora_alpha=16.0, lora_targets=("all-linear",))),
        (
            {"scope": "lora", "lora_rank": 4},
            Scope(kind=Kind.LORA, lora_rank=4, lora_alpha=16.0, lora_targets=("all-linear",)),
        ),
        ({"scope": "prefix"}, Scope(kind=Kind.PREFIX, virtual_tokens=5)),
        ({"scope": "head"}, Scope(kind=Kind.HEAD)),
    ],
)
def test_what_is_not_said_is_as_usual_with_the_scope(given, expected):
    assert run_options(**given).scope_spec() == expected


def test_every_method_can_be_chosen_by_its_name_alone():
    for name in ("distinct", "shared", "fedkseed", "fedkseed-pro", "sign", "feedsign", "momentum", "fzoo", "spsa15"):
        get_method(name).check(run_options(method=name).rules())


def test_usual_directions_count_where_options_go_together():
    with pytest.raises(ConfigError, match="option directions × local-steps is 80000; expected 1 to 65536"):
        run_options(method="fzoo", local_steps=10_000)


WRITTEN = [
    ({}, {"directions": 8, "pool-size": 0, "tolerate": 0.0, "max-staleness": 0, "sparsity": 0.0, "lora-targets": ""}),
    ({"directions": 3}, {"directions": 3}),
    ({"method": "fedkseed"}, {"directions": 1, "pool-size": 1024}),
    ({"method": "momentum"}, {"momentum-window": 10, "momentum-decay": 0.9}),
    ({"method": "shared", "aggregation": "krum"}, {"tolerate": 0.25}),
    ({"buffer": 2}, {"max-staleness": 16}),
    ({"scope": "sparse"}, {"sparsity": 0.75}),
    ({"scope": "layers"}, {"layers-per-direction": 1}),
    ({"scope": "lora"}, {"lora-rank": 8, "lora-alpha": 16.0, "lora-targets": "all-linear"}),
    ({"scope": "lora", "lora_targets": "q_proj,v_proj"}, {"lora-rank": 8, "lora-targets": "q_proj,v_proj"}),
    ({"scope": "prefix"}, {"virtual-tokens": 5}),
]


def begin(path: Path, **given) -> RunOptions:
    """A run that was begun with these options, as simulator and server do it."""
    run, options = read({"model": "m", "out": str(path), **given})
    write_toml(run.config, options)
    Journal.create(run.journal, make_genesis()).close()
    return options


def read(given, *, resume=False):
    return options_of_run(RunOptions, given, None, resume=resume, places=(), changeable=("out",))


@pytest.mark.parametrize(("given", "written"), WRITTEN)
def test_a_run_writes_down_what_was_chosen_where_nothing_was_said(given, written, tmp_path):
    options = begin(tmp_path, **given)
    found = read_toml(tmp_path / "config.toml")
    assert {name: found[name] for name in written} == written
    assert options.rules() == run_options(**given).rules()
    assert options.scope_spec() == run_options(**given).scope_spec()
    _, resumed = read({"out": str(tmp_path)}, resume=True)
    assert resumed == options


@pytest.mark.parametrize("as_before", [False, True], ids=["what was chosen", "the zeros of earlier versions"])
def test_a_run_is_gone_on_with_under_the_options_that_it_began_with_however_they_are_said(as_before, tmp_path):
    given = {"method": "fedkseed", "scope": "lora"}
    options = begin(tmp_path, **given)
    if as_before:
        write_toml(tmp_path / "config.toml", RunOptions(model="m", out=str(tmp_path), **given))
        assert read_toml(tmp_path / "config.toml")["pool-size"] == 0
    same = [{}, given, {"pool_size": 0, "lora_targets": ""}, {"pool_size": 1024, "lora_rank": 8, "directions": 1}]
    for again in same:
        assert read({"out": str(tmp_path), **again}, resume=True)[1] == options
    with pytest.raises(ConfigError, match="option --pool-size is 512, but .* began with 1024; leave it out"):
        read({"out": str(tmp_path), "pool_size": 512}, resume=True)
    with pytest.raises(ConfigError, match="option --method is 'distinct', but .* began with 'fedkseed'"):
        read({"out": str(tmp_path), "method": "distinct"}, resume=True)


def test_zero_is_refused_where_a_run_began_with_something_unusual(tmp_path):
    begin(tmp_path, directions=3)
    with pytest.raises(ConfigError, match="option --directions is 8, but .* began with 3"):
        read({"out": str(tmp_path), "directions": 0}, resume=True)
