"""`fedzo simulate` and `fedzo demo`, as the command line sees them. Heavy imports wait until they run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedzo.cli.options import options_command

from .options import SimulateOptions


def register(app: typer.Typer) -> None:
    """Add the commands; called through the entry point group `fedzo.commands`."""

    def simulate(config: Path | None, resume: bool, **given: Any) -> None:
        """Fine-tune on one machine with virtual clients that share one replica."""
        from .runner import run_simulation  # noqa: PLC0415

        run = run_simulation(given, config, resume=resume)
        typer.echo(f"look at it: fedzo journal show {run}; use it: fedzo export {run} --out DIR")

    def demo(out: Annotated[Path | None, typer.Option("--out", help="Keep the run in this directory.")] = None) -> None:
        """Tune a small model with four virtual clients; nothing to download, about a minute."""
        from .demo import run_demo  # noqa: PLC0415

        run_demo(out)

    app.command("simulate")(options_command(SimulateOptions, simulate))
    app.command("demo")(demo)
