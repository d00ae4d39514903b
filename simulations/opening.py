"""Opening a run directory: a new one, or one to go on with."""

from collections.abc import Callable

from fedzo.config import write_toml
from fedzo.errors import BaseMismatchError
from fedzo.journal import Journal
from fedzo.journal.view import said_of_end
from fedzo.results.rebuild import restore
from fedzo.run_directory import RunDirectory

from .options import SimulateOptions
from .setup import Setting

PLACES = ("model", "data", "eval_data")
"""Options that may name a file or directory: stored as absolute paths, and given anew to a run whose data moved."""
CHANGEABLE = {"threads", "backend", "device", "state", "copy_state", "directions_per_pass", "out", *PLACES}
"""Options that a resumed run may be given anew. The state stays exact under all of them (another base is refused by its
digest); another device or number of threads may round the losses of the rounds to come differently."""


def open_journal(
    run: RunDirectory, options: SimulateOptions, setting: Setting, resume: bool, say: Callable[[str], None]
) -> Journal:
    """Start a run's journal, or open it and bring the replica to its end.

    Args:
        run: where.
        options: of the run.
        setting: its replica is at the base.
        resume: the run is there already.
        say: is told what was found.

    Raises:
        BaseMismatchError, JournalError: by name.
    """
    if not resume:
        with run.exclusive():
            run.require_new()
            write_toml(run.config, options)
            journal = Journal.create(run.journal, setting.genesis)
        setting.replica.start_at(setting.genesis, setting.base_digest, journal.record_hash)
        return journal
    journal = Journal.open(run.journal)
    contents = journal.contents
    setting.replica.start_at(contents.genesis, setting.base_digest, contents.hashes[0])
    if contents.genesis != setting.genesis:
        raise BaseMismatchError(f"{run.path}: its tokenizer or options are not those that the journal was started with")
    how = restore(setting.replica, contents, run.state)
    if contents.torn_bytes:
        say(f"cut off {contents.torn_bytes} bytes of a record that was never finished")
    say(f"resumed at position {journal.position} from {how}")
    if ended := said_of_end(contents):
        say(ended)
    run.mend_metrics(contents.records)
    return journal


def rounds_done(journal: Journal) -> int:
    """The last round that ended."""
    return max((record.round for record in journal.contents.records), default=0)
