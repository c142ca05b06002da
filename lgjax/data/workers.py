"""Apply a function to many tasks with worker processes that share its data and end with their parent."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextlib.contextmanager
def results(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Iterator[tuple[Task, Result]]]:
    """Give the results of all tasks, each with its task, as they are ready; 1 worker is this process.

    What `function` holds is shared by forked processes. When the block is left early, running tasks are cut
    off, as they are when this process is killed.

    Raises:
        RuntimeError: a worker process was killed.
    """
    if workers == 1:
        yield ((task, function(task)) for task in tasks)
        return
    # forked processes share the data of the function; where there are none, each gets a copy
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    before = set(multiprocessing.active_children())
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context(method), initializer=_start, initargs=(function,)
    )
    try:
        futures = {executor.submit(_call, task): task for task in tasks}
        yield ((futures[done], done.result()) for done in concurrent.futures.as_completed(futures))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, perhaps for want of memory: try fewer; "
            "the same command goes on with what is finished"
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        executor.shutdown(cancel_futures=True)


_function: Callable[[Any], Any] | None = None  # what a worker process applies; None in any other


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    gc.freeze()  # a collection would touch, and so copy, every shared object
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _call(task: Any) -> Any:
    assert _function is not None
    return _function(task)
