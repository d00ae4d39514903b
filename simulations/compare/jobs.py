"""Several cells at a time, each in a process that ends with this one."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from fedzo.errors import FedzoError, ProcessError

from .cells import Cell, run_cell
from .queue import Queue
from .result import Result


def run_all(queue: Queue, jobs: int, at_most: int | None) -> Iterator[tuple[Cell, Result]]:
    """Run the cells that are not finished, in order, and give each with its result as it ends.

    A row's seeds wait for its trials, whose outcome chooses their learning rate.

    Args:
        queue: of the cells.
        jobs: cells at a time; 1 runs them in this process.
        at_most: cells to run; all where None.

    Raises:
        ProcessError: a cell's process was ended from outside, or an error that is none of fedzo's.
    """
    left = float("inf") if at_most is None else at_most
    if jobs > 1:
        yield from _side_by_side(queue, jobs, left)
        return
    while left > 0 and (cell := next(queue.pending(), None)) is not None:
        left -= 1
        yield cell, run_cell(cell)


def _side_by_side(queue: Queue, jobs: int, most: float) -> Iterator[tuple[Cell, Result]]:
    running: dict[Future[Result], Cell] = {}
    begun: set[Path] = set()
    cores = max(1, (os.cpu_count() or 1) // jobs)
    starting_anew = multiprocessing.get_context("spawn")  # threads of torch and numba do not live through a fork
    with ProcessPoolExecutor(jobs, starting_anew, _end_with_the_parent) as pool:
        try:
            while True:
                for cell in queue.pending():
                    if len(running) == jobs or len(begun) >= most:
                        break
                    if cell.path not in begun:
                        begun.add(cell.path)
                        running[pool.submit(_run, cell, cores)] = cell
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()  # else the pool would wait until all cells that run have ended
            if isinstance(error, BrokenProcessPool):
                raise ProcessError(
                    "the process of a run was ended from outside, for lack of memory perhaps; the same command goes on "
                    "where it was, with fewer --jobs in less memory"
                ) from error
            raise


def _run(cell: Cell, threads: int) -> Result:
    """In a process of its own: what it raises has to go through a pipe, which errors of others may not."""
    try:
        return run_cell(cell, threads)
    except FedzoError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise ProcessError(f"{cell.name}: {type(error).__name__}: {error}") from None


def _end_with_the_parent() -> None:
    """Whatever ends it: an interrupted cell is gone on with by the next who runs the comparison."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
