"""Pictures of runs: loss against rounds, forward passes and bytes, from `metrics.jsonl`; `fedzo plot`."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from fedzo.errors import ConfigError
from fedzo.new_file import check_new_file, write_new_file
from fedzo.run_directory import RunDirectory

AXES = {"round": "round", "forwards": "forward passes", "bytes": "bytes up and down"}
"""What the loss is drawn against, and how each axis is labelled."""
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 15.0, 4.5, 120

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Curves:
    """The losses of one run: points (x, loss) for each of AXES."""

    name: str
    held_out: dict[str, Points]
    training: dict[str, Points]


def read_curves(run: RunDirectory, name: str) -> Curves:
    """The curves of a run, as its metrics state them.

    Losses that are not finite are left out; so are, but for rounds, records whose measured figures a kill has cost.

    Raises:
        ConfigError: no run there, or no loss in its metrics.
    """
    lines = run.require().read_metrics()
    curves = Curves(name, _points(lines, "held_out_loss"), _points(lines, "loss"))
    if not curves.held_out["round"] and not curves.training["round"]:
        raise ConfigError(f"{run.path}: its metrics.jsonl holds no loss to plot; resume the run")
    return curves


def plot_runs(runs: Sequence[Path], out: Path) -> None:
    """Draw runs over each other into a PNG.

    Raises:
        ConfigError: matplotlib is missing, a run has nothing to plot, or the file cannot be written.
    """
    if out.suffix != ".png":
        raise ConfigError(f"{out}: plots are written as PNG; give an --out that ends with .png")
    check_new_file(out)
    curves = [read_curves(RunDirectory(run), name) for run, name in zip(runs, _names(runs), strict=True)]
    write_new_file(out, draw(curves))


def draw(runs: Sequence[Curves]) -> bytes:
    """A PNG of the runs' curves: WIDTH_INCHES by HEIGHT_INCHES at DOTS_PER_INCH.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import EngFormatter  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"plots need matplotlib ({error}); pip install -c constraints.txt '.[plot]'") from error
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        for number, run in enumerate(runs):
            _draw_run(panel, run, axis, f"C{number % 10}")
        panel.set_xlabel(label)
        panel.locator_params(axis="x", nbins=6)
        panel.xaxis.set_major_formatter(EngFormatter(unit="B" if axis == "bytes" else ""))
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("loss (line: held-out, faint: training)")
    panels[0].legend()
    image = io.BytesIO()
    figure.savefig(image, format="png")  # drawn by Agg: no display, no state shared with pyplot
    return image.getvalue()


def _draw_run(panel: Any, run: Curves, axis: str, colour: str) -> None:
    """One run into one panel; only what is drawn strongest is named in the legend."""
    if run.training[axis]:
        label = None if run.held_out[axis] else run.name
        panel.plot(*zip(*run.training[axis], strict=True), color=colour, alpha=0.3, linewidth=1, label=label)
    if run.held_out[axis]:
        panel.plot(*zip(*run.held_out[axis], strict=True), color=colour, marker="o", markersize=4, label=run.name)


def _points(lines: Iterable[dict[str, Any]], loss: str) -> dict[str, Points]:
    found: dict[str, Points] = {axis: [] for axis in AXES}
    for line in lines:
        value = line.get(loss)
        if value is None or not isfinite(value):
            continue
        found["round"].append((line["round"], value))
        if "forwards" in line:
            found["forwards"].append((line["forwards"], value))
            found["bytes"].append((line["bytes_up"] + line["bytes_down"], value))
    return found


def _names(runs: Sequence[Path]) -> list[str]:
    """The directories' names; their whole paths where two have the same name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
