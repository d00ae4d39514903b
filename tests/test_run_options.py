"""Options of a run that are left at 0 become what is usual with the method, the scope or the aggregation."""

import pytest

from fedzo.errors import ConfigError
from fedzo.methods import get_method
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
