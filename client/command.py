"""`fedzo client` and `fedzo status`, as the command line sees them. Heavy imports wait until they run."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ClientOptions, ConnectionOptions, Limits
from .pause import Pause

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="The server, HOST:PORT.")]
Authority = Annotated[
    Path | None, typer.Option("--ca", help="Authority of the server's certificate, PEM. Without it: the system's.")
]
Token = Annotated[Path | None, typer.Option("--token", help="File that holds this client's token.")]
Certificate = Annotated[Path | None, typer.Option("--cert", help="This client's certificate, PEM.")]
PrivateKey = Annotated[Path | None, typer.Option("--key", help="Its private key, PEM.")]
Home = Annotated[Path, typer.Argument(metavar="DIR", help="The client's --dir.")]


def register(app: typer.Typer) -> None:
    """Add the commands; called through the entry point group `fedzo.commands`."""
    app.command("client")(client)
    app.command("status")(status)
    app.command("pause")(pause)
    app.command("resume")(resume)


def client(
    address: Address,
    model: Annotated[str, typer.Option("--model", help="The run's base: checkpoint directory or hub name.")],
    data: Annotated[str, typer.Option("--data", help="Rows that stay here: a source as in `fedzo simulate`.")],
    directory: Annotated[Path, typer.Option("--dir", help="Directory of this client: its journal and replica.")],
    name: Annotated[
        str, typer.Option("--name", help="By default that of the file of --token or --cert, else of --dir.")
    ] = "",
    ca: Authority = None,
    token: Token = None,
    cert: Certificate = None,
    key: PrivateKey = None,
    eval_data: Annotated[
        str, typer.Option("--eval-data", help="Held-out rows: a source, or every:N of the rows, or none.")
    ] = "every:10",
    eval_batch_size: Annotated[
        int, typer.Option("--eval-batch-size", help="Held-out examples of a batch; 0 takes as many as in training.")
    ] = 0,
    text_field: Annotated[str, typer.Option("--text-field", help="Field that holds the text.")] = "text",
    dtype: Annotated[str, typer.Option("--dtype", help="Compute type: float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option("--threads", help="CPU threads; 0 takes all cores.")] = 0,
    backend: Annotated[str, typer.Option("--backend", help="Who makes the noise: auto, numba, torch, reference.")] = (
        "auto"
    ),
    state: Annotated[
        str,
        typer.Option(
            "--state",
            help="Where the exact state lives: device (the memory of --device), host (memory), disk (streamed), or "
            "auto.",
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option("--device", help="Where forward passes run: cpu, cuda, cuda:N, or auto.")
    ] = "cpu",
    compute_copy: Annotated[
        str,
        typer.Option(
            "--compute-copy",
            help="What forward passes read: none (the state itself), or a copy of it in bf16, fp16 or int8.",
        ),
    ] = "none",
    directions_per_pass: Annotated[
        int,
        typer.Option(
            "--directions-per-pass",
            help="Directions that go through the model together; what is streamed is read once for all of them.",
        ),
    ] = 1,
    max_steps: Annotated[
        int, typer.Option("--max-steps", help="Most directions times local steps that a round may ask for.")
    ] = 1024,
    max_batch: Annotated[int, typer.Option("--max-batch", help="Most examples of a step.")] = 1024,
    max_epsilon: Annotated[float, typer.Option("--max-epsilon", help="Largest perturbation.")] = 0.1,
    max_memory: Annotated[
        float, typer.Option("--max-memory", help="Most memory of this process, GiB; 0 sets no limit.")
    ] = 0.0,
    patience: Annotated[
        float, typer.Option("--patience", help="Seconds without a server after which the client gives up.")
    ] = 3600.0,
) -> None:
    """Take part in a run with own data: estimate, report, and keep a replica in step."""
    options = ClientOptions(
        connection=ConnectionOptions(address=address, ca=ca, token=token, cert=cert, key=key),
        limits=Limits(steps=max_steps, batch=max_batch, epsilon=max_epsilon, memory_gib=max_memory),
        model=model,
        data=data,
        directory=directory,
        name=name or _own_name(directory, token or cert),
        eval_data=eval_data,
        eval_batch_size=eval_batch_size,
        text_field=text_field,
        dtype=dtype,
        threads=threads,
        backend=backend,
        state=state,
        device=device,
        compute_copy=compute_copy,
        directions_per_pass=directions_per_pass,
        patience_s=patience,
    )
    from .runner import run_client  # noqa: PLC0415

    run_client(options)


def _own_name(directory: Path, credential: Path | None) -> str:
    """`fedzo certs` names the files of a client's token and certificate after it."""
    return directory.resolve().name if credential is None else credential.stem


def pause(directory: Home) -> None:
    """Let a client rest: it finishes what it is at and leaves the run, until `fedzo resume`."""
    Pause(directory).begin()
    typer.echo(f"{directory}: its client takes no part until `fedzo resume {directory}`")


def resume(directory: Home) -> None:
    """Let a paused client come back and catch up."""
    Pause(directory).end()
    typer.echo(f"{directory}: its client takes part again")


def status(
    address: Address, ca: Authority = None, token: Token = None, cert: Certificate = None, key: PrivateKey = None
) -> None:
    """Show how a server's run stands."""
    from .status import fetch_status, status_lines  # noqa: PLC0415

    options = ConnectionOptions(address=address, ca=ca, token=token, cert=cert, key=key)
    typer.echo("\n".join(status_lines(fetch_status(options))))
