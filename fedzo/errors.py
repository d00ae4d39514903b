"""The errors that fedzo raises, one tree.

    FedzoError
    ├── ConfigError            an option is unknown, out of range or not built yet
    ├── DataError              a data file lacks a field, holds no text, leaves a client without examples
    ├── CheckpointError        the base cannot be represented: NaN, complex, too large, missing tensors
    ├── BaseMismatchError      a journal, state file or artifact belongs to another base
    ├── RangeGuardError        a record would leave the range in which the integers are exact
    ├── EstimationError        a forward used a weight that was not in place, or gave no scalar loss
    ├── ReplicaError           a replica is at another position, or lacks the digest that a record states
    ├── StateFileError         a client's state file is dirty, torn or damaged (rebuild from base + journal)
    ├── ArtifactError          not an artifact, of another format version, or a byte does not verify
    ├── ProtocolError          a message that must not count
    │   ├── HandshakeError       a client is not of this run, or of another version
    │   └── JournalBehindError   a client holds a record that the server's journal lacks
    ├── ServerUnreachableError the server did not answer for longer than a client waits
    ├── MemoryLimitError       a client has taken more memory than it was allowed
    ├── ProcessError           a server or client that was started here ended early, or did not get ready
    └── JournalError
        ├── JournalFormatError   not a journal, or of another format version
        ├── JournalDamageError   bytes before the end do not verify; never skipped
        ├── ExcerptError         a record is asked for that a copy which began late does not have
        ├── JournalLockedError   another process writes to it
        └── JournalWriteError    the disk refused an append; the journal is as it was

A message names the offending thing, the value seen, the value expected and what to do.
"""


class FedzoError(Exception):
    """Base of every error that fedzo raises on purpose; the command line prints it without a traceback."""


class ConfigError(FedzoError):
    """An option is unknown, out of range, or names something that is not built yet."""


class DataError(FedzoError):
    """Training or evaluation data cannot be used as given."""


class CheckpointError(FedzoError):
    """A base checkpoint cannot be turned into a replica."""


class BaseMismatchError(FedzoError):
    """A journal, a state file or an artifact was made from another base checkpoint."""


class RangeGuardError(FedzoError):
    """Entries would leave the range in which the fixed-point state is exact (docs/numerics.md, "Range guard")."""


class EstimationError(FedzoError):
    """A forward pass did not do what estimation relies on."""


class ReplicaError(FedzoError):
    """A replica is not where it should be, or does not have the digest or maxima that a record states."""


class StateFileError(FedzoError):
    """A state file cannot be trusted; the replica is to be rebuilt from base and journal."""


class ArtifactError(FedzoError):
    """The file is not an artifact, is one of another format version, or is not as it was written."""


class ProtocolError(FedzoError):
    """A report or request that the coordinator refuses; nothing was changed by it."""


class HandshakeError(ProtocolError):
    """A client that does not belong to the run, follows another version, or may not come in."""


class JournalBehindError(ProtocolError):
    """The server's journal lacks a record that a client holds: records were lost, and nothing may be planned."""


class ServerUnreachableError(FedzoError):
    """A server could not be reached for as long as the client was told to try."""


class MemoryLimitError(FedzoError):
    """A process has taken more memory than it may."""


class ProcessError(FedzoError):
    """A process that was started here ended before it should, or did not do in time what it was started for."""


class JournalError(FedzoError):
    """Base of the journal's errors."""


class JournalFormatError(JournalError):
    """The file is not a journal, or is one of another format version."""


class JournalDamageError(JournalError):
    """A byte of the journal does not verify. Nothing is skipped: restore the file from a copy."""


class ExcerptError(JournalError):
    """A copy that begins with totals does not reach back far enough; the whole journal is with the run's server."""


class JournalLockedError(JournalError):
    """Another process holds the journal open for writing."""


class JournalWriteError(JournalError):
    """An append failed; the journal was put back to its length before it."""
