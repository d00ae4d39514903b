"""Runs `fedzo simulate`: from parsed options to a finished run directory."""

from pathlib import Path
from typing import Any

from rich.console import Console

from fedzo.options.reading import options_of_run
from fedzo.plan.run import Planned
from fedzo.tasks import get_task

from .display import Display, show_setting
from .engines import get_engine
from .opening import CHANGEABLE, PLACES, open_journal, rounds_done
from .options import SimulateOptions
from .setup import prepare
from .simulator import Progress


def run_simulation(given: dict[str, Any], config: Path | None, *, resume: bool) -> Path:
    """Run a simulation from parsed command-line options and an optional TOML file; the run directory."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    run, options = options_of_run(SimulateOptions, given, config, resume=resume, places=PLACES, changeable=CHANGEABLE)
    engine = get_engine(options.engine)
    planned = Planned(
        options.model,
        options,
        state=options.state,
        batch_size=options.batch_size,
        max_length=options.max_length,
        directions=options.chosen("directions"),
        here=options.engine == "inline" and not get_task(options.definition().task).head,
    )
    setting = prepare(options)
    show_setting(console, options, setting)
    for line in planned.before():
        console.print(line)
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
    for line in planned.after():
        console.print(line)
    console.print(f"state digest {setting.replica.digest().hex()}")
    return run.path
