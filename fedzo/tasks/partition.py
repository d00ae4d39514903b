"""Which client holds which rows: `iid`, or `by:FIELD`. A pure function of the rows and the run's seed."""

from collections.abc import Sequence

from fedzo.errors import ConfigError, DataError
from fedzo.noise.draws import partition_order
from fedzo.tasks.rows import Row

Shares = list[list[Row]]


def partition(rows: Sequence[Row], clients: int, how: str, run_seed: int) -> Shares:
    """Deal rows to clients.

    `iid`: a seeded permutation, dealt round-robin. `by:FIELD`: rows with one value of the field stay together; the
    groups are dealt round-robin by their amount of text, largest first (equal ones by value).

    Raises:
        ConfigError: unknown rule.
        DataError: a row lacks the field, or a client would hold nothing.
    """
    if how == "iid":
        order = partition_order(run_seed, len(rows)).tolist()
        shares = [[rows[k] for k in sorted(order[client::clients])] for client in range(clients)]
    elif how.startswith("by:") and len(how) > len("by:"):
        groups = _groups(rows, how.removeprefix("by:"))
        shares = [[] for _ in range(clients)]
        for turn, group in enumerate(groups):
            shares[turn % clients] += group
    else:
        raise ConfigError(f"partition {how!r} is unknown; choose iid, or by:FIELD with a field of the data")
    for client, share in enumerate(shares):
        if not share:
            raise DataError(
                f"partition {how!r} of {len(rows)} rows leaves client {client} of {clients} without any; "
                "use fewer clients or more data"
            )
    return shares


def hold_out(share: Sequence[Row], every: int, field: str | None) -> tuple[list[Row], list[Row]]:
    """Split a share into training rows and held-out rows: rows `every`, 2·`every`, … of each group are held out."""
    seen: dict[str, int] = {}
    training: list[Row] = []
    held: list[Row] = []
    for row in share:
        group = "" if field is None else str(row.fields.get(field))
        seen[group] = seen.get(group, 0) + 1
        (held if seen[group] % every == 0 else training).append(row)
    return training, held


def _groups(rows: Sequence[Row], field: str) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        if field not in row.fields:
            raise DataError(
                f"row {number} has no field {field!r} to partition by; it has "
                f"{', '.join(map(repr, row.fields)) or 'none'}"
            )
        groups.setdefault(str(row.fields[field]), []).append(row)
    return [groups[v] for v in sorted(groups, key=lambda v: (-sum(len(row.text) for row in groups[v]), v))]
