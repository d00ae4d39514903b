"""Which client holds which rows: `iid`, `by:FIELD`, or `dirichlet:FIELD:ALPHA`.

The first two are a pure function of the rows and the run's seed; the third is flwr-datasets' partitioner, seeded
from it.
"""

from collections.abc import Sequence

from fedzo.errors import ConfigError, DataError
from fedzo.noise.draws import partition_order, partitioner_seed
from fedzo.tasks.rows import Row

Shares = list[list[Row]]
HELD_OUT_RULE = "every:"


def partition(rows: Sequence[Row], clients: int, how: str, run_seed: int) -> Shares:
    """Deal rows to clients.

    `iid`: a seeded permutation, dealt round-robin. `by:FIELD`: rows with one value of the field stay together; the
    groups are dealt round-robin by their amount of text, largest first (equal ones by value). `dirichlet:FIELD:ALPHA`:
    each client's mix of the field's values is drawn from a Dirichlet distribution (Hsu et al. 2019); the smaller α, the
    more the clients differ.

    Raises:
        ConfigError: unknown rule, or flwr-datasets is needed and not installed.
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
    elif how.startswith("dirichlet:"):
        shares = _dirichlet(rows, clients, how, run_seed)
    else:
        raise ConfigError(
            f"partition {how!r} is unknown; choose iid, by:FIELD with a field of the data, or dirichlet:FIELD:ALPHA"
        )
    for client, share in enumerate(shares):
        if not share:
            raise DataError(
                f"partition {how!r} of {len(rows)} rows leaves client {client} of {clients} without any; "
                "use fewer clients or more data"
            )
    return shares


def held_out_every(eval_data: str) -> int | None:
    """N of `every:N`; None where held-out data is given otherwise, as a source or `none`.

    Raises:
        ConfigError: N is not 2 or more.
    """
    if not eval_data.startswith(HELD_OUT_RULE):
        return None
    every = eval_data.removeprefix(HELD_OUT_RULE)
    if not every.isdigit() or int(every) < 2:
        raise ConfigError(f"option eval-data is {eval_data!r}; give every:N with N of 2 or more, a source, or none")
    return int(every)


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


def _dirichlet(rows: Sequence[Row], clients: int, how: str, run_seed: int) -> Shares:
    try:
        from datasets import Dataset  # noqa: PLC0415 - an extra
        from flwr_datasets.partitioner import DirichletPartitioner  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"partition {how!r} needs the package flwr-datasets: pip install -c constraints.txt '.[data]'"
        ) from error
    field, _, alpha = how.removeprefix("dirichlet:").rpartition(":")
    try:
        partitioner = DirichletPartitioner(
            clients,
            partition_by="value",
            alpha=float(alpha),
            min_partition_size=1,
            self_balancing=False,
            seed=partitioner_seed(run_seed),
        )
        partitioner.dataset = Dataset.from_dict({"value": _values(rows, field), "row": list(range(len(rows)))})
        return [[rows[k] for k in sorted(partitioner.load_partition(c)["row"])] for c in range(clients)]
    except ValueError as error:
        raise ConfigError(f"partition {how!r} cannot be made: {error}") from error


def _values(rows: Sequence[Row], field: str) -> list[str]:
    """A field of every row, as text."""
    for number, row in enumerate(rows):
        if field not in row.fields:
            raise DataError(
                f"row {number} has no field {field!r} to partition by; it has "
                f"{', '.join(map(repr, row.fields)) or 'none'}"
            )
    return [str(row.fields[field]) for row in rows]


def _groups(rows: Sequence[Row], field: str) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row, value in zip(rows, _values(rows, field), strict=True):
        groups.setdefault(value, []).append(row)
    return [groups[v] for v in sorted(groups, key=lambda v: (-sum(len(row.text) for row in groups[v]), v))]
