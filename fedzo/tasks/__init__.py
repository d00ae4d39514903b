"""Tasks: from data files to batches and losses."""

from fedzo.errors import ConfigError

TASKS = ("lm",)
_PLANNED = ("instruction", "classification")


def check_task(name: str) -> None:
    """Raises ConfigError for a task that is unknown or not built yet."""
    if name not in TASKS:
        what = "is not built yet" if name in _PLANNED else "is unknown"
        raise ConfigError(f"task {name!r} {what}; choose one of: {', '.join(TASKS)}")
