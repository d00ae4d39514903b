"""A client's own steps within a round leave its replica as it was, and take no second copy of the weights."""

import os
from dataclasses import replace

import pytest
import torch
from helpers import make_genesis, run_python
from transformers import LlamaConfig, LlamaForCausalLM

from fedzo.base.checkpoint import load_base
from fedzo.coordinator import History, Plan, Purpose
from fedzo.errors import EstimationError
from fedzo.estimate import Estimator
from fedzo.journal import Entry, JournalContents
from fedzo.methods import MethodRound, get_method, method_reports
from fedzo.noise import Distribution
from fedzo.state.local_steps import LocalSteps
from fedzo.state.replica import Replica
from fedzo.worker import Worker


def worker_of(model: str, **rules) -> tuple[Worker, Replica]:
    base = load_base(model)
    replica = Replica.from_base(base, Distribution.RADEMACHER, threads=2)
    genesis = replace(make_genesis(manifest=replica.manifest, run_seed=1, **rules), base_digest=base.digest)
    replica.start_at(genesis, base.digest, b"genesis")
    history, estimator = History(JournalContents(genesis, [b"genesis"])), Estimator(base.model, replica)
    return Worker(history, replica, estimator, lambda model, batch: (0.0, None)), replica


class Tokens:
    """Client data: one example a step."""

    def training_batch(self, step, batch_size):
        ids = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(step))
        return {"input_ids": ids, "labels": ids}, 1

    def held_out_batches(self):
        return []


def training_plan(round_number: int = 1) -> Plan:
    return Plan(
        purpose=Purpose.TRAIN,
        round=round_number,
        position=0,
        record_hash=b"genesis",
        cohort=(0, 1),
        learning_rate=1e-3,
        attest=True,
        deadline_s=60.0,
    )


def test_two_hundred_local_steps_leave_the_state_before_them_plus_the_record(tiny_model):
    """The client steps in its own integers and takes the steps back: no trace but the record's entries."""
    rules = {"method": "fedkseed", "pool_size": 32, "local_steps": 200, "batch_size": 1}
    worker, replica = worker_of(tiny_model, **rules)
    before, state = replica.digest(), replica.state.clone()
    reports = [worker.carry_out(training_plan(), client, Tokens()) for client in (0, 1)]
    assert torch.equal(replica.state, state)
    assert replica.totals == {}
    assert [report.state_digest for report in reports] == [before, before]
    assert reports[0].projected_gradients != reports[1].projected_gradients
    entries = get_method("fedkseed").aggregate(MethodRound(worker._genesis, 1), 1e-3, method_reports(reports))
    assert len(entries) == 32
    replica.add(entries)
    _, fresh = worker_of(tiny_model, **rules)
    fresh.add(entries)
    assert replica.digest() == fresh.digest() != before


def test_steps_in_the_integers_give_the_losses_of_steps_in_an_overlay(tiny_model):
    worker, replica = worker_of(tiny_model)
    estimator = worker._estimator
    batch, _ = Tokens().training_batch(0, 1)
    entries = [Entry(seed, (-1) ** seed * 10**8 * seed) for seed in range(1, 12)]
    over = estimator.losses(batch, [(99, (2**30, -(2**30)))], dict(entries))
    with LocalSteps(replica) as steps:
        assert steps.take(entries)
        assert steps.overlay() == {}
        assert estimator.losses(batch, [(99, (2**30, -(2**30)))], steps.overlay()) == over
    assert replica.totals == {}


def test_an_error_in_a_local_step_leaves_the_replica_as_it_was(tiny_model):
    class Broken(Tokens):
        def training_batch(self, step, batch_size):
            batch, count = super().training_batch(step, batch_size)
            return ({"input_ids": batch["input_ids"]}, count) if step == 20 else (batch, count)

    worker, replica = worker_of(tiny_model, local_steps=30)
    before = replica.digest()
    with pytest.raises(EstimationError, match="labels"):
        worker.carry_out(training_plan(), 0, Broken())
    assert replica.digest() == before


_PEAK = """
import re, sys
from pathlib import Path
import test_local_steps

def kept(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

rules = {"method": "fedkseed", "pool_size": 8, "local_steps": 12, "batch_size": 1}
for model in sys.argv[1:]:
    worker, replica = test_local_steps.worker_of(model, **rules)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident
    resident = kept("VmRSS")
    report = worker.carry_out(test_local_steps.training_plan(), 0, test_local_steps.Tokens())
    assert len(report.projected_gradients) == 12
print(kept("VmHWM") - resident, replica.state.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_local_steps_take_no_second_copy_of_the_weights(tiny_model, tmp_path):
    """Peak resident memory of 12 steps, most of them in the integers, over what was resident before them.

    The kernels are used before, on a tiny model: compiling them takes more memory than these weights.
    """
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(tmp_path)
    growth, state = map(int, run_python(_PEAK, tiny_model, tmp_path).split())
    assert state > 75e6
    assert growth < state / 2
