"""`fedzo simulate` and the commands on its runs, as a user runs them: real processes, real files, real kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import FEDZO, fedzo, refused, simulate_options
from fedzo_simulations.farm_text import farm_lines
from helpers import BACKENDS_HERE, backend_for_cpu
from transformers import AutoModelForCausalLM

from fedzo.journal import Rollback, read_journal
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory


def shown(run: Path) -> dict:
    return json.loads(fedzo("journal", "show", run, "--json").stdout)


def test_a_run_learns_and_says_what_it_did(finished):
    view = shown(finished)
    kinds = [record["kind"] for record in view["records"]]
    assert kinds.count("commit") == 12
    assert kinds.count("evaluation") == 4
    assert kinds[-1] == "end"
    held = [record for record in view["records"] if record["kind"] == "evaluation"]
    losses = [
        sum(c["loss"] * c["examples"] for c in r["clients"]) / sum(c["examples"] for c in r["clients"]) for r in held
    ]
    assert losses[-1] < losses[0]
    assert view["genesis"]["distribution"] == "rademacher"
    assert {"name", "shape", "exponent", "max_abs"} == set(view["genesis"]["manifest"][0])
    commit = next(record for record in view["records"] if record["kind"] == "commit")
    assert len(commit["entries"]) == 4
    assert all(isinstance(entry["seed"], str) and int(entry["coefficient"]) for entry in commit["entries"])
    assert len(view["records"][-1]["state_digest"]) == 64
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["position"] for line in metrics] == list(range(1, len(view["records"]) + 1))
    assert metrics[-1]["forwards"] > 0
    assert "end" in fedzo("journal", "show", finished).stdout


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_replay_from_the_base_gives_one_digest_on_every_backend(finished, backend):
    replica, _, contents = rebuild(RunDirectory(finished), backend=backend_for_cpu(backend))
    assert contents.records[-1].state_digest == replica.digest()


def test_the_replay_command_checks_every_digest(finished, demo):
    done = fedzo("replay", finished, "--base", demo.model)
    assert shown(finished)["records"][-1]["state_digest"] in done.stdout


@pytest.mark.parametrize("changed", [{"backend": "torch"}, {"backend": "reference"}, {"threads": 2}])
def test_the_same_scalars_give_the_same_digest_on_any_backend_and_thread_count(finished, demo, tmp_path, changed):
    """The state is exact everywhere; scalars are floats, equal where the forward runs equally (one thread count)."""
    if "threads" in changed:
        threads = [rebuild_with_threads(finished, count) for count in (1, 2)]
        assert threads[0] == threads[1]
        return
    fedzo("simulate", *simulate_options(demo, tmp_path / "run", **changed))
    assert (tmp_path / "run" / "journal").read_bytes() == (finished / "journal").read_bytes()


def rebuild_with_threads(run: Path, threads: int) -> bytes:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return rebuild(RunDirectory(run))[0].digest()
    finally:
        torch.set_num_threads(before)


def test_export_is_what_the_replica_materialises(finished, tmp_path):
    fedzo("export", finished, "--out", tmp_path / "model")
    replica, _, _ = rebuild(RunDirectory(finished))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    named = dict(model.named_parameters())
    for tensor, spec in enumerate(replica.manifest):
        parameter = named.get(spec.name)
        if parameter is None:
            parameter = model.get_parameter(spec.name)
        assert torch.equal(parameter, replica.weights(tensor))
    assert "not empty" in refused("export", finished, "--out", tmp_path / "model")


def test_rollback_appends_and_returns_to_the_exact_state(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = (run / "journal").read_bytes()
    records = shown(finished)["records"]
    known = next(record for record in records if record["kind"] == "commit" and "state_digest" in record)
    fedzo("rollback", run, "--to", known["position"])
    assert (run / "journal").read_bytes().startswith(before)
    last = shown(run)["records"][-1]
    assert last["kind"] == "rollback"
    assert last["state_digest"] == known["state_digest"]
    assert known["state_digest"] in fedzo("replay", run).stdout
    assert "positions 0 to" in refused("rollback", run, "--to", 999)


def test_drops_delays_and_a_small_cohort(demo, tmp_path):
    faults = {"cohort": 3, "quorum": 2, "drop": 0.3, "delay": 80, "deadline": 60, "rounds": 20}
    fedzo("simulate", *simulate_options(demo, tmp_path / "a", **faults))
    fedzo("simulate", *simulate_options(demo, tmp_path / "b", **faults))
    contents = read_journal(tmp_path / "a" / "journal")
    kinds = [type(record.body).__name__ for record in contents.records]
    reported = {len(r.body.reports) for r in contents.records if type(r.body).__name__ == "Commit"}
    assert "Void" in kinds
    assert reported == {2, 3}
    assert contents.hashes == read_journal(tmp_path / "b" / "journal").hashes


def test_a_learning_rate_far_too_high_is_rolled_back_and_the_run_goes_on(demo, tmp_path):
    done = fedzo("simulate", *simulate_options(demo, tmp_path / "run", lr=3.0, rounds=40, **{"eval-every": 10}))
    contents = read_journal(tmp_path / "run" / "journal")
    backs = [record.body for record in contents.records if isinstance(record.body, Rollback)]
    assert backs
    assert "rolled back" in done.stderr
    rates = [record.body.learning_rate for record in contents.records if type(record.body).__name__ == "Commit"]
    assert rates[-1] < 3.0 * 0.5 ** len(backs)
    replica, _, _ = rebuild(RunDirectory(tmp_path / "run"))
    assert replica.digest() == contents.records[-1].state_digest
    fedzo("simulate", *simulate_options(demo, tmp_path / "off", lr=3.0, rounds=40, guard=0))
    assert not any(isinstance(r.body, Rollback) for r in read_journal(tmp_path / "off" / "journal").records)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_compute_keeps_the_exact_state(demo, tmp_path, dtype):
    fedzo("simulate", *simulate_options(demo, tmp_path / "run", dtype=dtype, rounds=3))
    fedzo("replay", tmp_path / "run")


def test_local_steps_gaussian_directions_and_a_separate_file_to_evaluate(demo, tmp_path):
    changed = {"local-steps": 3, "directions": 2, "distribution": "gaussian", "eval-data": demo.data, "rounds": 3}
    fedzo("simulate", *simulate_options(demo, tmp_path / "run", **changed))
    commits = [r.body for r in read_journal(tmp_path / "run" / "journal").records if type(r.body).__name__ == "Commit"]
    assert all(len(commit.entries) == 4 * 3 * 2 for commit in commits)
    fedzo("replay", tmp_path / "run")


# ── kills ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_killed_ten_times_and_resumed_is_the_run_left_alone(demo, tmp_path):
    options = {"rounds": 60, "batch-size": 8, "attest-every": 3}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    started = time.monotonic()
    fedzo("simulate", *simulate_options(demo, alone, **options))
    whole_s = time.monotonic() - started
    chance = random.Random(7)
    kills = 0
    for _ in range(40):
        resume = ["--resume", "--out", str(killed)] if (killed / "journal").exists() else None
        process = subprocess.Popen(
            [*FEDZO, "simulate", *(resume or simulate_options(demo, killed, **options))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            wait_for_progress(killed, process)
            process.wait(timeout=chance.uniform(0, whole_s / 30) if kills < 10 else 600)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert kills == 10
    assert (killed / "journal").read_bytes() == (alone / "journal").read_bytes()
    assert shown(killed)["records"][-1]["state_digest"] == shown(alone)["records"][-1]["state_digest"]
    positions = [json.loads(line)["position"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert positions == list(range(1, len(shown(alone)["records"]) + 1))


def wait_for_progress(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the process has written to its journal, so that a kill comes while it works."""
    journal = run / "journal"
    size = journal.stat().st_size if journal.exists() else 0
    while process.poll() is None and (not journal.exists() or journal.stat().st_size == size):
        time.sleep(0.005)


def test_what_is_measured_runs_on_over_a_kill(demo, tmp_path):
    """Forwards and bytes at the end are those of the run left alone, less the work whose lines the kill has cost."""
    options = {"rounds": 40, "eval-every": 10}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    fedzo("simulate", *simulate_options(demo, alone, **options))
    process = subprocess.Popen([*FEDZO, "simulate", *simulate_options(demo, killed, **options)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while process.poll() is None and len(metrics_of(killed)) < 10:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = metrics_of(killed)
    (killed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before[:-2]) + '{"posit')
    fedzo("simulate", "--resume", "--out", killed)
    whole, resumed = metrics_of(alone), metrics_of(killed)
    assert len(whole) == len(resumed)
    mended = [line["position"] for line in resumed if "forwards" not in line]
    assert mended[:2] == [len(before) - 1, len(before)]
    assert len(mended) <= 3, "the kill itself costs one line at most"
    for figure in ("forwards", "bytes_up", "bytes_down"):
        lost = sum(whole[p - 1][figure] - whole[p - 2][figure] for p in mended)
        assert resumed[-1][figure] == whole[-1][figure] - lost
    seconds = [line["seconds"] for line in resumed if "seconds" in line]
    assert seconds == sorted(seconds)
    assert seconds[len(before) - 2] > before[-3]["seconds"]


def metrics_of(run: Path) -> list[dict]:
    """The whole lines of a run's metrics, read while they may be written."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return [json.loads(line) for line in lines]


def test_a_dirty_or_missing_state_file_is_rebuilt_from_the_journal(finished, tmp_path):
    run = tmp_path / "run"
    for damage in ("dirty", "missing"):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished, run)
        if damage == "missing":
            (run / "replica.state").unlink()
        else:
            content = bytearray((run / "replica.state").read_bytes())
            content[5000] ^= 1
            (run / "replica.state").write_bytes(content)
        done = fedzo("simulate", "--resume", "--out", run)
        assert "from the base and the journal" in done.stderr
        assert shown(finished)["records"][-1]["state_digest"] in done.stderr


# ── refusals: the offending name, and nothing half-written ──────────────────────────────────────────


def test_an_unknown_option_in_the_config_names_the_nearest(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("learning-rte = 1\n")
    assert "'learning-rte' is unknown" in refused("simulate", "--config", config, "--out", tmp_path / "run")
    config.write_text("bath_size = 1\n")
    assert "'batch-size'" in refused("simulate", "--config", config, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        (
            {"lr": "auto", "rounds": 3},
            [
                "method distinct, 1 direction a client: 3 rounds of 4 clients, learning rate auto, found before the "
                "first, schedule linear",
                "round 0: held-out loss",
                "round 0: calibrated, learning rate",
            ],
        ),
        (
            {"buffer": 2, "rounds": 1, "directions": 3, "schedule": "constant"},
            [
                "method distinct, 3 directions a client: 1 commit of 2 reports, learning rate 0.005, schedule constant",
                "round 0: held-out loss",
            ],
        ),
    ],
)
def test_a_run_says_what_it_will_do_before_it_does_it(given, begins, demo, tmp_path):
    lines = fedzo("simulate", *simulate_options(demo, tmp_path / "run", **given)).stderr.splitlines()
    said = ["model", "partition by:key, seed 0: training examples", *begins]
    for line, begin in zip(lines[: len(said)], said, strict=True):
        assert line.startswith(begin)


def test_the_demo_does_not_mix_with_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty; give a new directory" in refused("demo", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_options_in_a_file_and_on_the_command_line_are_the_same(demo, finished, tmp_path):
    names = simulate_options(demo, tmp_path / "run")
    config = tmp_path / "run.toml"
    values = {name.removeprefix("--"): value for name, value in zip(names[::2], names[1::2], strict=True)}
    numbers = ("clients", "rounds", "batch-size", "max-length", "lr", "eval-every", "attest-every", "threads")
    config.write_text("".join(f"{k} = {v if k in numbers else json.dumps(v)}\n" for k, v in values.items()))
    fedzo("simulate", "--config", config)
    assert (tmp_path / "run" / "journal").read_bytes() == (finished / "journal").read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "nonsense"}, "method 'nonsense' is unknown"),
        ({"device": "gpu"}, "device 'gpu' is unknown; choose cpu, cuda, cuda:N or auto"),
        ({"scope": "loras"}, "scope 'loras' is unknown"),
        (
            {"task": "classification"},
            "task 'classification' needs options prompt, label-field, labels (which a simulation finds in its data)",
        ),
        ({"task": "classification", "prompt": "{text} so"}, "task 'classification' needs options label-field, labels"),
        ({"task": "instruction"}, "task 'instruction' needs options prompt, response"),
        ({"task": "instruction", "response": "{text}"}, "task 'instruction' needs option prompt"),
        (
            {"task": "sequence-classification"},
            "task 'sequence-classification' needs options label-field, labels (which",
        ),
        ({"task": "translation"}, "task 'translation' is unknown; choose one of: lm, instruction"),
        ({"prompt": "{text}"}, "option prompt is '{text}', but task 'lm' has no use for it"),
        ({"task": "instruction", "prompt": "{text!r}", "response": "{key}"}, "must be a field's name"),
        ({"task": "instruction", "prompt": "{question}", "response": "{key}"}, "no field 'question'; it has"),
        ({"pool-size": 8}, "option pool-size is 8, but method 'distinct' has no use for it; leave it 0"),
        (
            {"method": "fzoo", "directions": 1},
            "option directions is 1, but method 'fzoo' divides by the spread of several losses",
        ),
        ({"method": "momentum", "momentum-window": 1, "momentum-decay": 0.9}, "option momentum-window is 1, which is"),
        ({"momentum-decay": 1.5}, "option momentum-decay is 1.5; expected 0 to 1"),
        ({"warmup": 13}, "option warmup is 13; expected 0 to 12"),
        ({"schedule": "square"}, "schedule 'square' is unknown; choose one of: constant, linear, cosine"),
        ({"cohort": 9}, "cohort is 9; expected 0 to 4"),
        ({"clients": 0}, "clients is 0"),
        ({"lr": "nan"}, "lr is nan"),
        ({"epsilon": 0}, "epsilon is 0"),
        ({"eval-data": "every:1"}, "every:N"),
        ({"partition": "by:nothing"}, "'nothing'"),
        ({"partition": "random"}, "partition 'random' is unknown"),
        ({"clients": 50}, "leaves client 4 of 50 without any"),
        ({"text-field": "text", "data": "nowhere.json"}, "nowhere.json"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_bad_values_are_refused_by_name(demo, tmp_path, changed, message):
    assert message in refused("simulate", *simulate_options(demo, tmp_path / "run", **changed))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["simulate", "server", "plan-memory", "evaluate", "generate"])
def test_a_hub_name_that_is_not_at_hand_and_cannot_be_fetched_is_told_apart(command, demo, tmp_path):
    """Offline, with a cache that is empty or has the config alone."""
    name, cache = "someorg/some-model", tmp_path / "hub"
    given = {
        "simulate": simulate_options(demo, tmp_path / "run", model=name),
        "server": ["--model", name, "--insecure", "--out", tmp_path / "run"],
        "plan-memory": ["--model", name],
        "evaluate": [name, "--data", demo.data],
        "generate": [name, "--prompt", "the"],
    }[command]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    said = refused(command, *given, env=offline)
    assert "is neither a directory here nor a model in the hub's cache, and cannot be fetched" in said
    assert "give a checkpoint's directory, or fetch it where there is a network: hf download someorg/some-model" in said
    if command == "simulate":
        snapshot = cache / "models--someorg--some-model" / "snapshots" / "1"
        shutil.copytree(demo.model, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
        (refs := snapshot.parents[1] / "refs").mkdir()
        (refs / "main").write_text("1")
        assert "model.safetensors is not in the hub's cache and cannot be" in refused(command, *given, env=offline)
    assert not (tmp_path / "run").exists()


def test_a_path_that_is_no_directory_is_not_looked_for_on_the_hub(demo, tmp_path):
    for place in (str(tmp_path / "nowhere"), "./nowhere"):
        message = refused("simulate", *simulate_options(demo, tmp_path / "run", model=place))
        assert f"'{place}': there is no such directory" in message


def test_a_backend_that_this_machine_cannot_run_is_refused(demo, tmp_path):
    without_gpu = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    without_gpu["CUDA_VISIBLE_DEVICES"] = ""
    options = simulate_options(demo, tmp_path / "run", backend="triton")
    assert "noise backend 'triton' needs" in refused("simulate", *options, env=without_gpu)
    assert "noise backend 'cuda' is unknown" in refused("simulate", *options, "--backend", "cuda")
    assert not (tmp_path / "run").exists()


def test_a_row_without_the_text_field_is_refused_by_line(demo, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "the cat is here."}\n{"txt": "the dog is there."}\n')
    message = refused("simulate", *simulate_options(demo, tmp_path / "run", data=data, clients=1, partition="iid"))
    assert "line 2: no field 'text'; it has 'txt'" in message
    assert not (tmp_path / "run").exists()


def test_a_run_directory_of_another_base_is_refused(demo, finished, tmp_path):
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(demo.model)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(demo.model) / name, other / name)
    before = (finished / "journal").read_bytes()
    assert "was made from base" in refused("replay", finished, "--base", other)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = (run / "config.toml").read_text().replace(str(demo.model), str(other))
    (run / "config.toml").write_text(config)
    assert "was made from base" in refused("simulate", "--resume", "--out", run)
    assert (finished / "journal").read_bytes() == before == (run / "journal").read_bytes()


def test_a_run_is_not_overwritten_nor_resumed_with_other_options(demo, finished):
    before = (finished / "journal").read_bytes()
    assert "holds a run already" in refused("simulate", *simulate_options(demo, finished))
    message = refused("simulate", "--resume", *simulate_options(demo, finished, lr=1.0))
    assert "--lr is 1.0, but" in message
    assert (finished / "journal").read_bytes() == before


def test_a_run_that_has_ended_is_resumed_to_say_so_and_changes_nothing(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    done = fedzo("simulate", "--resume", "--out", run)
    end = read_journal(run / "journal").records[-1]
    assert f"the run has ended at position 18, round 12, state digest {end.state_digest.hex()}" in done.stderr
    assert (run / "journal").read_bytes() == (finished / "journal").read_bytes()


def test_a_run_that_was_rolled_back_after_its_end_says_both(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    fedzo("rollback", run, "--to", 5)
    done = fedzo("simulate", "--resume", "--out", run)
    assert isinstance(read_journal(run / "journal").records[19 - 1].body, Rollback)
    assert "the run has ended at position 18," in done.stderr
    assert "; record 19 has since returned it to the state of position 5" in done.stderr


def test_a_flipped_byte_in_the_journal_is_named_by_every_command(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    content = bytearray((run / "journal").read_bytes())
    content[len(content) // 2] ^= 4
    (run / "journal").write_bytes(content)
    for command in (["journal", "show", run], ["replay", run], ["simulate", "--resume", "--out", run]):
        message = refused(*command)
        assert "record" in message
        assert "damaged" in message
    assert (run / "journal").read_bytes() == content


def test_a_torn_last_record_is_cut_off_and_said(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    content = (run / "journal").read_bytes()
    (run / "journal").write_bytes(content[:-10])
    done = fedzo("simulate", "--resume", "--out", run)
    assert "cut off" in done.stderr
    assert (run / "journal").read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_while_committing_leaves_a_whole_journal(demo, finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    room = (finished / "journal").stat().st_size * 3 // 4 + 8192
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        message = refused("simulate", *simulate_options(demo, disk / "run"))
        assert "No space left on device" in message
        assert "free space and resume" in message
        contents = read_journal(disk / "run" / "journal")
        assert contents.torn_bytes == 0
        subprocess.run(["mount", "-o", "remount,size=64M", disk], check=True)
        fedzo("simulate", "--resume", "--out", disk / "run")
        assert (disk / "run" / "journal").read_bytes() == (finished / "journal").read_bytes()
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_thousand_clients_take_the_memory_of_two(demo, tmp_path):
    data = tmp_path / "lines.txt"
    data.write_text("".join(f"{line}\n" for farm in farm_lines(1000).values() for line in farm))
    peaks = {}
    for clients in (2, 1000):
        changed = {"clients": clients, "cohort": 2, "partition": "iid", "rounds": 5, "data": data}
        options = simulate_options(demo, tmp_path / str(clients), **changed)
        process = subprocess.Popen([*FEDZO, "simulate", *options], stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        peaks[clients] = usage.ru_maxrss
    assert peaks[1000] <= 1.2 * peaks[2]
