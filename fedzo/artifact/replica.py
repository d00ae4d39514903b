"""From a run to its artifact, and from an artifact and its base back to the replica."""

import torch

from fedzo.artifact.contents import Artifact
from fedzo.base.checkpoint import head_of, load_base
from fedzo.errors import BaseMismatchError, ConfigError, ReplicaError
from fedzo.journal import Entry, JournalContents, read_journal
from fedzo.journal.records import add_entries
from fedzo.journal.view import state_digests
from fedzo.noise import NoiseBackend
from fedzo.results.rebuild import check_history, rebuild
from fedzo.run_directory import RunDirectory
from fedzo.scopes.base import scoped
from fedzo.state.replica import Replica


def make_artifact(run: RunDirectory, base: str | None = None) -> Artifact:
    """The artifact of a run at its journal's end, finished or not.

    Args:
        run: the run.
        base: where its base lies; needed only where the journal does not state the digest of its end.

    Raises:
        ConfigError: the journal holds no record yet.
        JournalError, RangeGuardError, ReplicaError, BaseMismatchError: by name.
    """
    contents = read_journal(run.require().journal)
    if not contents.records:
        raise ConfigError(f"{run.path}: its journal holds a genesis and no record: nothing was tuned; resume the run")
    digest = state_digests(contents.records).get(contents.position)
    if digest is None:
        replica, _, contents = rebuild(run, base)
        digest = replica.digest()
    else:
        check_history(contents)
    return _artifact_at_end(contents, digest)


def _artifact_at_end(contents: JournalContents, state_digest: bytes) -> Artifact:
    genesis = contents.genesis
    totals: dict[int, int] = {}
    for record in contents.records:
        add_entries(totals, record.entries)
    return Artifact(
        base_digest=genesis.base_digest,
        manifest_digest=genesis.manifest.digest(),
        distribution=genesis.distribution,
        scope=genesis.scope,
        run_seed=genesis.run_seed,
        task=genesis.task,
        position=contents.position,
        record_hash=contents.hashes[-1],
        state_digest=state_digest,
        entries=tuple(Entry(seed, totals[seed]) for seed in sorted(totals)),
    )


def rebuild_artifact(artifact: Artifact, base: str, *, backend: NoiseBackend | None = None) -> Replica:
    """The replica that an artifact stands for.

    Args:
        artifact: as read.
        base: checkpoint directory or hub name of its base.
        backend: who makes the noise.

    Raises:
        BaseMismatchError: it was made from another base.
        ReplicaError: the result does not have the digest that the artifact states.
    """
    loaded = load_base(base, head_of(artifact.task, artifact.run_seed))
    loaded = scoped(loaded, artifact.scope, artifact.run_seed)
    if loaded.digest != artifact.base_digest:
        raise BaseMismatchError(
            f"the artifact was made from base {artifact.base_digest.hex()[:16]}…, {base!r} is "
            f"{loaded.digest.hex()[:16]}…; give the base that its run started from"
        )
    threads = torch.get_num_threads()
    replica = Replica.from_base(loaded, artifact.distribution, scope=artifact.scope, backend=backend, threads=threads)
    if replica.manifest.digest() != artifact.manifest_digest:
        raise BaseMismatchError(
            f"{base!r} has the artifact's base digest but its tensors differ from the artifact's manifest; "
            "use the transformers version of constraints.txt"
        )
    replica.add(artifact.entries)
    replica.position, replica.record_hash = artifact.position, artifact.record_hash
    if replica.digest() != artifact.state_digest:
        raise ReplicaError(
            f"the rebuilt replica has state digest {replica.digest().hex()[:16]}…, the artifact states "
            f"{artifact.state_digest.hex()[:16]}…; make the artifact again from the run"
        )
    return replica
