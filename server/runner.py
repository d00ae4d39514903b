"""Runs `fedzo server`: from parsed options to a hosted run."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from fedzo.journal import Journal, Record
from fedzo.options.reading import options_of_run
from fedzo.run_directory import RunDirectory

from .access import Access, read_tokens, server_credentials
from .display import RecordLines
from .opening import open_journal
from .options import HOSTING, PLACES, ServerOptions
from .serving import serving

SWITCH_S = 1e-4
"""Seconds after which a waiting thread gets its turn: the one that writes a record is to be at the disk while the other
makes the record's step ready."""


def run_server(given: dict[str, Any], config: Path | None, *, resume: bool) -> None:
    """Host a run until it has ended or the process is told to stop (SIGTERM, SIGINT)."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    run, options = options_of_run(
        ServerOptions, given, config, resume=resume, places=PLACES, changeable=("out", "model", *HOSTING)
    )
    access, credentials = _access(options)
    with open_journal(run, options, resume=resume) as journal:
        if journal.contents.torn_bytes:
            console.print(f"cut off {journal.contents.torn_bytes} bytes of a record that was never finished")
        run.mend_metrics(journal.contents.records)
        console.print(f"run {run.path} at position {journal.position}")
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: collections need not look at it again
        asyncio.run(_serve(run, journal, options, access, credentials, console))


def _access(options: ServerOptions) -> tuple[Access, grpc.ServerCredentials | None]:
    """Who may come in, and the server's own credentials; none without TLS.

    Raises:
        ConfigError: a file cannot be read.
    """
    access = Access(read_tokens(Path(options.tokens)) if options.tokens else None, certificates=bool(options.tls_ca))
    if options.insecure:
        return access, None
    authority = Path(options.tls_ca) if options.tls_ca else None
    return access, server_credentials(Path(options.tls_cert), Path(options.tls_key), authority)


async def _serve(
    run: RunDirectory,
    journal: Journal,
    options: ServerOptions,
    access: Access,
    credentials: grpc.ServerCredentials | None,
    console: Console,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    lines = RecordLines(console)
    with _following(run, journal, options, console.print) as moved:

        def show(record: Record) -> None:
            lines.show(record)
            moved()

        async with serving(
            run,
            journal,
            listen=options.listen,
            start_with=options.clients,
            gather_s=options.gather,
            access=access,
            credentials=credentials,
            show=show,
            say=console.print,
        ) as served:
            await served.until_over(stop, options.linger)


@contextmanager
def _following(
    run: RunDirectory, journal: Journal, options: ServerOptions, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """The server's own replica, where it is asked for; yields what is to be called when the journal has moved."""
    if not options.evaluate_on:
        yield lambda: None
        return
    from .follower import make_follower  # noqa: PLC0415

    with make_follower(run, journal.contents, options, say) as follower:
        yield follower.moved
