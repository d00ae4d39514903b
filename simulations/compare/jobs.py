"""Several cells at a time, each in a process that ends with this one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from fedzo.errors import ProcessError

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
        ProcessError: a cell's process was ended from outside.
    """
    left = float("inf") if at_most is None else at_most
    if jobs == 1:
        while left > 0 and (cell := next(queue.pending(), None)) is not None:
            left -= 1
            yield cell, run_cell(cell)
        return
    running: dict[Future[Result], Cell] = {}
    begun: set[Path] = set()
    cores = max(1, (os.cpu_count() or 1) // jobs)
    starting_anew = multiprocessing.get_context("spawn")  # threads of torch and numba do not live through a fork
    with ProcessPoolExecutor(jobs, starting_anew, _end_with_the_parent) as pool:
        while True:
            for cell in queue.pending():
                if len(running) == jobs or len(begun) >= left:
                    break
                if cell.path not in begun:
                    begun.add(cell.path)
                    running[pool.submit(run_cell, cell, cores)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    raise ProcessError(
                        f"{cell.name}: its process, or another beside it, was ended from outside, for lack of memory "
                        "perhaps; the same command goes on where it was, with fewer --jobs in less memory"
                    ) from error
                yield cell, result


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
