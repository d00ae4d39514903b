"""The result of a run as a plain transformers model, in Python: `fedzo.tuned_model`, `fedzo.apply_artifact`."""

from pathlib import Path
from typing import Any

from fedzo.artifact import read_artifact
from fedzo.artifact.replica import rebuild_artifact
from fedzo.base.checkpoint import head_of, load_base
from fedzo.results.rebuild import plain_model, rebuild
from fedzo.run_directory import RunDirectory


def tuned_model(run: str | Path, base: str | None = None) -> Any:
    """The model at the end of a run's journal, float32 and in eval mode.

    Args:
        run: run directory.
        base: checkpoint directory or hub name; where not given, the one that the run's config names.

    Raises:
        FedzoError: no run there, another base, or a digest that does not agree; by name.
    """
    replica, loaded, _ = rebuild(RunDirectory(Path(run)), base)
    return plain_model(replica, loaded)


def apply_artifact(file: str | Path, base: str) -> Any:
    """The model that an artifact stands for, float32 and in eval mode.

    Args:
        file: as `fedzo artifact` writes it.
        base: checkpoint directory or hub name of its base.

    Raises:
        FedzoError: not an artifact, damaged, another base, or a digest that does not agree; by name.
    """
    artifact = read_artifact(Path(file))
    return plain_model(rebuild_artifact(artifact, base), load_base(base, head_of(artifact.task, artifact.run_seed)))
