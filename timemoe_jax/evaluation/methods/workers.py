"""Worker processes that forecast one context at a time, and are killed at a limit.

Nothing here imports JAX: a worker that is spawned imports this module, and starts in a second.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import psutil
from jaxtyping import Float64

from timemoe_jax.errors import DataError, TimeMoeError
from timemoe_jax.evaluation.methods.base import Method, MethodForecast

START_S = 300.0  # for a worker to import what its method needs
# A limit is of computing. One that waits instead, or on a busy machine, has so many times as long.
PATIENCE = 5
MOST_CHARACTERS = 200  # of a reason

# Horizon, season, levels and freq, as `Method.predict` takes them.
Task = tuple[int, int, tuple[float, ...], str | None]
# Point [H] and quantiles [H, Q] of a context, or why there are none.
Answer = tuple[Float64[np.ndarray, " H"], Float64[np.ndarray, "H Q"]] | str


def check_shapes(name: str, forecast: MethodForecast, shape: tuple[int, int], levels: int) -> None:
    """Refuses forecasts that have not `shape` [N, H], and quantiles [N, H, Q] of Q levels."""
    found = forecast.point.shape, forecast.quantiles.shape
    if found != (shape, (*shape, levels)):
        raise DataError(
            f"the method {name!r} gives point and quantiles of the shapes {found[0]} and "
            f"{found[1]}, but they must be {shape} and {(*shape, levels)}"
        )


class Workers:
    """Processes of a method, kept from one task to the next until the `with` block ends.

    Args:
      method: what forecasts; it is pickled.
      count: the most processes at a time. They are started when they are needed.
    """

    def __init__(self, method: Method, count: int):
        self.method, self.count = method, count
        self._idle: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._idle:
            worker.kill()

    def answers(
        self,
        contexts: Sequence[Any],
        task: Task,
        limit_s: float | None,
        done: Callable[[], object],
    ) -> list[Answer]:
        """The answer to each context; a process that ends or is late is replaced.

        `limit_s` is that of a context, in seconds: a process is late when it has computed for so
        long, or five times as long have passed. `done` is called after each context.

        Raises:
          TimeMoeError: a process cannot import or make its method.
        """
        answers: list[Answer] = [""] * len(contexts)
        waiting = list(range(len(contexts)))[::-1]

        def give(worker: _Worker) -> None:
            index = waiting.pop()
            worker.give(index, contexts[index], task, limit_s)

        working: list[_Worker] = []
        try:
            for _ in range(min(self.count, len(contexts))):
                working.append(self._idle.pop() if self._idle else _Worker(self.method))
                if working[-1].ready:
                    give(working[-1])
            while working:
                worker, answer, alive = _next_answer(working, limit_s)
                if worker.index is not None:
                    answers[worker.index] = answer
                    done()
                elif answer is not None:
                    raise TimeMoeError(f"the method {self.method.name!r} does not start: {answer}")
                worker.ready, worker.index = alive, None
                if alive and waiting:
                    give(worker)
                    continue
                working.remove(worker)
                if alive:
                    self._idle.append(worker)
                    continue
                worker.kill()
                if waiting:
                    working.append(_Worker(self.method))
        finally:
            for worker in working:
                worker.kill()
        return answers


def _next_answer(workers: list["_Worker"], limit_s: float | None) -> tuple["_Worker", Any, bool]:
    """Waits for a worker: the first that has an answer, ended or is late; and whether it lives."""
    while True:
        soonest = min(workers, key=lambda worker: worker.deadline)
        left = soonest.deadline - time.monotonic()
        timeout = None if np.isinf(left) else max(left, 0)
        ready = multiprocessing.connection.wait([worker.pipe for worker in workers], timeout)
        for worker in workers:
            if worker.pipe in ready:
                answer = worker.answer()
                return worker, answer, worker.process.is_alive()
        if soonest.index is None:
            return soonest, f"it took over {START_S:g} s to import what it needs", False
        if limit_s is not None and not soonest.extend(limit_s):
            return soonest, f"it took over {limit_s:g} s", False


class _Worker:
    """A process that forecasts one context at a time."""

    def __init__(self, method: Method):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, method), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()
        self.ready = False  # whether it has started
        self.index: int | None = None  # of the context that it is at
        self.computed = self.given = 0.0  # seconds, when it got that
        self.deadline = time.monotonic() + START_S

    def give(self, index: int, context: Any, task: Task, limit_s: float | None) -> None:
        """Sends a context, and starts its clock."""
        self.index = index
        self.computed, self.given = self._computed(), time.monotonic()
        self.deadline = self.given + (np.inf if limit_s is None else limit_s)
        with contextlib.suppress(OSError):  # its end is noticed by who waits for it
            self.pipe.send((np.ascontiguousarray(context), task))

    def extend(self, limit_s: float) -> bool:
        """Puts the deadline off if it has not computed for so long; False if it is late."""
        left = limit_s - (self._computed() - self.computed)
        last = self.given + PATIENCE * limit_s
        if left <= 0 or time.monotonic() >= last:
            return False
        self.deadline = min(time.monotonic() + max(left, 0.05), last)
        return True

    def _computed(self) -> float:
        """The seconds that all its threads have computed; infinite if it has ended."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return np.inf
        return times.user + times.system

    def answer(self) -> Any:
        """What it sent, or how it ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return f"the process of the method ended with status {self.process.exitcode}"

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: Any, method: Any) -> None:
    """What a worker does: says that it is ready, and answers contexts until there are no more."""
    try:
        getattr(method, "prepare", lambda: None)()
    except Exception as error:
        pipe.send(_reason(error))
        return
    pipe.send(None)
    while True:
        try:
            context, task = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(method, context, task))


def _answer(method: Method, context: Any, task: Task) -> Answer:
    try:
        forecast = method.predict([context], *task)
        check_shapes(method.name, forecast, (1, task[0]), len(task[2]))
    except Exception as error:
        return _reason(error)
    return forecast.failures.get(0) or (forecast.point[0], forecast.quantiles[0])


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:MOST_CHARACTERS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Lets processes started meanwhile compute with one thread each: there is one for each core."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
