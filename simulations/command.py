"""`fedzo simulate`, as the command line sees it. Heavy imports wait until it runs."""

from pathlib import Path
from typing import Any

import typer

from fedzo.cli.options import options_command

from .options import SimulateOptions


def register(app: typer.Typer) -> None:
    """Add the command; called through the entry point group `fedzo.commands`."""

    def simulate(config: Path | None, resume: bool, **given: Any) -> None:
        """Fine-tune on one machine with virtual clients that share one replica."""
        from .runner import run_simulation  # noqa: PLC0415

        run_simulation(given, config, resume=resume)

    app.command("simulate")(options_command(SimulateOptions, simulate))
