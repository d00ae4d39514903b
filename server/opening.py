"""A run's journal on the server: opened again, or begun with what the options make of the base."""

from fedzo.config import write_toml
from fedzo.journal import Genesis, Journal
from fedzo.options.run import RunOptions
from fedzo.run_directory import RunDirectory


def open_journal(run: RunDirectory, options: RunOptions, *, resume: bool) -> Journal:
    """The run's journal, open for writing.

    Raises:
        FedzoError: base, options or journal cannot be used; by name.
    """
    if resume:
        return Journal.open(run.journal)
    genesis = _genesis(options)
    with run.exclusive():
        run.require_new()
        write_toml(run.config, options)
        return Journal.create(run.journal, genesis)


def _genesis(options: RunOptions) -> Genesis:
    """Needs the base once, for its digest and manifest; afterwards the server holds no weights."""
    from fedzo.base.checkpoint import head_of, load_base, load_tokenizer, tokenizer_digest  # noqa: PLC0415
    from fedzo.base.quantise import describe_model  # noqa: PLC0415
    from fedzo.coordinator.range_guard import RangeGuard  # noqa: PLC0415
    from fedzo.scopes.base import scoped  # noqa: PLC0415

    task = options.task_spec(tokenizer_digest(load_tokenizer(options.model)), options.labels)
    base = scoped(load_base(options.model, head_of(task, options.seed)), options.scope_spec(), options.seed)
    manifest = describe_model(base.model)
    genesis = options.genesis(base.digest, manifest, task)
    RangeGuard(genesis.manifest, genesis.distribution, genesis.scope).check_perturbation(genesis.rules.epsilon)
    return genesis
