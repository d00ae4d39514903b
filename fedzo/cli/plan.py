"""`fedzo plan-memory`: what a run would take here, or within limits, from the model's config alone."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan-memory")(plan_memory)


def plan_memory(
    model: Annotated[str, typer.Option("--model", help="Directory or hub name with a config; weights are not needed.")],
    host_memory: Annotated[
        str, typer.Option("--host-memory", help="Memory that may be taken, as 16GB or 16GiB; by default what is free.")
    ] = "",
    device_memory: Annotated[
        str, typer.Option("--device-memory", help="Memory of a GPU that the forward would run on, likewise.")
    ] = "",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Examples of a batch.")] = 16,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens of an example.")] = 128,
    state: Annotated[
        str,
        typer.Option(
            "--state",
            help="As of `fedzo simulate`: host, disk, device (the GPU of --device-memory, else as host), or auto, "
            "which takes no GPU into account.",
        ),
    ] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="As of `fedzo simulate`.")] = "float32",
    compute_copy: Annotated[str, typer.Option("--compute-copy", help="As of `fedzo simulate`.")] = "none",
    copy_state: Annotated[str, typer.Option("--copy-state", help="As of `fedzo simulate`.")] = "same",
    directions_per_pass: Annotated[int, typer.Option("--directions-per-pass", help="As of `fedzo simulate`.")] = 1,
    directory: Annotated[
        Path, typer.Option("--dir", help="On the disk that a run would use; its speed counts.")
    ] = Path(),
    threads: Annotated[int, typer.Option("--threads", help="CPU threads; 0 takes all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show where the planes of a run would go, the memory that they take, and the time of a step.

    Activations are those of the model's own code, run without values. Rates are measured here, in a few seconds.
    """
    import torch

    from fedzo.errors import ConfigError
    from fedzo.estimate.estimator import LANES, largest_layer
    from fedzo.options.checks import require_choice, require_range
    from fedzo.plan.forward import outline
    from fedzo.plan.machine import measure_machine
    from fedzo.plan.memory import Asked, process_bytes, step_seconds
    from fedzo.plan.memory import plan_memory as plan
    from fedzo.tiers import COPIES, SAME, TIERS, copy_tier
    from fedzo.tiers.choice import free_bytes

    require_choice("state", state, TIERS)
    require_choice("dtype", dtype, _TYPES)
    require_choice("compute-copy", compute_copy, COPIES)
    require_choice("copy-state", copy_state, (SAME, *TIERS))
    for name, number in (("batch-size", batch_size), ("directions-per-pass", directions_per_pass)):
        require_range(name, number, 1, 2**16)
    require_range("max-length", max_length, 2, 2**24)
    require_range("threads", threads, 0, 2**16)
    if not directory.is_dir():
        raise ConfigError(
            f"option dir is {str(directory)!r}, which is no directory; name one on the disk that a run uses"
        )
    allowed = _bytes("host-memory", host_memory) if host_memory else float(free_bytes())
    device = _bytes("device-memory", device_memory) if device_memory else None
    where = torch.device("cpu" if device is None else "cuda")
    found = outline(model, batch_size, max_length, largest_layer(where, LANES * directions_per_pass))
    asked = Asked(
        state=state,
        copy_state=copy_tier(copy_state, state),
        device_apart=device is not None,
        compute_copy=compute_copy,
        dtype_bytes=_TYPES[dtype],
        directions_per_pass=directions_per_pass,
    )
    made = plan(found.shapes, found.blocks, found.forward, asked, process_bytes=process_bytes(), free_bytes=allowed)
    machine = measure_machine(directory, threads or os.cpu_count() or 1)
    facts: dict[str, Any] = {
        "model": model,
        "plan": asdict(made) | {"peak_bytes": made.peak_bytes},
        "forward": asdict(found.forward),
        "machine": asdict(machine),
        "seconds": step_seconds(made, found.forward, machine, asked),
        "host_bytes": allowed,
        "fits_host": made.peak_bytes <= allowed,
    }
    if device is not None:
        facts |= {"device_bytes": device, "fits_device": made.device_bytes <= device}
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join(_lines(facts)))


def _bytes(option: str, text: str) -> float:
    from fedzo.errors import ConfigError

    for unit, size in _UNITS.items():
        number = text.removesuffix(unit).strip()
        if text.endswith(unit) and number.replace(".", "", 1).isdigit():
            return float(number) * size
    raise ConfigError(f"option {option} is {text!r}; expected a number and a unit, as 16GB or 16GiB")


def _lines(facts: dict[str, Any]) -> list[str]:
    plan, seconds, machine = facts["plan"], facts["seconds"], facts["machine"]
    names = {
        "process_bytes": "the interpreter and its libraries",
        "state_bytes": f"the state, on tier {plan['state_tier']}",
        "copy_bytes": f"the compute copy, on tier {plan['copy_tier']}",
        "ring_bytes": "buffers of what is streamed",
        "scratch_bytes": "weights of a block, for both lanes of a direction",
        "activation_bytes": "activations",
        "peak_bytes": "at most together",
        "disk_bytes": "on disk",
    }
    said = [f"{facts['model']}: {plan['elements']:,} weights"]
    said += [f"{plan[name] / 1e6:>12,.0f} MB  {text}" for name, text in names.items()]
    said.append(f"{'it fits' if facts['fits_host'] else 'IT DOES NOT FIT'} into {facts['host_bytes'] / 1e6:,.0f} MB")
    if "device_bytes" in facts:
        fits = "would fit" if facts["fits_device"] else "WOULD NOT FIT"
        said.append(
            f"a GPU would hold {plan['device_bytes'] / 1e6:,.0f} MB of it, which {fits} into "
            f"{facts['device_bytes'] / 1e6:,.0f} MB; its time is not known here"
        )
    said.append(
        f"a direction takes about {seconds['step']:.2f} s: forwards {seconds['forwards']:.2f}, making weights "
        f"{seconds['weights']:.2f}, and beside them reading {seconds['reading']:.2f} (disk "
        f"{machine['disk_bytes_per_s'] / 1e9:.2f} GB/s, memory {machine['memory_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"{machine['flops_per_s'] / 1e9:.0f} GFLOP/s)"
    )
    return said
