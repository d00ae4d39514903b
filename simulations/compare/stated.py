"""What a cell is run with, so that none is gone on with, or shown, as what it is not."""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from blake3 import blake3

from fedzo.config import option_name, read_toml
from fedzo.errors import ConfigError
from fedzo.new_file import write_new_file
from fedzo.options.method import MethodOptions
from fedzo.options.usual import with_usual
from fedzo.run_directory import RunDirectory

from ..opening import PLACES
from ..options import SimulateOptions
from .plan import Comparison

_ELSEWHERE = ("out", *PLACES, "threads", "backend", "state", "copy_state", "engine")
"""Options that no result depends on, and those whose files count, not their names."""
_OF_METHODS = tuple(option.name for option in fields(MethodOptions))


@dataclass(frozen=True, slots=True)
class Stated:
    """What makes one cell's result differ from another's."""

    options: dict[str, Any]
    """Of its run, and the `[subject]`."""
    sources: dict[str, str] = field(default_factory=dict)
    """Model, data and held-out data: a digest of files, else the hub's name or the rule itself. None of a subject's."""

    def difference(self, earlier: "Stated") -> str:
        """What was another, as text; empty where nothing was.

        An option that was not stated counts as its default, one that is left at 0 as what is usual, and a source that
        was not stated as the same.
        """
        defaults = asdict(SimulateOptions(model="", data="", out=""))
        then = _as_usual({name: earlier.options.get(name, defaults.get(name)) for name in self.options})
        now = _as_usual(self.options) | self.sources
        then |= {name: earlier.sources.get(name, source) for name, source in self.sources.items()}
        changed = [name for name, value in now.items() if then[name] != value]
        return ", ".join(f"{option_name(name)} was {then[name]!r}, is {now[name]!r}" for name in changed)


def _as_usual(options: dict[str, Any]) -> dict[str, Any]:
    usual = with_usual(options)
    return {name: usual[name] for name in options}


def stated(options: SimulateOptions, comparison: Comparison, *, baseline: bool) -> Stated:
    """Of a cell with these options; of those of methods a baseline has local steps at the most."""
    subject = dict(comparison.subject)
    left_out = {*_ELSEWHERE, *(set(_OF_METHODS) - {"local_steps"} if baseline else ())}
    kept = {name: value for name, value in asdict(options).items() if name not in left_out}
    return Stated(kept | {"subject": subject}, {} if subject else _sources(asdict(options)))


def begun(run: RunDirectory, now: Stated) -> Stated | None:
    """What an unfinished run of fedzo was begun with; None where there is no journal.

    Args:
        run: of the cell.
        now: stands in for what a run does not know of itself.

    Raises:
        ConfigError: its files cannot be read.
    """
    if not run.journal.exists() or not run.config.exists():
        return None
    config = {name.replace("-", "_"): value for name, value in read_toml(run.config).items()}
    kept = _kept(run)
    if not now.sources:  # a subject's clients hold what was made for them
        config["partition"] = now.options["partition"]
    try:
        known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        subject = known.get("subject", now.options["subject"])
        return Stated(config | {"subject": subject}, known.get("sources", _sources(config) if now.sources else {}))
    except (ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"{run.path}: what it was begun with cannot be read ({error}); remove the directory"
        ) from error


def begin(run: RunDirectory, now: Stated) -> None:
    """Keep what the run's own files will not tell; a run that has a journal has it already, or never had it."""
    if not run.journal.exists():
        _kept(run).unlink(missing_ok=True)
        known = {"subject": now.options["subject"], "sources": now.sources}
        write_new_file(_kept(run), json.dumps(known).encode())


def _kept(run: RunDirectory) -> Path:
    return run.path / "sources.json"


def _sources(options: dict[str, Any]) -> dict[str, str]:
    return {name: _source(options[name]) for name in PLACES}


def _source(place: str) -> str:
    path = Path(place)
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if not path.exists():
        return place
    return _digest(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files), path.is_dir())


@cache
def _digest(files: tuple[tuple[str, int, int], ...], named: bool) -> str:
    """Of the files' bytes, and their names where they are of one directory; sizes and times make it anew."""
    hashed = blake3()
    for name, size, _ in files:
        hashed.update(f"{Path(name).name if named else ''}\0{size}\0".encode())
        hashed.update_mmap(name)
    return f"blake3:{hashed.hexdigest()}"
