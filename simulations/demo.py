"""`fedzo demo`: the whole idea in a minute, with nothing to download.

Four farms tune one small language model together, each on its own text, on one machine. What is printed was
measured in the run; the late joiner at the end rebuilds the model with other code, from the base and the journal.
"""

import json
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import torch
from rich.console import Console

from fedzo.checkpoint import load_base, load_tokenizer
from fedzo.errors import ReplicaError
from fedzo.estimate import Estimator
from fedzo.journal import Commit, Evaluation, read_journal
from fedzo.noise import Distribution, get_backend
from fedzo.rebuild import rebuild
from fedzo.replica import Replica
from fedzo.run_directory import RunDirectory

from .farm_text import FARMS, farm_lines
from .runner import run_simulation

ROUNDS = 80
OPTIONS = {
    "partition": "by:key",
    "clients": FARMS,
    "rounds": ROUNDS,
    "directions": 4,
    "batch_size": 16,
    "max_length": 48,
    "lr": 1e-2,
    "eval_every": 20,
}
SAMPLE_TOKENS = 26


def run_demo(out: Path | None) -> None:
    """Run the demo into a directory, a temporary one where none is given."""
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        run = out or Path(temporary) / "run"
        model = str(files("fedzo_simulations") / "demo_model")
        data = run / "farms.json"
        run.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(farm_lines(900)))
        console.print(f"{FARMS} farms tune one language model; each keeps its own sentences and sends scalars.\n")
        run_simulation({**OPTIONS, "model": model, "data": str(data), "out": str(run)}, None, resume=False)
        _show_words(console, run, model)
        _show_losses(console, run)
        _show_bytes(console, run)
        _show_late_joiner(console, run)
        if out is not None:
            console.print(f"\nthe run is in {run}: fedzo journal show {run}")


def _show_words(console: Console, run: Path, model: str) -> None:
    base = load_base(model)
    untouched = Replica.from_base(base, Distribution.RADEMACHER)
    tuned, _, _ = rebuild(RunDirectory(run), model)
    console.print()
    for name, replica in (("before", untouched), ("after", tuned)):
        console.print(f"{name}: [bold]{_sample(replica, model)}[/]")


def _sample(replica: Replica, source: str) -> str:
    """What the model says of itself, greedily from each of a few first words."""
    tokenizer = load_tokenizer(source)
    model = load_base(source).model
    estimator = Estimator(model, replica)
    torch.manual_seed(3)
    start = torch.tensor([[tokenizer.bos_token_id]])
    said = estimator.call(
        lambda: model.generate(start, max_new_tokens=SAMPLE_TOKENS, do_sample=True, top_k=0, pad_token_id=0)
    )
    text = tokenizer.decode(said[0], skip_special_tokens=True)
    return " ".join(text.split()).replace(" .", ".").replace(" ?", "?").replace(" ,", ",")


def _show_losses(console: Console, run: Path) -> None:
    records = read_journal(run / "journal").records
    losses = [record.body.loss for record in records if isinstance(record.body, Evaluation)]
    console.print(f"held-out loss of all farms: {losses[0]:.3f} before, {losses[-1]:.3f} after {ROUNDS} rounds")


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
        f"{averaging:,}, {averaging / sent:,.0f} times as much, and that grows with the model while ours does not"
    )


def _show_late_joiner(console: Console, run: Path) -> None:
    started = time.monotonic()
    replica, _, contents = rebuild(RunDirectory(run), backend=get_backend("torch"))
    stated = contents.records[-1].state_digest
    if replica.digest() != stated:
        raise ReplicaError(f"the rebuilt replica has state digest {replica.digest().hex()}, the journal another")
    console.print(
        f"a late joiner rebuilt the model from the base and the journal ({contents.valid_bytes:,} bytes) with another "
        f"backend in {time.monotonic() - started:.1f} s: state digest {replica.digest().hex()[:16]}…, equal to the bit"
    )
