"""Runs `fedzo simulate`: from parsed options to a finished run directory."""

from pathlib import Path
from typing import Any

from rich.console import Console

from fedzo.errors import CheckpointError
from fedzo.options.reading import options_of_run
from fedzo.tasks import get_task

from .display import Display, show_setting
from .engines import get_engine
from .memory import plan_run, said_of, said_of_peak
from .opening import CHANGEABLE, PLACES, open_journal, rounds_done
from .options import SimulateOptions
from .setup import prepare
from .simulator import Progress


def run_simulation(given: dict[str, Any], config: Path | None, *, resume: bool) -> Path:
    """Run a simulation from parsed command-line options and an optional TOML file; the run directory."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    run, options = options_of_run(SimulateOptions, given, config, resume=resume, places=PLACES, changeable=CHANGEABLE)
    engine = get_engine(options.engine)
    plan, planned = None, ""
    try:
        if (plan := plan_run(options)) is not None:
            planned = said_of(plan)
    except CheckpointError as error:  # one that cannot be loaded either is an error in the next line
        planned = f"memory is not planned: {error}"
    setting = prepare(options)
    show_setting(console, options, setting)
    if planned:
        console.print(planned)
    with open_journal(run, options, setting, resume, console.print) as journal:
        display = Display(console, options.rounds, rounds_done(journal), get_task(options.definition().task).metric)
        with display:
            progress = Progress.resumed(run.read_metrics()) if resume else Progress()
            engine(options, setting, journal, run, progress, display.watch).run()
        size = journal.contents.valid_bytes
    console.print(
        f"done: {options.rounds} rounds, {progress.forwards:,} forward passes in {progress.seconds:.1f} s, "
        f"{progress.bytes_up:,} bytes up, {progress.bytes_down:,} bytes down; journal {size:,} bytes"
    )
    if plan is not None:
        console.print(said_of_peak(plan))
    console.print(f"state digest {setting.replica.digest().hex()}")
    return run.path
