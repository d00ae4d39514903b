"""From base and journal to a replica, to a model, or back to an earlier state."""

from pathlib import Path
from typing import Any

import torch

from fedzo.base.checkpoint import Base, head_of, load_base, unique_parameters
from fedzo.config import read_toml
from fedzo.coordinator import History
from fedzo.errors import ConfigError, StateFileError
from fedzo.journal import Genesis, Journal, JournalContents, Record, Rollback, read_journal
from fedzo.noise import NoiseBackend
from fedzo.run_directory import RunDirectory
from fedzo.scopes.base import prepare, scoped
from fedzo.state.replica import Replica
from fedzo.state.statefile import load_state
from fedzo.tiers.choice import CPU, scratch_place


def rebuild(
    run: RunDirectory,
    base: str | Base | None = None,
    *,
    backend: NoiseBackend | None = None,
    state: str = "host",
    device: torch.device = CPU,
) -> tuple[Replica, Base, JournalContents]:
    """Replay a run from its base, checking every digest, roll-back and range guard on the way.

    A client's excerpt is replayed from its totals on, whose digest the record after them states.

    Args:
        run: the run.
        base: checkpoint directory or hub name; where not given, the one that the run's config names; or what such a
            checkpoint would hold, of a run on a model in memory. It is left without weights.
        backend: who makes the noise.
        state: where the replica lives, one of `fedzo.tiers.TIERS`; never in the run's own state file.
        device: where it is used.

    Returns:
        The replica at the journal's end, its base, whose model has no weights any more, and the journal.

    Raises:
        BaseMismatchError, JournalError, ReplicaError, RangeGuardError: by name.
    """
    contents = read_journal(run.require().journal)
    source = base or (str(read_toml(run.config).get("model", "")) if run.config.exists() else "")
    if not source:
        raise ConfigError(
            f"{run.path}: its config.toml names no model, or it has none, as a client's directory; give the base with "
            "--base"
        )
    check_history(contents)
    genesis, place = contents.genesis, scratch_place(state, run.path, device)
    loaded = _start(source, genesis)
    threads = torch.get_num_threads()
    replica = Replica.from_base(
        loaded, genesis.distribution, scope=genesis.scope, backend=backend, threads=threads, place=place
    )
    replica.start_at(contents.genesis, loaded.digest, contents.hashes[0])
    if contents.start is not None:
        replica.begin(contents.start)
    replica.replay(contents.records[contents.first :], contents.hashes[contents.first + 1 :])
    return replica, loaded, contents


def restore(replica: Replica, contents: JournalContents, state: Path) -> str:
    """Bring a replica to the journal's end: from its state file where that is clean, else by replay. Says which.

    Args:
        replica: at the journal's base.
        contents: the journal.
        state: the state file.

    Raises:
        ReplicaError: the replay does not have the digests that the journal states.
    """
    try:
        load_state(state, replica, contents.hashes)
        how = f"the state file at position {replica.position}"
    except StateFileError as error:
        how = f"the base and the journal ({error})" if state.exists() else "the base and the journal"
        if replica.deferred:
            replica.fill()
    replica.resume(contents.records, contents.hashes, contents.start)
    return how


def replay_from_base(replica: Replica, source: str, contents: JournalContents) -> int:
    """Forget a replica's state and rebuild it from base and journal; the number of records replayed.

    Raises:
        ReplicaError: the replay does not have the digests that the journal states.
    """
    replica.take(_start(source, contents.genesis))
    replica.fill()
    replica.record_hash = contents.hashes[0]
    replica.resume(contents.records, contents.hashes, contents.start)
    return contents.position - contents.first


def _start(source: str | Base, genesis: Genesis) -> Base:
    """A run's base, with what its scope trains."""
    base = source if isinstance(source, Base) else load_base(source, head_of(genesis.task, genesis.run_seed))
    return scoped(base, genesis.scope, genesis.run_seed)


def check_history(contents: JournalContents) -> History:
    """Fold a journal, checking what scalars alone can show: the range guard and that roll-backs undo exactly.

    Raises:
        RangeGuardError: a record should not have been written.
        ReplicaError: a roll-back does not return to the state that it names.
    """
    history = History(contents)
    history.catch_up()
    return history


def plain_model(replica: Replica, base: Base) -> Any:
    """A plain transformers model with a replica's weights, float32, in eval mode; with an adapter, a `PeftModel`.

    Args:
        replica: the weights.
        base: its base; the model is that of it, loaded anew where the scope left some of it frozen.
    """
    if replica.scope.freezes:
        model = load_base(base.source, base.head).model
        model, trained = prepare(model, replica.scope, run_seed=0)  # whose first weights are overwritten
    else:
        model, trained = base.model, unique_parameters(base.model)
    for index, parameter in enumerate(trained.values()):
        parameter.data = replica.weights(index)
    return model.float()


def roll_back(run: RunDirectory, position: int) -> int:
    """Append the record that returns a run to the state after `position` records; the new record's position.

    Raises:
        ConfigError: there is no such position.
    """
    with Journal.open(run.journal) as journal:
        history = check_history(journal.contents)
        if not 0 <= position <= journal.position:
            raise ConfigError(f"--to {position}: the journal has positions 0 to {journal.position}")
        body = Rollback(position, history.undoing(position), learning_rate_scale=1.0, reason="asked for")
        record = Record(history.round, body)
        journal.append(record)
        run.mend_metrics(journal.contents.records)
        return journal.position
