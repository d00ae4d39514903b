"""`fedzo simulate --engine flower`: Flower's simulation on Ray, the bytes of the inline run, and nothing that stays."""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from commands import FEDZO, fedzo, refused, simulate_options
from engines import UnderWay, counted

from fedzo.journal import read_journal

pytestmark = pytest.mark.slow
MARK = "FEDZO_TEST_MARK"


class Simulated(UnderWay):
    """A command; every process that it starts, Ray's among them, carries a mark in its environment."""

    def __init__(self, command: list[object], out: Path) -> None:
        super().__init__(command, out, **{MARK: str(out), "OMP_NUM_THREADS": "1"})
        self._mark = f"{MARK}={out}".encode()

    def pids(self, word: bytes = b"") -> list[int]:
        """Of its processes that run, with a word in their command line."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                if (
                    state != "Z"
                    and self._mark in (place / "environ").read_bytes()
                    and word in (place / "cmdline").read_bytes()
                ):
                    found.append(int(place.name))
            except OSError:
                continue
        return found


def by_flower(demo, out: Path, **changed) -> list[object]:
    return [*FEDZO, "simulate", *simulate_options(demo, out, engine="flower", **changed)]


def test_flowers_simulation_leaves_the_run_directory_of_an_inline_run(finished, demo, tmp_path):
    out = tmp_path / "run"
    with Simulated(by_flower(demo, out), out) as run:
        said = run.said()
        assert run.returncode == 0, said
        assert run.pids() == []
    assert (out / "journal").read_bytes() == (finished / "journal").read_bytes()
    assert counted(out) == counted(finished), "what was measured is counted alike"
    assert (out / "replica.state").read_bytes() == (finished / "replica.state").read_bytes()
    digest = read_journal(out / "journal").records[-1].state_digest.hex()
    assert f"state digest {digest}" in said
    assert "round 12: held-out loss" in said
    assert len(said.splitlines()) < 20, "neither Flower nor Ray fills the terminal"
    assert digest in fedzo("simulate", "--resume", "--out", out).stderr, "nothing is left to do, so nothing starts"


COUNTED = """
import os, sys
from flwr.clientapp import ClientApp
import fedzo_simulations.ray_federation as engine
from fedzo.cli import main

place, make_app = sys.argv.pop(1), engine.virtual_app

def counted(options):
    app, inner = ClientApp(), make_app(options)

    @app.train()
    @app.evaluate()
    @app.query()
    def turn(message, context):
        import fedzo_client.virtual as virtual
        if not hasattr(virtual, "counted"):
            virtual.counted, load = True, virtual.load_base
            def load_base(*given):
                with open(place, "a") as file:
                    print(os.getpid(), file=file)
                return load(*given)
            virtual.load_base = load_base
        return inner(message, context)

    return app

engine.virtual_app = counted
main()
"""


def test_every_process_of_ray_loads_the_base_once_whatever_the_number_of_clients(demo, tmp_path):
    (tmp_path / "counted.py").write_text(COUNTED)
    options = simulate_options(demo, tmp_path / "run", engine="flower", clients=12, partition="iid", rounds=4)
    with Simulated(
        [sys.executable, tmp_path / "counted.py", tmp_path / "loads", "simulate", *options], tmp_path
    ) as run:
        said = run.said()
        assert run.returncode == 0, said
    loads = Counter((tmp_path / "loads").read_text().split())
    assert set(loads.values()) == {1}, loads
    assert len(loads) <= min(os.cpu_count(), 12)
    assert len(read_journal(tmp_path / "run" / "journal").records[2].body.reports) == 12


def test_no_process_outlives_the_run_and_it_goes_on_to_the_same_bytes(demo, tmp_path):
    """SIGTERM, Ctrl-C, and a process of Ray killed -9, one after the other, then the run to its end."""
    options = {"rounds": 60, "eval-every": 20, "attest-every": 10, "clients": 2}
    fedzo("simulate", *simulate_options(demo, tmp_path / "inline", **options))
    out = tmp_path / "flower"
    with Simulated(by_flower(demo, out, **options), out) as run:
        run.wait_for_position(3)
        run.signal(signal.SIGTERM)
        run.said()
        assert run.returncode not in (0, None)
        assert run.pids() == []
    resume = [*FEDZO, "simulate", "--resume", "--out", out]
    with Simulated(resume, out) as run:
        run.wait_for_position(read_journal(out / "journal").position + 2)
        run.signal(signal.SIGINT)
        run.said()
        assert run.returncode not in (0, None)
        assert run.pids() == []
    with Simulated(resume, out) as run:
        run.wait_for_position(read_journal(out / "journal").position + 2)
        os.kill(run.pids(b"ray::ClientAppActor")[0], signal.SIGKILL)
        assert re.search(r"client client-\d failed: .* go on with --resume", " ".join(run.said().split()))
        assert run.returncode == 1
        assert run.pids() == []
    assert not read_journal(out / "journal").records[-1].state_digest, "it had not come to its end"
    with Simulated(resume, out) as run:
        said = run.said()
        assert run.returncode == 0, said
    assert (out / "journal").read_bytes() == (tmp_path / "inline" / "journal").read_bytes()


def test_without_ray_the_engine_says_what_to_install(demo, tmp_path, monkeypatch):
    from fedzo_simulations import engines

    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "ray" else object())
    said = refused("simulate", *simulate_options(demo, tmp_path / "run", engine="flower"))
    assert "engine 'flower' needs ray, which is not installed: pip install -c constraints.txt '.[simulation]'" in said
    assert not (tmp_path / "run").exists()


def test_a_client_that_cannot_work_is_named_with_its_reason(demo, tmp_path):
    out = tmp_path / "run"
    data = tmp_path / "farms.json"
    data.write_text(Path(demo.data).read_text())
    script = tmp_path / "without_data.py"
    script.write_text(
        "import sys, os\nimport fedzo_simulations.ray_federation as engine\nfrom fedzo.cli import main\n"
        "make = engine.virtual_app\n"
        f"engine.virtual_app = lambda options: (os.unlink({str(data)!r}), make(options))[1]\nmain()\n"
    )
    options = simulate_options(demo._replace(data=str(data)), out, engine="flower")
    with Simulated([sys.executable, script, "simulate", *options], out) as run:
        said = " ".join(run.said().split())
        assert run.returncode == 1
        assert run.pids() == []
    assert re.search(r"error: client \S+ failed: .*farms.json.*; go on with --resume", said), said
