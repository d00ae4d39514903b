"""`fedzo simulate`, `compare`, `evaluate`, `influence` and `demo` as the command line sees them; heavy imports wait."""

import json
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from fedzo.cli.options import Config, Resume, options_command
from fedzo.errors import ConfigError

from .options import SimulateOptions

_COMPARED = ("out", "method", "lr", "rounds", "seed", "eval_every")
"""Options of a run that `fedzo compare` sets itself."""
_DATA_OPTIONS = ("data", "text_field", "task", "prompt", "response", "label_field", "labels", "max_length")


def register(app: typer.Typer) -> None:
    """Add the commands; called through the entry point group `fedzo.commands`."""
    app.command("simulate")(options_command(SimulateOptions, simulate))
    kept = [field.name for field in fields(SimulateOptions) if field.name not in _COMPARED]
    app.command("compare")(options_command(SimulateOptions, compare, only=kept))
    app.command("evaluate")(
        options_command(SimulateOptions, evaluate, only=(*_DATA_OPTIONS, "batch_size", "threads", "state", "device"))
    )
    app.command("influence")(
        options_command(
            SimulateOptions, influence, only=("data", "text_field", "batch_size", "threads", "state", "device")
        )
    )
    app.command("demo")(demo)


def simulate(config: Config = None, resume: Resume = False, **given: Any) -> None:
    """Fine-tune on one machine with virtual clients that share one replica."""
    from .runner import run_simulation  # noqa: PLC0415

    run = run_simulation(given, config, resume=resume)
    typer.echo(f"look at it: fedzo journal show {run}; use it: fedzo export {run} --out DIR")


def compare(
    out: Annotated[Path, typer.Option("--out", help="Directory of all runs; what is finished there is not run again.")],
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD...", help="Methods of fedzo, and baselines: mezo, sgd, adamw, fedavg."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with rows of any options (docs/concepts/comparison.md).")
    ] = None,
    forwards: Annotated[int | None, typer.Option("--forwards", help="Forward passes of a run, all clients.")] = None,
    forwards_per_client: Annotated[
        int | None, typer.Option("--forwards-per-client", help="Or those of one client, on average.")
    ] = None,
    traffic: Annotated[int | None, typer.Option("--bytes", help="Or bytes up and down, all clients.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds 0, 1, … of each row; 1 where not given.")] = None,
    rates: Annotated[
        str | None, typer.Option("--rates", help="Learning rates that each row tries at its first seed: 1e-4,3e-4,….")
    ] = None,
    trial_share: Annotated[
        float | None, typer.Option("--trial-share", help="Share of the budget that a trial gets; 1 where not given.")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option("--evaluations", help="Evaluations over a run; 5 where not given.")
    ] = None,
    reach: Annotated[str | None, typer.Option("--reach", help="Row whose loss the others are timed to.")] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", help="Runs at a time, which share the cores where --threads is not given.")
    ] = 1,
    at_most: Annotated[
        int | None, typer.Option("--at-most", help="Runs to make now; 0 only shows what is there.")
    ] = None,
    **base: Any,
) -> None:
    """Run methods and baselines side by side at equal budgets, tune each with as many trials, and print a table.

    Every run is a directory under --out; the same command goes on after a kill. The options below are those of every
    run, with the defaults of `fedzo simulate`.
    """
    from rich.console import Console  # noqa: PLC0415

    from .compare.command import comparison_of, console_for_tables, run_comparison, show, write_outcome  # noqa: PLC0415

    given = {
        "forwards": forwards,
        "forwards_per_client": forwards_per_client,
        "bytes": traffic,
        "seeds": None if seeds is None else list(range(seeds)),
        "rates": None if rates is None else parse_rates(rates),
        "trial_share": trial_share,
        "evaluations": evaluations,
        "reach": reach,
    }
    known = {name: value for name, value in given.items() if value is not None}
    comparison = comparison_of(methods or [], config, known, base)
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    queue = run_comparison(comparison, out, progress, jobs=jobs, at_most=at_most)
    show(queue, console_for_tables())
    write_outcome(queue)


def parse_rates(given: str) -> list[float]:
    """`1e-4,3e-4` as numbers.

    Raises:
        ConfigError: one is none.
    """
    try:
        return [float(part) for part in given.split(",")]
    except ValueError as error:
        raise ConfigError(f"option rates is {given!r}; give learning rates as 1e-4,3e-4,…") from error


def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Run directory, or a model's directory or hub name.")],
    base: Annotated[str | None, typer.Option(help="The base of a run; by default its own --model.")] = None,
    shots: Annotated[int, typer.Option("--shots", help="Rows with their answers before every prompt.")] = 0,
    shots_from: Annotated[
        str | None,
        typer.Option("--shots-from", help="Where those are drawn from; by default --data, which is then without them."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Evaluate on the first so many rows; 0 takes all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of --shots.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    **given: Any,
) -> None:
    """Loss, and perplexity or the task's metrics, of a run's tuned model or of any model.

    A run is evaluated on what it holds out, or on --data; its task is its own. A model is evaluated on --data.
    """
    from .evaluate import Shown  # noqa: PLC0415
    from .evaluate import evaluate as found_by  # noqa: PLC0415

    found = found_by(target, given, base, Shown(shots=shots, source=shots_from, seed=seed, rows=rows))
    facts = {"loss": found.loss, "perplexity": found.perplexity, **found.metrics}
    known = {name: value for name, value in facts.items() if value is not None}
    if found.cut:
        typer.echo(
            f"note: {found.cut} examples fill --max-length and may be cut; what a run reads was chosen when it began",
            err=True,
        )
    if as_json:
        finite = {name: _finite(value) for name, value in known.items()}
        typer.echo(json.dumps(finite | {"examples": found.examples}))
    else:
        said = "".join(f"{name} {value:.5g}, " for name, value in known.items())
        typer.echo(f"{said}{found.counted}")


def influence(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    base: Annotated[str | None, typer.Option(help="The base; by default the run's own --model.")] = None,
    client: Annotated[
        list[str] | None, typer.Option("--client", help="Only of this client; may be given more than once.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Evaluate on the first so many rows; 0 takes all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    **given: Any,
) -> None:
    """What each client's reports did to the loss on what a run holds out, or on --data.

    A client's influence is the loss with every commit made of the others' reports alone, less the loss of the run's
    model: positive where the client helped. The others count for more then, so it says whether they would have done
    better without it, not how much it taught; and since they measured on models that it had moved, it is not the loss
    of a run without it.
    """
    from dataclasses import asdict  # noqa: PLC0415

    from .influence import influences  # noqa: PLC0415

    whole, each = influences(run, given, base, rows=rows, names=client or [])
    if as_json:
        clients = [{name: _finite(value) for name, value in asdict(one).items()} for one in each]
        typer.echo(json.dumps({"loss": _finite(whole.loss), "examples": whole.examples, "clients": clients}, indent=1))
        return
    typer.echo(f"held-out loss {whole.loss:.5g}, {whole.counted}; influence: the loss without a client's reports less")
    typer.echo("that, the others' weights raised; positive: the client helped; not the loss of a run without it")
    for one in each:
        if one.influence is None:
            said = "influence –  without it the integers might leave their range"
        else:
            said = f"influence {one.influence:+.3e}  loss without {one.loss_without:.5g}"
        typer.echo(f"{one.client:>6}  {one.name:<12} {said}  commits {one.commits}")


def _finite(value: Any) -> Any:
    """None for a number that JSON has not."""
    return None if isinstance(value, float) and not isfinite(value) else value


def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="New directory for the model, its text and the run; by default nothing is kept."),
    ] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="A real server and three clients, one of them killed on the way.")
    ] = False,
) -> None:
    """Tune a small model with four virtual clients; nothing to download, about a minute."""
    if processes:
        from .demo_processes import run_process_demo  # noqa: PLC0415

        run_process_demo(out)
    else:
        from .demo import run_demo  # noqa: PLC0415

        run_demo(out)
