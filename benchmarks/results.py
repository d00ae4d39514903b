"""Builds docs/results/ from the comparisons that benchmarks/comparisons/*.toml describe.

    python -m benchmarks.results [NAME…] [--missing] [--jobs 1] [--runs runs/results] [--docs docs/results]

Cells that are finished are not run again, so it goes on where it was stopped. What each came to is kept beside its
page, in NAME.json, so it goes on in another checkout too. With --missing nothing is run: the pages are written from
what is there, what is missing is printed, and where all is missing there is no page. A comparison whose data or weights
are not at hand is left out with a word.
"""

import argparse
import sys
from pathlib import Path

from fedzo_simulations.compare.command import comparison_of, console_for_tables, run_comparison, show, write_outcome
from fedzo_simulations.compare.queue import Queue
from fedzo_simulations.compare.summary import markdown, summary, table_of
from rich.console import Console

from benchmarks.kept import keep, restore
from fedzo.errors import ConfigError

RUNS = Path("runs/results")


def main() -> int:
    """Exit code 0 where nothing is missing."""
    arguments = _arguments()
    console = console_for_tables()
    place = arguments.comparisons
    files = [place / f"{name}.toml" for name in arguments.names] or sorted(place.glob("*.toml"))
    missing = 0
    for file in files:
        try:
            missing += len(_build(file, arguments, console).missing())
        except ConfigError as error:
            console.print(f"left out: {error}")
            missing += 1
    console.print(f"{missing} missing" if missing else "nothing is missing")
    return int(missing > 0)


def _build(file: Path, arguments: argparse.Namespace, console: Console) -> Queue:
    """Run what is missing of a comparison, and write its page.

    Raises:
        ConfigError: it cannot be run here, or what is there of it is not its own.
    """
    comparison = comparison_of([], file, {}, {})
    out, kept = arguments.runs / file.stem, arguments.docs / f"{file.stem}.json"
    out.mkdir(parents=True, exist_ok=True)
    others = restore(Queue(comparison, out), kept)
    for name in others:
        console.print(f"not what was kept, so it is to be run again: {name}")
    queue = run_comparison(comparison, out, console, jobs=arguments.jobs, at_most=0 if arguments.missing else None)
    show(queue, console)
    write_outcome(queue)
    if any(line.trial_loss is not None or line.seeds for line in summary(queue)):
        arguments.docs.mkdir(parents=True, exist_ok=True)
        (arguments.docs / f"{file.stem}.md").write_text(page(queue, file.stem))
        keep(queue, kept, others)
    return queue


def page(queue: Queue, name: str) -> str:
    """The page of a comparison: its table, how it was made, what it lacks."""
    comparison = queue.comparison
    kind, amount = comparison.budget
    trials = max((len(row.rates) for row in comparison.rows), default=1)
    share = f"{comparison.trial_share:g} of that budget" if comparison.trial_share < 1 else "the whole budget"
    tuned = f"each row tried {trials} learning rates at {share} with seed {comparison.seeds[0]}, by held-out loss"
    if trials == 1:
        tuned = "no learning rate was tuned"
    parts = [
        f"# {comparison.title}",
        f"Made by `make results` from `benchmarks/comparisons/{name}.toml`; the same with "
        f"`fedzo compare --config benchmarks/comparisons/{name}.toml --out runs/results/{name}`.",
        f"Budget: {amount:,} {kind.replace('_', ' ')}; {tuned}. Mean ± sample standard deviation over seeds. Forward "
        "passes are those of training; a step with back-propagation counts as three. Central training moves no "
        "weights, and its data is taken to be there already.",
        comparison.note.strip(),
        markdown(table_of(queue)),
    ]
    lacking = queue.missing()
    if lacking:
        parts.append(f"{len(lacking)} runs are missing; `make results RESULTS_ARGS=--missing` names them.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="comparisons, by their files' names; all")
    parser.add_argument("--missing", action="store_true", help="run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--comparisons", type=Path, default=Path(__file__).parent / "comparisons", help="TOML files")
    parser.add_argument("--runs", type=Path, default=RUNS, help="directory of all runs")
    parser.add_argument("--docs", type=Path, default=Path("docs/results"), help="directory of the pages")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
