"""How a run's options are read, where the run is new and where it is resumed."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedzo.config import make_options, option_name, parse_options, read_toml, write_toml
from fedzo.errors import ConfigError
from fedzo.journal import read_journal
from fedzo.options.run import RunOptions
from fedzo.options.usual import with_usual
from fedzo.run_directory import RunDirectory
from fedzo.tasks.definition import SUFFIX, definition_of

Options = TypeVar("Options", bound=RunOptions)


def options_of_run(
    kind: type[Options],
    given: Mapping[str, Any],
    config: Path | None,
    *,
    resume: bool,
    places: Collection[str],
    changeable: Collection[str],
) -> tuple[RunDirectory, Options]:
    """A run's directory and options, from the command line, a TOML file and, where resumed, the run itself.

    Options that are left at 0 for what is usual come back as that, and are compared as that with what a run began with.

    Args:
        kind: of options.
        given: on the command line, parsed.
        config: a TOML file, which the command line overrides.
        resume: the run is there and goes on with its own options, and with the task that its journal states.
        places: options that may name a file or directory, and are made absolute.
        changeable: options that a resumed run may be given anew.

    Raises:
        ConfigError: an option is wrong, or the directory does not hold what it should.
    """
    values = parse_options(kind, read_toml(config), str(config)) if config else {}
    values = _absolute(values | dict(given), places)
    if str(values.get("task", "")).endswith(SUFFIX):
        values = _absolute(values, ("task",))
    if "out" not in values:
        raise ConfigError("option --out must be given (on the command line or in --config)")
    run = RunDirectory(Path(values["out"]))
    if not resume:
        options = make_options(kind, with_usual(values))
        run.require_new()
        return run, options
    stored = with_usual(parse_options(kind, read_toml(run.require().config), str(run.config)))
    now = with_usual(stored | values)
    for name in values:
        if name not in changeable and stored.get(name, now[name]) != now[name]:
            raise ConfigError(
                f"option --{option_name(name)} is {now[name]!r}, but {run.path} began with {stored[name]!r}; leave it "
                "out, or start another run"
            )
    if str(stored.get("task", "")).endswith(SUFFIX):  # the user's file may have changed, or be gone
        write_toml(run.task, definition_of(read_journal(run.journal).genesis.task))
        now["task"] = str(run.task)
    return run, make_options(kind, now)


def _absolute(values: dict[str, Any], places: Collection[str]) -> dict[str, Any]:
    """Paths that exist, made absolute; hub names and rules are left as they are."""
    given = {name: Path(values[name]) for name in places if values.get(name)}
    return values | {name: str(path.absolute()) for name, path in given.items() if path.exists()}
