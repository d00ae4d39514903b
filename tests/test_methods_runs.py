"""Every method from end to end: a simulation, its replay to the same digest, a stop and a resume, real processes."""

import json

import pytest
import torch
from commands import fedzo as command
from commands import simulate_options
from transformers import LlamaForCausalLM

import fedzo
from fedzo.base.checkpoint import load_base
from fedzo.journal import read_journal
from fedzo.methods import METHODS
from fedzo.noise import Distribution, get_backend
from fedzo.results.rebuild import check_history
from fedzo.state.replica import Replica

NEEDED = {
    "fedkseed": {"pool_size": 16},
    "fedkseed-pro": {"pool_size": 16},
    "momentum": {"momentum_window": 3, "momentum_decay": 0.9},
    "fzoo": {"lr": 1e-6},
    "spsa15": {"curvature_power": 0.1},
}
IDS = torch.randint(64, (24, 10), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in IDS]


def simulate(base: str, method: str, **given):
    model = LlamaForCausalLM.from_pretrained(base)
    options = {"rounds": 6, "lr": 1e-3, "batch_size": 4, "directions": 2, "local_steps": 2, "threads": 1}
    options |= {"method": method, "attest_every": 2} | NEEDED.get(method, {})
    return fedzo.simulate(model, [DATA[:12], DATA[12:]], **(options | given))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_replayed_to_its_digest_and_resumed_to_its_journal(method, tiny_model, tmp_path):
    def stop(position, record, progress):
        if position == 4:
            raise KeyboardInterrupt

    alone = simulate(tiny_model, method)
    assert len(alone.losses) == 6
    base = load_base(tiny_model)
    replica = Replica.from_base(base, Distribution.RADEMACHER, backend=get_backend("torch"))
    untouched = replica.digest()
    replica.replay(alone.journal.records, alone.journal.hashes[1:])
    assert replica.digest() == alone.state_digest == alone.journal.records[-1].state_digest != untouched
    check_history(alone.journal)
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny_model, method, out=tmp_path / "run", callbacks=[stop])
    resumed = simulate(tiny_model, method, out=tmp_path / "run", resume=True)
    assert resumed.journal.hashes == alone.journal.hashes


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "fedkseed-pro", "pool-size": 8, "local-steps": 2},
        {"method": "momentum", "momentum-window": 3, "momentum-decay": 0.9},
        {"method": "fzoo", "directions": 3, "lr": 5e-6},
    ],
    ids=lambda options: options["method"],
)
def test_processes_on_the_network_write_the_journal_of_one_process(options, demo, tmp_path):
    inline, network = tmp_path / "inline", tmp_path / "network"
    given = {"clients": 2, "rounds": 6, "schedule": "cosine", "warmup": 2} | options
    command("simulate", *simulate_options(demo, inline, **given))
    command("simulate", *simulate_options(demo, network, engine="processes", **given))
    journal = (inline / "journal").read_bytes()
    assert (network / "journal").read_bytes() == journal
    assert (network / "clients" / "client-1" / "journal").read_bytes() == journal
    digest = read_journal(inline / "journal").records[-1].state_digest.hex()
    assert digest in command("replay", network).stdout
    if options["method"] != "fedkseed-pro":  # two draws of one seed are one evaluation, which a follower cannot see
        forwards = [
            json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["forwards"] for run in (inline, network)
        ]
        assert forwards[0] == forwards[1]
