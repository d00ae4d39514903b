"""`fedzo demo`: the whole idea in a minute, with nothing to download.

Four farms tune one small language model together, each on its own text, on one machine. What is printed was
measured in the run; the late joiner at the end rebuilds the model with other code, from the base and the journal.
"""

import json
import shutil
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from fedzo.errors import ReplicaError
from fedzo.journal import Commit, Evaluation, read_journal
from fedzo.noise import get_backend
from fedzo.results.export import check_export
from fedzo.results.generate import continuation, load_target
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory

from .farm_text import FARMS, farm_lines
from .runner import run_simulation

ROUNDS = 80
OPTIONS = {
    "partition": "by:key",
    "clients": FARMS,
    "rounds": ROUNDS,
    "method": "distinct",
    "directions": 4,
    "batch_size": 16,
    "max_length": 48,
    "lr": 1e-2,
    "eval_every": 20,
}
SAMPLE_TOKENS, SAMPLE_SEED = 26, 3


def run_demo(out: Path | None) -> None:
    """Run the demo in a directory: `model` is the base, `farms.json` the text, `run` the run.

    Args:
        out: new or empty; a temporary one where not given.

    Raises:
        ConfigError: the directory holds something already.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "demo" if out is None else out
        check_export(place)
        model, data, run = place / "model", place / "farms.json", place / "run"
        shutil.copytree(str(files("fedzo_simulations") / "demo_model"), model)
        data.write_text(json.dumps(farm_lines(900)))
        console.print(f"{FARMS} farms tune one language model; each keeps its own sentences and sends scalars.")
        run_simulation({**OPTIONS, "model": str(model), "data": str(data), "out": str(run)}, None, resume=False)
        console.print(f"\nbefore: {_sample(model)}")
        console.print(f"after:  {_sample(run)}")
        _show_losses(console, run)
        _show_bytes(console, run)
        _show_late_joiner(console, run)
        if out is not None:
            console.print(f"\nkept: the base in {model}, the text in {data}, the run in {run}")
            console.print(f"look at the run: fedzo journal show {run}")
        else:
            console.print("\nnothing was kept; with --out DIR the model, the text and the run are (docs/tutorial.md)")


def _sample(target: Path) -> str:
    """What a model says of itself, drawn from no prompt."""
    model, tokenizer = load_target(str(target))
    text = continuation(model, tokenizer, "", max_new_tokens=SAMPLE_TOKENS, temperature=1.0, seed=SAMPLE_SEED)
    return " ".join(text.split()).replace(" .", ".").replace(" ?", "?").replace(" ,", ",")


def _show_losses(console: Console, run: Path) -> None:
    records = read_journal(run / "journal").records
    losses = [record.body.loss for record in records if isinstance(record.body, Evaluation)]
    console.print(
        f"held-out loss of all farms: {losses[0]:.3f} nats a token before, {losses[-1]:.3f} after {ROUNDS} rounds"
    )


def _show_bytes(console: Console, run: Path) -> None:
    """What crossed the network, beside what sending weights would have: 4 bytes a parameter, there and back."""
    contents = read_journal(run / "journal")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    rounds = sum(isinstance(record.body, Commit) for record in contents.records)
    parameters = contents.genesis.manifest.elements
    sent = last["bytes_up"] + last["bytes_down"]
    averaging = 2 * 4 * parameters * FARMS * rounds
    console.print(
        f"sent and received by all farms: {sent:,} bytes; federated averaging of {parameters:,} float32 parameters: "
        f"{averaging:,} bytes, {averaging / sent:,.0f} times as much, and that grows with the model while ours does not"
    )


def _show_late_joiner(console: Console, run: Path) -> None:
    """Other code than the run's: replay from the journal alone, on another backend."""
    started = time.monotonic()
    replica, _, contents = rebuild(RunDirectory(run), backend=get_backend("torch"))
    stated = contents.records[-1].state_digest
    if replica.digest() != stated:
        raise ReplicaError(f"the rebuilt replica has state digest {replica.digest().hex()}, the journal another")
    console.print(
        f"a late joiner rebuilt the model from the base and the journal ({contents.valid_bytes:,} bytes) with another "
        f"backend in {time.monotonic() - started:.1f} s: state digest {replica.digest().hex()[:16]}…, equal to the bit"
    )
