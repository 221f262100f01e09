"""Worker processes that do tasks of a corpus and end with the process that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from timemoe_jax.errors import DataError

_shared: Any = None  # in a worker process: what its tasks share


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def worker_pool(count: int, shared: Any, if_one_dies: str) -> Iterator[Callable[..., Future[Any]]]:
    """Gives a function that submits `task(shared, *args)` to processes, or to a thread for one.

    Each process gets what is shared once, when it starts. Raises a DataError, which ends with
    `if_one_dies`, if a process dies within a task.
    """
    if count == 1:
        pool: Executor = ThreadPoolExecutor(1)
    else:
        # Not forked: the caller may have threads, and a lock that one of them holds stays closed.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(shared,))

    def submit(task: Callable[..., Any], *args: Any) -> Future[Any]:
        return pool.submit(task, shared, *args) if count == 1 else pool.submit(_run, task, *args)

    try:
        yield submit
    except BrokenProcessPool:
        raise DataError(
            f"a worker process was ended, perhaps for lack of memory; {if_one_dies}"
        ) from None
    finally:
        # Tasks that run are waited for, so that nothing is written once this has returned.
        pool.shutdown(cancel_futures=True)


def _start(shared: Any) -> None:
    global _shared
    _shared = shared
    # Ctrl-C is for the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(task: Callable[..., Any], *args: Any) -> Any:
    return task(_shared, *args)
