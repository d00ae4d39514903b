"""Shared fixtures: where real data lies, a tiny model on disk, and a watch on double imports."""

import json
import os
import signal
import sys
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported, which importing a transformers model does
torch.set_num_threads(2)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and a real pretrained model, where FEDZO_SHARED names them."""
    place = os.environ.get("FEDZO_SHARED")
    if not place:
        pytest.skip("FEDZO_SHARED is not set: the real model and data are not at hand")
    return Path(place)


@pytest.fixture(scope="session")
def stories(shared) -> str:
    """A pretrained language model of 260,032 parameters."""
    return str(shared / "data" / "weights" / "stories260K")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A random Llama of a few thousand parameters with untied head, as a checkpoint directory without tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    path = tmp_path_factory.mktemp("tiny-model")
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


class Demo(NamedTuple):
    """A small pretrained model and text for four clients, at hand everywhere."""

    model: str
    data: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Demo:
    """The model that the project ships, and its generated text."""
    from fedzo_simulations.farm_text import farm_lines

    data = tmp_path_factory.mktemp("demo-data") / "farms.json"
    data.write_text(json.dumps(farm_lines(60)))
    return Demo(str(files("fedzo_simulations") / "demo_model"), str(data))


@pytest.fixture(scope="session")
def finished(demo, tmp_path_factory) -> Path:
    """A small run that was left alone; copy it before changing it."""
    from commands import fedzo, simulate_options

    out = tmp_path_factory.mktemp("finished") / "run"
    fedzo("simulate", *simulate_options(demo, out))
    return out


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """Processes of servers and clients, forked from one that has the imports done."""
    from network import Nursery

    with Nursery(tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture
def host(nursery, tmp_path):
    """Starts a server over a genesis with some rules; what it said is shown where the test failed."""
    from helpers import make_genesis
    from network import Hosted

    servers, before = [], nursery.count

    def start(clients: int = 2, *, linger_s: float = 0.0, **rules):
        genesis = make_genesis(**({"cohort": clients, "quorum": 1, "deadline_s": 30.0, "rounds": 40} | rules))
        servers.append(Hosted(nursery, tmp_path / f"run{len(servers)}", genesis, clients, linger_s))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
    print(nursery.told(before))


@pytest.fixture
def federation(nursery, demo, tmp_path):
    """Makes a federation; what still runs of it is killed, and what a failed test's processes said is shown."""
    from federation import Federation

    made, before = [], nursery.count

    def make(**options) -> Federation:
        made.append(Federation(nursery, demo, tmp_path, **options))
        return made[-1]

    yield make
    for found in made:
        found.end()
    print(nursery.told(before))


@pytest.fixture(scope="module")
def shared_run(nursery, tmp_path_factory):
    """A run in its first round, which no test ends."""
    from helpers import make_genesis
    from network import Hosted, both

    genesis = make_genesis(cohort=2, quorum=1, deadline_s=3600.0, directions=2)
    hosted = Hosted(nursery, tmp_path_factory.mktemp("shared") / "run", genesis, 2)
    clients = both(hosted)
    plan = clients[0].plan()
    clients[1].plan()
    yield hosted, clients, plan
    hosted.process.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: where files run side by side, none of them is left for the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish() -> None:
    """`server` and `fedzo_server` (and so on) are one package under two names: never both in a process."""
    for name in ("server", "client", "simulations"):
        assert not (name in sys.modules and f"fedzo_{name}" in sys.modules), f"{name} was imported under both names"
