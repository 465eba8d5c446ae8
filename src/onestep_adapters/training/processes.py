"""Run several trainings at the same time, each in its own process."""

import multiprocessing
import os
import pickle
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple, TypeAlias

import torch

from onestep_core.errors import OneStepError
from onestep_core.validators import require_call

_PATIENCE = 1.0
"""Seconds between two checks whether a process without output is alive."""


class _End(NamedTuple):
    """The last message of a process; it has the error that stopped the process, if there was one."""

    error: Exception | None


Tell: TypeAlias = Callable[[Any], None]
"""Sends a result at once, beside those that a job yields."""


def side_by_side(jobs: Sequence[Callable[[Tell], Iterator[Any]]]) -> Iterator[Any]:
    """Yield the results of the iterators of ``jobs`` in order of arrival; each runs in its own process with one thread.

    A job is called with a function that sends a result at once: from inside of slow work it says how far that is.

    For small networks this is faster than one training after another with several threads, because operations of less
    than a millisecond gain nothing from several threads. Processes are spawned. Therefore the jobs and their results
    have to be picklable, and your script needs the guard ``if __name__ == "__main__":``. The processes end when the
    iteration ends, or when this process is killed.

    Raises:
        OneStepError: if a process dies without an error message. An exception of a job is raised here again.

    Example:
        >>> sorted(side_by_side([]))
        []
    """
    # Pickled here, because the queues of multiprocessing would put every tensor into a file of shared memory.
    for job in jobs:
        require_call("a job", job, ("tell",))
    context = multiprocessing.get_context("spawn")
    said: Any = context.Queue()
    processes = [
        context.Process(target=_work, args=(said, index, pickle.dumps(job)), daemon=True)
        for index, job in enumerate(jobs)
    ]
    for process in processes:
        process.start()
    running = set(range(len(jobs)))
    try:
        while running:
            try:
                index, item = said.get(timeout=_PATIENCE)
            except queue.Empty:
                dead = next((i for i in running if not processes[i].is_alive() and said.empty()), None)
                if dead is not None:
                    raise OneStepError(
                        f"process {dead} of {len(jobs)} ended without an error message, exit code "
                        f"{processes[dead].exitcode}: killed, or out of memory; what it saved stays"
                    ) from None
                continue
            if not isinstance(item, _End):
                yield item
                continue
            running.discard(index)
            if item.error is not None:
                raise item.error
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    # Killed, so that nobody reads the results: as if this process had been killed, too.
    os._exit(1)


def _work(said: Any, index: int, job: bytes) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        for item in pickle.loads(job)(lambda item: said.put((index, item))):
            said.put((index, item))
    except KeyboardInterrupt:
        return
    except Exception as error:  # every exception is raised again in the parent process
        said.put((index, _End(error)))
    else:
        said.put((index, _End(None)))
