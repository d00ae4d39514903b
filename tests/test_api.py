"""`fedzo.simulate`: the model that was given is tuned, kept exact, and given back whatever happens."""

import copy

import pytest
import torch
from compared import network, points, squared_error
from torch import nn
from transformers import LlamaForCausalLM

import fedzo
from fedzo.base.checkpoint import Base, base_digest
from fedzo.errors import CheckpointError, ConfigError, DataError
from fedzo.journal import Commit
from fedzo.noise import Distribution
from fedzo.state.replica import Replica

OPTIONS = {
    "method": "distinct",
    "rounds": 30,
    "lr": 0.05,
    "batch_size": 8,
    "eval_every": 10,
    "directions": 4,
    "threads": 1,
}


DATASETS = [points(40, seed) for seed in range(3)]
HELD_OUT = [points(20, seed) for seed in range(3, 6)]


def run(model: nn.Module, **given):
    return fedzo.simulate(model, DATASETS, loss=squared_error, evaluation=HELD_OUT, **(OPTIONS | given))


def test_a_module_of_ones_own_is_tuned_with_a_loss_of_ones_own():
    model, untouched = network(), network()
    parameter = model[0].weight
    seen = []
    done = run(model, callbacks=[lambda position, record, progress: seen.append((position, record))])
    assert done.model is model
    assert model[0].weight is parameter
    assert isinstance(parameter, nn.Parameter)
    assert parameter.requires_grad
    first, *_, last = done.held_out_losses
    assert (first[0], last[0]) == (0, 30)
    assert last[1] < first[1] / 2
    together = {
        "x": torch.stack([e["x"] for d in HELD_OUT for e in d]),
        "y": torch.stack([e["y"] for d in HELD_OUT for e in d]),
    }
    with torch.no_grad():
        assert float(squared_error(model, together)) == pytest.approx(last[1], rel=1e-5)
        assert float(squared_error(untouched, together)) == pytest.approx(first[1], rel=1e-5)
    assert len(done.losses) == 30
    assert [record for _, record in seen] == done.journal.records
    assert [position for position, _ in seen] == list(range(1, len(seen) + 1))


def test_the_result_is_the_base_and_the_journal_to_the_bit():
    model = network()
    base = copy.deepcopy(model)
    done = run(model, method="shared", local_steps=3, rounds=5)
    replica = Replica.from_base(Base("again", base, base_digest(base)), Distribution.RADEMACHER)
    for record in done.journal.records:
        replica.add(record.entries)
    assert replica.digest() == done.state_digest == done.journal.records[-1].state_digest
    names = [spec.name for spec in replica.manifest]
    assert all(torch.equal(model.get_parameter(name), replica.weights(k)) for k, name in enumerate(names))


def test_a_model_is_trained_on_after_a_simulation():
    """What is given back is a plain module: gradients, state dict, another simulation."""
    model = network()
    run(model, rounds=1)
    squared_error(model, {"x": torch.ones(2, 3), "y": torch.ones(2)}).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert [*model.state_dict()] == [*network().state_dict()]
    assert not model[0]._forward_pre_hooks
    assert run(model, rounds=1).state_digest


def test_a_hugging_face_model_with_its_own_loss(tiny_model):
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    ids = torch.randint(64, (24, 10), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    done = fedzo.simulate(model, [data[:12], data[12:]], rounds=3, batch_size=4)
    assert len(done.losses) == 3
    assert done.held_out_losses == []
    assert model.generate(ids[:1], max_new_tokens=2, pad_token_id=0).shape == (1, 12)


def test_stopped_by_a_callback_and_resumed_is_the_run_left_alone(tmp_path):
    def stop(position, record, progress):
        if position == 20:
            raise KeyboardInterrupt

    alone = run(network())
    model = network()
    with pytest.raises(KeyboardInterrupt):
        run(model, callbacks=[stop], out=tmp_path / "run")
    assert isinstance(model[0].weight, nn.Parameter)
    assert not torch.equal(model[0].weight, network()[0].weight), "it is given back at the state it had reached"
    done = run(network(), out=tmp_path / "run", resume=True)
    assert done.journal.hashes == alone.journal.hashes
    assert done.state_digest == alone.state_digest
    with pytest.raises(ConfigError, match="--lr is 0.5, but .* began with 0.05"):
        run(network(), out=tmp_path / "run", resume=True, lr=0.5)
    with pytest.raises(ConfigError, match="holds a run already"):
        run(network(), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"learning_rate": 1.0}, ConfigError, "'learning_rate' is unknown; choose one of: model, .*, lr, "),
        ({"rounds": "many"}, ConfigError, "'rounds' is 'many'; expected int"),
        ({"max_length": 12}, ConfigError, "no use for option 'max-length'"),
        ({"clients": 3}, ConfigError, "no use for option 'clients'"),
        ({"objective": "accuracy", "guard": 0.0}, ConfigError, "no use for option 'objective'"),
        ({"resume": True}, ConfigError, "give out"),
        ({"evaluation": HELD_OUT[:2]}, ConfigError, "2 evaluation datasets for 3 clients"),
        ({"loss": lambda model, batch: model(batch["z"])}, DataError, "gives no loss.*KeyError.*`loss`"),
        ({"datasets": [DATASETS[0], []]}, DataError, "client 1 has no training examples"),
    ],
)
def test_what_cannot_run_is_refused_and_the_model_is_as_it_was(given, error, message):
    model = network()
    arguments = {"datasets": DATASETS, "loss": squared_error, "evaluation": HELD_OUT} | OPTIONS | given
    if "datasets" in given:
        arguments["evaluation"] = None
    with pytest.raises(error, match=message):
        fedzo.simulate(model, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))


def test_a_weight_that_is_not_finite_is_named_and_the_model_is_as_it_was():
    model = network()
    with torch.no_grad():
        model[2].weight[0, 1] = float("nan")
    with pytest.raises(CheckpointError, match=r"'2.weight' holds nan at flat index 1"):
        run(model)
    assert torch.equal(model[0].weight, network()[0].weight)


def test_commits_of_the_journal_are_what_the_options_ask_for():
    done = run(network(), method="fedkseed", pool_size=3, local_steps=2, rounds=2)
    commits = [record.body for record in done.journal.records if isinstance(record.body, Commit)]
    assert len({entry.seed for commit in commits for entry in commit.entries}) == 3
