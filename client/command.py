"""`fedzo client` and `fedzo status`, as the command line sees them. Heavy imports wait until they run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedzo.cli.options import options_command

from .options import ClientOptions, ConnectionOptions, PartOptions
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
    app.command("client")(options_command(PartOptions, client))
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
    **given: Any,
) -> None:
    """Take part in a run with own data: estimate, report, and keep a replica in step."""
    options = ClientOptions(
        connection=ConnectionOptions(address=address, ca=ca, token=token, cert=cert, key=key),
        model=model,
        data=data,
        directory=directory,
        name=name or _own_name(directory, token or cert),
        **given,
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
