"""What is compared: rows, a budget that is the same for all of them, learning rates to try, seeds.

A TOML file says it:

    title = "…"
    forwards = 2000              # in all; or forwards-per-client, or bytes
    seeds = [0, 1, 2]
    rates = [1e-4, 3e-4, 1e-3]   # of a row that names none
    trial-share = 0.5            # of the budget, for each learning rate tried; 1 tries at full length
    evaluations = 5              # over a run, beside the one before it
    reach = "MeZO"               # whose last loss the other rows are timed to
    note = "…"                   # printed under the table

    [base]                       # options of `fedzo simulate`, of every row
    model = "$FEDZO_SHARED/data/weights/stories260K"

    [subject]                    # instead of a checkpoint and rows: a function that makes module and datasets
    make = "package.module:function"

    [[row]]
    name = "MeZO"
    method = "mezo"              # a method or a baseline
    rates = [1e-4]               # and any option of `fedzo simulate`, over those of the base
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedzo.config import parse_options
from fedzo.errors import ConfigError
from fedzo.methods import get_method
from fedzo.options.step import AUTO

from ..baselines import BASELINES, get_baseline
from ..options import SimulateOptions

BUDGETS = ("forwards", "forwards_per_client", "bytes")
SET_HERE = ("out", "method", "lr", "rounds", "seed", "eval_every")
"""Options of a run that a comparison sets itself."""
_PLACES = ("model", "data", "eval_data")
_KEYS = {*BUDGETS, "title", "seeds", "rates", "trial_share", "evaluations", "reach", "note", "base", "subject", "row"}

Rate = float | str
"""A learning rate, or a word that the option `lr` knows."""


def rate_text(rate: Rate) -> str:
    """As in the table, and in the name of a cell's directory."""
    return rate if isinstance(rate, str) else f"{rate:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    method: str
    rates: tuple[Rate, ...]
    """Tried, the best is used; a single one is not tuned."""
    options: Mapping[str, Any]
    """Of a run, but for what a comparison sets."""

    @property
    def is_baseline(self) -> bool:
        """It trains a plain model, without a journal."""
        return self.method in BASELINES

    @property
    def slug(self) -> str:
        """Its name as a directory's."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows, and what is the same for them."""

    rows: tuple[Row, ...]
    budget: tuple[str, int]
    """One of BUDGETS, and how much of it."""
    seeds: tuple[int, ...] = (0,)
    trial_share: float = 1.0
    evaluations: int = 5
    title: str = ""
    reach: str = ""
    note: str = ""
    subject: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the row or the key."""
        if not self.rows:
            raise ConfigError("a comparison needs rows: give methods, or [[row]] tables in --config")
        slugs = [row.slug for row in self.rows]
        for row in self.rows:
            if slugs.count(row.slug) > 1:
                raise ConfigError(f"two rows would be kept in {row.slug!r}; give row {row.name!r} another name")
            rates = [rate_text(rate) for rate in row.rates]
            if len(set(rates)) < len(rates):
                raise ConfigError(
                    f"row {row.name!r}: rates are {', '.join(rates)} to six digits, and one trial each would be kept "
                    "under the same name; give each rate once"
                )
        trials = {len(row.rates): row.name for row in self.rows if len(row.rates) > 1}
        if len(trials) > 1:
            said = ", ".join(f"{name!r} {count}" for count, name in trials.items())
            raise ConfigError(f"rows are tuned with the same number of trials, but there are: {said} learning rates")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {list(self.seeds)}; give one or more, each once")
        if self.reach and self.reach not in [row.name for row in self.rows]:
            raise ConfigError(f"reach is {self.reach!r}, which is no row; rows are {[row.name for row in self.rows]}")
        if not 0 < self.trial_share <= 1:
            raise ConfigError(f"trial-share is {self.trial_share}; expected more than 0, at most 1")
        if self.evaluations < 1 or self.budget[1] < 1:
            raise ConfigError(f"evaluations is {self.evaluations}, {self.budget[0]} {self.budget[1]}; give 1 or more")


def read_comparison(values: Mapping[str, Any], source: str, base: Mapping[str, Any]) -> Comparison:
    """A comparison from untyped values.

    Args:
        values: of a TOML file, or of the command line.
        source: for messages.
        base: options of `fedzo simulate` over those that the values state for all rows.

    Raises:
        ConfigError: by the name of the key, the row and the option.
    """
    given = {key.replace("-", "_"): value for key, value in values.items()}
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"{source}: key {key!r} is unknown; known are {', '.join(sorted(_KEYS))}")
    budgets = [name for name in BUDGETS if given.get(name)]
    if len(budgets) != 1:
        raise ConfigError(f"{source}: give one budget of {', '.join(BUDGETS)}, found {', '.join(budgets) or 'none'}")
    every = _options(given.get("base", {}), f"{source}, [base]") | dict(base)
    rates = given.get("rates", [])
    rows = tuple(_row(table, every, rates, source, bool(given.get("subject"))) for table in given.get("row", []))
    kept = {k: given[k] for k in ("trial_share", "evaluations", "title", "reach", "note", "subject") if k in given}
    for value in kept.get("subject", {}).values():
        if isinstance(value, str):
            _expanded(value, f"{source}, [subject]")
    seeds = tuple(given.get("seeds", (0,)))
    return Comparison(rows=rows, budget=(budgets[0], given[budgets[0]]), seeds=seeds, **kept)


def _row(table: Mapping[str, Any], every: Mapping[str, Any], rates: Sequence[Any], source: str, made: bool) -> Row:
    values = dict(table)
    name = values.pop("name", values.get("method"))
    where = f"{source}, row {name!r}"
    if not isinstance(name, str) or "method" not in values:
        raise ConfigError(f"{where}: a row needs a method, and may have a name")
    method = values.pop("method")
    found = values.pop("rates", rates)
    if not isinstance(found, list) or not found or not all(isinstance(rate, float | int | str) for rate in found):
        raise ConfigError(f"{where}: rates is {found!r}; give a list of learning rates (--rates)")
    options = {**every, **_options(values, where)}
    if made:
        options |= dict.fromkeys(("model", "data"), "in memory")
    if method in BASELINES:
        _check_baseline(method, found, options.get("objective", "loss"), where)
    else:
        get_method(method)
    typed = tuple(rate if isinstance(rate, str) else float(rate) for rate in found)
    return Row(name=name, method=method, rates=typed, options=options)


def _check_baseline(method: str, rates: Sequence[Rate], objective: str, where: str) -> None:
    if AUTO in rates:
        raise ConfigError(
            f"{where}: rates has {AUTO!r}, and baseline {method!r} has no calibration; give it rates of its own"
        )
    if objective != "loss" and get_baseline(method).needs_gradient:
        raise ConfigError(
            f"{where}: objective is {objective!r}, which has no gradient, and baseline {method!r} needs one; "
            "leave the row out, or give objective 'loss'"
        )


def _options(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    parsed = parse_options(SimulateOptions, values, where)
    for name in SET_HERE:
        if name in parsed:
            raise ConfigError(f"{where}: option {name!r} is set by the comparison; leave it out")
    for name in _PLACES:
        if name in parsed:
            parsed[name] = _expanded(parsed[name], where)
    return parsed


def _expanded(place: str, where: str) -> str:
    """A path with $VARIABLES replaced and made absolute; hub names and rules as they are."""
    expanded = os.path.expandvars(place)
    if "$" in expanded:
        raise ConfigError(f"{where}: {place!r} names a variable of the environment that is not set")
    path = Path(expanded)
    return str(path.absolute()) if path.exists() else expanded
