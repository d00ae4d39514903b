"""Simulated asynchronous runs: the same twice, moving as FedBuff says, and replayed from the journal in any order."""

import random

import numpy as np
import pytest
import torch
from asynchrony import assert_journal
from fedzo_server.app_options import AppOptions
from fedzo_simulations.options import SimulateOptions
from helpers import BACKENDS_HERE, backend_for_cpu
from test_methods_quadratic import DATA, DIRECTIONS, RATE, START, A, run

from fedzo.errors import ConfigError
from fedzo.journal import Commit, End, Evaluation
from fedzo.journal.codec import encode_record
from fedzo.noise.directions import symbols
from fedzo.noise.draws import derived_seeds
from fedzo.state.replica import Replica

FRAME_BYTES = 40
"""Of a record in the journal, around its payload."""
BUFFERED = {"buffer": 3, "max_staleness": 8, "delay": 20.0, "rounds": 30, "attest_every": 10}


def commits_of(done):
    return [record.body for record in done.journal.records if isinstance(record.body, Commit)]


@pytest.fixture(scope="module")
def buffered():
    return run("distinct", **BUFFERED)


def test_a_run_is_the_same_twice_and_shows_every_staleness(buffered):
    assert run("distinct", **BUFFERED).journal.hashes == buffered.journal.hashes
    assert run("distinct", **(BUFFERED | {"delay": 5.0})).journal.hashes != buffered.journal.hashes
    assert_journal(buffered.journal)
    found = {report.staleness for commit in commits_of(buffered) for report in commit.reports}
    assert {0, 1, 2} <= found
    counts = [sum(r.client == c for commit in commits_of(buffered) for r in commit.reports) for c in range(3)]
    assert max(counts) > 1.5 * min(counts) > 0, "clients are not equally fast"
    assert len(commits_of(buffered)) == 30


def test_the_bytes_down_are_those_of_every_commit_for_every_client():
    told = []
    done = run("distinct", callbacks=[lambda position, record, progress: told.append(progress.bytes_down)], **BUFFERED)
    frames = [FRAME_BYTES + len(encode_record(record)) for record in done.journal.records if record.entries]
    assert told[-1] == 3 * sum(frames) > 0


def test_a_quadratic_moves_as_fedbuff_says(buffered):
    """x after k commits is x₀ − η Σ (n_r/n)(1+τ_r)^(−½) (1/P) Σ_p g z; g = zᵀ(A x − b) at the x of τ commits before."""
    genesis, path = buffered.journal.genesis, [START.copy()]
    for commit in commits_of(buffered):
        move = np.zeros_like(START)
        for report in commit.reports:
            x = path[len(path) - 1 - report.staleness]
            seeds = derived_seeds(genesis.run_seed, report.ticket, report.client, DIRECTIONS)
            z = np.array([genesis.distribution.values[symbols(genesis.distribution, s, 0, 0, len(x))] for s in seeds])
            slopes = z @ (A @ x - DATA[report.client])
            assert report.projected_gradients == pytest.approx(slopes, rel=1e-3, abs=1e-3)
            share = report.examples / sum(r.examples for r in commit.reports)
            move += share * (1 + report.staleness) ** -0.5 * (slopes @ z) / DIRECTIONS
        path.append(path[-1] - RATE * move)
    assert buffered.model.x.detach().numpy() == pytest.approx(path[-1], abs=1e-4)


def test_it_learns_and_attests_its_states():
    done = run(
        "distinct", evaluation=[[torch.tensor(b)] for b in DATA], **(BUFFERED | {"rounds": 200, "eval_every": 50})
    )
    records = done.journal.records
    evaluations = [record for record in records if isinstance(record.body, Evaluation)]
    assert all(record.state_digest is not None and record.maxima is not None for record in evaluations)
    assert isinstance(records[-1].body, End)
    assert records[-1].state_digest == done.state_digest
    losses = [loss for _, loss in done.held_out_losses]
    best = -np.mean(DATA, axis=0) @ np.linalg.lstsq(A, np.mean(DATA, axis=0), rcond=None)[0] / 2
    assert losses[-1] - best < (losses[0] - best) / 4


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_records_applied_in_any_order_and_by_any_backend_give_the_digest(buffered, backend):
    records, manifest = list(buffered.journal.records), buffered.journal.genesis.manifest
    random.Random(5).shuffle(records)
    (spec,) = manifest
    state = torch.round(torch.tensor(START) * 2.0**spec.exponent).to(torch.int32)
    replica = Replica(
        manifest, state, buffered.journal.genesis.distribution, backend=backend_for_cpu(backend), threads=2
    )
    for record in records:
        replica.add(record.entries)
    assert replica.digest() == buffered.state_digest


@pytest.mark.parametrize("name", ["fedkseed", "sign", "fzoo", "spsa15"])
def test_other_methods_run_without_rounds(name):
    done = run(name, **(BUFFERED | {"rounds": 8, "attest_every": 4, "lr": 2.0**-10}))
    assert len(commits_of(done)) == 8
    assert done.journal.records[-1].state_digest == done.state_digest


def test_a_run_that_was_stopped_goes_on_where_its_journal_ends(tmp_path):
    def stop(position, record, progress):
        if position == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("distinct", out=tmp_path / "run", callbacks=[stop], **BUFFERED)
    done = run("distinct", out=tmp_path / "run", resume=True, **BUFFERED)
    assert_journal(done.journal)
    assert len(commits_of(done)) == 30
    assert done.journal.records[-1].state_digest == done.state_digest


def test_options_that_do_not_go_together_are_refused_by_name():
    for options, said in (
        ({"max_staleness": 2}, "option max-staleness is 2, but a run of rounds has no use for it"),
        ({"buffer": 2, "max_staleness": 2, "cohort": 2}, "option cohort is 2, but an asynchronous run"),
        ({"buffer": 2, "max_staleness": 2, "drop": 0.5}, "option drop is 0.5, but in an asynchronous run"),
        ({"buffer": 2, "max_staleness": 2, "method": "shared"}, "method 'shared' needs rounds"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(options.pop("method", "distinct"), **options)
    given = {"model": "m", "out": "o", "buffer": 2, "max_staleness": 2}
    with pytest.raises(ConfigError, match="option buffer is 2, but engine 'flower' simulates rounds"):
        SimulateOptions(data="d", engine="flower", **given)
    with pytest.raises(ConfigError, match="option buffer is 2, but transport 'messages' carries rounds"):
        AppOptions(transport="messages", name="n", **given)
