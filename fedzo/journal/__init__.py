"""The journal: a run's truth (docs/journal-format.md)."""

from fedzo.journal.file import JournalContents, read_journal
from fedzo.journal.records import (
    Calibration,
    ClientEvaluation,
    ClientReport,
    Commit,
    End,
    Enrolment,
    Entry,
    Evaluation,
    Genesis,
    Record,
    Rollback,
    Rules,
    Start,
    Task,
    Void,
)
from fedzo.journal.writer import Journal

__all__ = [
    "Calibration",
    "ClientEvaluation",
    "ClientReport",
    "Commit",
    "End",
    "Enrolment",
    "Entry",
    "Evaluation",
    "Genesis",
    "Journal",
    "JournalContents",
    "Record",
    "Rollback",
    "Rules",
    "Start",
    "Task",
    "Void",
    "read_journal",
]
