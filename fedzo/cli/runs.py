"""Commands on a run directory: `journal show`, `journal clients`, `replay`, `export`, `rollback`."""

import json
from pathlib import Path
from typing import Annotated

import typer

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
Merge = Annotated[bool, typer.Option("--merge", help="Write the whole model with its LoRA adapter added in.")]
Model = Annotated[str | None, typer.Option("--base", help="The base; by default the run's own --model.")]
State = Annotated[
    str,
    typer.Option(
        "--state",
        help="Where a run's weights lie: host (memory), disk (streamed from a file that goes away), or auto: the host "
        "where half of its free memory holds them.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    journal = typer.Typer(help="Look into a journal.", no_args_is_help=True)
    app.add_typer(journal, name="journal")
    journal.command("show")(show)
    journal.command("clients")(clients)
    app.command("replay")(replay)
    app.command("export")(export)
    app.command("rollback")(rollback)


def show(run: RunPath, as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False) -> None:
    """Show the genesis and every record of a run's journal."""
    from fedzo.journal import read_journal
    from fedzo.journal.view import journal_view
    from fedzo.run_directory import RunDirectory, describe

    contents = read_journal(RunDirectory(run).require().journal)
    view = journal_view(contents)
    if as_json:
        typer.echo(json.dumps(view, indent=1))
        return
    genesis = view["genesis"]
    typer.echo(
        f"base {genesis['base_digest'][:16]}…  {len(genesis['manifest'])} tensors  {genesis['distribution']}  "
        f"method {genesis['rules']['method']}  genesis {genesis['record_hash'][:16]}…"
    )
    first = contents.first
    if contents.start is not None:
        typer.echo(
            f"{first:>6}  the totals of {counted(len(contents.start.entries), 'seed')} in place of the records up to "
            f"here: an excerpt, as a client that came late has it  hash {contents.start.record_hash.hex()[:16]}…"
        )
    for position, (record, shown) in enumerate(zip(contents.records[first:], view["records"], strict=True), first + 1):
        facts = describe(position, record)
        kind = facts.pop("kind")
        said = [_fact(name, value) for name, value in facts.items() if name not in ("position", "round")]
        said.append(f"hash {shown['record_hash'][:16]}…")
        if "state_digest" in shown:
            said.append(f"state {shown['state_digest'][:16]}…")
        typer.echo(f"{position:>6}  round {record.round:<5} {kind:<11} {'  '.join(said)}")
    if contents.torn_bytes:
        typer.echo(
            f"{counted(contents.torn_bytes, 'byte')} of an unfinished record follow; the next writer cuts them off"
        )


def clients(
    run: RunPath, as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False
) -> None:
    """Show how much each client took part, how large its scalars are, and how far it agrees with the others.

    The journal alone says so; what its reports did to the held-out loss, `fedzo influence` finds with model and data.
    """
    from dataclasses import asdict

    from fedzo.journal import read_journal
    from fedzo.results.client_statistics import client_statistics, why_no_agreement
    from fedzo.run_directory import RunDirectory

    contents = read_journal(RunDirectory(run).require().journal)
    found = [asdict(each) for each in client_statistics(contents)]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo("size: of its scalars, over the cohort's median; agreement: cosine of them with the mean of the others'")
    if any(each["agreement"] is None for each in found):
        typer.echo(f"agreement –: {why_no_agreement(contents.genesis)}")
    for each in found:
        said = [_fact(name, value) for name, value in each.items() if name not in ("client", "name")]
        typer.echo(f"{each['client']:>6}  {each['name']:<12} {'  '.join(said)}")


def counted(number: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _fact(name: str, value: object) -> str:
    said = name.replace("_", " ")
    if value is None:
        return f"{said} –"
    return f"{said} {value:.5g}" if isinstance(value, float) else f"{said} {value}"


def replay(
    run: RunPath,
    base: Model = None,
    state: State = "auto",
    without: Annotated[
        str | None, typer.Option("--without", help="A client whose reports are then left out of every commit.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --without: directory to write that model to; must not exist.")
    ] = None,
) -> None:
    """Rebuild a run from base and journal, and check every digest that the journal states.

    --without takes one client's part out of the result. The others measured their scalars on models that it had moved,
    so this is not the run that would have been without it, and no promise that nothing of its data is left.
    """
    from fedzo.errors import ConfigError
    from fedzo.results.export import check_export, export_model
    from fedzo.results.rebuild import check_history, rebuild
    from fedzo.results.without import remove_client
    from fedzo.run_directory import RunDirectory

    if out is not None:
        if without is None:
            raise ConfigError(f"--out {out}: `fedzo export` writes a run's model; here it belongs to --without")
        check_export(out)
    replica, loaded, contents = rebuild(RunDirectory(run), base, state=state)
    records = contents.records[contents.first :]
    checked = sum(record.state_digest is not None for record in records)
    begun = "" if contents.start is None else f"from the totals at position {contents.first} on, "
    typer.echo(
        f"{begun}{counted(len(records), 'record')} replayed, {counted(checked, 'state digest')} checked, all equal"
    )
    typer.echo(f"state digest {replica.digest().hex()}")
    if without is None:
        return
    found = remove_client(replica, check_history(contents), without)
    typer.echo(f"without {without}, which is in {counted(found, 'commit')}: state digest {replica.digest().hex()}")
    if out is not None:
        export_model(replica, loaded, out)
        typer.echo(f"{out}: the model without {without}")


def export(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", help="Directory to write; must not exist or be empty.")],
    base: Model = None,
    state: State = "auto",
    merge: Merge = False,
) -> None:
    """Write the tuned model, or its adapter, as a directory that `from_pretrained` loads."""
    from fedzo.results.export import check_export, export_model
    from fedzo.results.rebuild import rebuild
    from fedzo.run_directory import RunDirectory

    check_export(out)
    replica, loaded, contents = rebuild(RunDirectory(run), base, state=state)
    export_model(replica, loaded, out, merge=merge)
    typer.echo(f"{out}: the model at position {contents.position}, state digest {replica.digest().hex()}")


def rollback(
    run: RunPath,
    to: Annotated[int, typer.Option("--to", help="Position to return to: the state after that record; 0 is the base.")],
) -> None:
    """Append the record that returns to an earlier state; nothing is ever cut."""
    from fedzo.results.rebuild import roll_back
    from fedzo.run_directory import RunDirectory

    directory = RunDirectory(run).require()
    position = roll_back(directory, to)
    typer.echo(f"record {position} returns to the state after record {to}; the records between stay in the journal")
