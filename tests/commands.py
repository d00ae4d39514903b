"""The command line as a user runs it, and the options of a small run."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

FEDZO = [sys.executable, "-m", "fedzo.cli"]


def fedzo(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
    """Run the command line: in this process, which has the imports done, or where options are given in one of its own.

    Args:
        arguments: after `fedzo`.
        check: fail the test where the command fails.
        options: of `subprocess.run`.
    """
    words = [str(argument) for argument in arguments]
    if options:
        done = subprocess.run([*FEDZO, *words], capture_output=True, text=True, check=False, **options)
    else:
        done = _run_here(words)
    if check and done.returncode:
        pytest.fail(f"fedzo {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return done


def _run_here(words: list[str]) -> subprocess.CompletedProcess[str]:
    from fedzo.cli import main

    out, errors = io.StringIO(), io.StringIO()
    threads, arguments = torch.get_num_threads(), sys.argv
    sys.argv = ["fedzo", *words]
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            main()
        code: object = 0
    except SystemExit as end:
        code = end.code
    finally:
        torch.set_num_threads(threads)
        sys.argv = arguments
    return subprocess.CompletedProcess(words, code or 0, out.getvalue(), errors.getvalue())


def refused(*arguments: object, **options) -> str:
    """The error message of a command that must fail, on one line."""
    done = fedzo(*arguments, check=False, **options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def simulate_options(demo, out: Path, **changed: object) -> list[str]:
    """Options of a small run on the demo's model and data."""
    options = {"model": demo.model, "data": demo.data, "partition": "by:key", "out": out, "clients": 4, "rounds": 12}
    options |= {"method": "distinct"}
    options |= {"batch-size": 4, "max-length": 32, "lr": 5e-3, "eval-every": 5, "attest-every": 4, "threads": 1}
    options |= changed
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
