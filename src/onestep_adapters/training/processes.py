"""Several trainings at a time, each in a process of its own."""

import multiprocessing
import pickle
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from onestep_core.errors import OneStepError

_PATIENCE = 1.0
"""Seconds between looks at whether a silent process still lives."""


class _End(NamedTuple):
    """The last word of a process; the error that stopped it, if one did."""

    error: Exception | None


def side_by_side(jobs: Sequence[Callable[[], Iterator[Any]]]) -> Iterator[Any]:
    """What the iterators of ``jobs`` yield, as it comes; each runs in a process of its own with one thread.

    For small networks that is faster than one training after another in several threads: an operation of a fraction
    of a millisecond is not worth dividing. Processes are spawned, so jobs and what they yield must pickle, and a
    script that calls this needs the guard ``if __name__ == "__main__":``. Leaving the iteration ends the processes.

    Raises:
        OneStepError: if a process dies without a word; whatever a job raises is raised here.

    Example:
        >>> sorted(side_by_side([]))
        []
    """
    # Pickled here: the queues of multiprocessing would hand tensors over as shared memory, a file each.
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
                        f"process {dead} of {len(jobs)} ended without a word, exit code {processes[dead].exitcode}: "
                        "killed, or out of memory; what it saved stays"
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


def _work(said: Any, index: int, job: bytes) -> None:
    torch.set_num_threads(1)
    try:
        for item in pickle.loads(job)():
            said.put((index, item))
    except KeyboardInterrupt:
        return
    except Exception as error:  # whatever it is, the parent raises it
        said.put((index, _End(error)))
    else:
        said.put((index, _End(None)))
