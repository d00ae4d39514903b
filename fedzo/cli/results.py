"""Commands that use what a run came to: `artifact`, `apply`, `generate`, `plot`."""

from pathlib import Path
from typing import Annotated

import typer

from fedzo.cli.runs import Merge, Model, RunPath, State, counted


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("artifact")(artifact)
    app.command("apply")(apply)
    app.command("generate")(generate)
    app.command("plot")(plot)


def artifact(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", help="File to write; must not exist.")],
    base: Model = None,
) -> None:
    """Write the tuned model as one small file, to be applied to its base."""
    from fedzo.artifact import write_artifact
    from fedzo.artifact.replica import make_artifact
    from fedzo.new_file import check_new_file
    from fedzo.run_directory import RunDirectory

    check_new_file(out)
    made = make_artifact(RunDirectory(run), base)
    write_artifact(out, made)
    typer.echo(
        f"{out}: {out.stat().st_size:,} bytes, {counted(len(made.entries), 'seed')}: "
        f"the model at position {made.position}, state digest {made.state_digest.hex()}"
    )


def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Artifact, as `fedzo artifact` writes it.")],
    base: Annotated[str, typer.Option("--base", help="The base: checkpoint directory or hub name.")],
    out: Annotated[Path, typer.Option("--out", help="Directory to write; must not exist or be empty.")],
    backend: Annotated[str, typer.Option("--backend", help="Who makes the noise. The bits are the same.")] = "auto",
    merge: Merge = False,
) -> None:
    """Rebuild the tuned model from an artifact and its base, as a directory that `from_pretrained` loads."""
    from fedzo.artifact import read_artifact
    from fedzo.artifact.replica import rebuild_artifact
    from fedzo.base.checkpoint import head_of, load_base
    from fedzo.noise import get_backend
    from fedzo.results.export import check_export, export_model

    check_export(out)
    read = read_artifact(file)
    replica = rebuild_artifact(read, base, backend=get_backend(backend))
    export_model(replica, load_base(base, head_of(read.task, read.run_seed)), out, merge=merge)
    typer.echo(f"{out}: the model at position {read.position}, state digest {replica.digest().hex()}")


def generate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Run directory, model directory or hub name.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Most tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws, at a temperature above 0.")] = 0,
    base: Model = None,
    state: State = "auto",
    device: Annotated[
        str, typer.Option("--device", help="Where the model computes: cpu, cuda, cuda:N, or auto.")
    ] = "cpu",
) -> None:
    """Print what a model says after a prompt."""
    from fedzo.device import get_device
    from fedzo.results.generate import continuation, open_target

    model, tokenizer, call = open_target(target, base, state=state, device=get_device(device))

    def say() -> str:
        return continuation(model, tokenizer, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    typer.echo(call(say))


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path, typer.Option("--out", help="PNG to write; must not exist.")],
) -> None:
    """Draw the losses of runs against rounds, forward passes and bytes."""
    from fedzo.results.plot import plot_runs

    plot_runs(runs, out)
    typer.echo(f"{out}: {counted(len(runs), 'run')}")
