"""The metrics of a run: `metrics.jsonl`, TensorBoard events, and a meter of its speed."""

import json
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from timemoe_jax.training.workdir import WorkdirError, writing

_FLUSH_SECONDS = 30.0  # of events, after which TensorBoard sees them


class MetricsLog:
    """Writes each record to `metrics.jsonl` and, scalar by scalar, to TensorBoard.

    A run that resumes at `start_step` drops the records after it, so that none stands twice. What
    the disk does not take is a `WorkdirError`.
    """

    def __init__(self, workdir: Path, start_step: int):
        self._path = workdir / "metrics.jsonl"
        with writing(self._path):
            kept = [r for r in read_metrics(self._path) if r["step"] <= start_step]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), "utf-8")
            temporary.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8")
            self._events = _Events(workdir / "tensorboard", start_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one record: numbers, and arrays as nested lists."""
        plain = {name: _plain(value) for name, value in values.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **plain}) + "\n")
            self._file.flush()
            scalars = [pair for name, value in plain.items() for pair in _scalars(name, value)]
            self._events.write(step, scalars)

    def close(self) -> None:
        """Writes out what is buffered."""
        with writing(self._path):
            try:
                self._file.close()
            finally:
                self._events.close()

    def close_after(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes at the end of a block; an error that ended the block is not hidden by another."""
        with suppress(WorkdirError) if kind else nullcontext():
            self.close()


class _Events:
    """A TensorBoard file of scalars, written in this thread.

    tensorboardX's own writer has a thread that ends at the first error, after which the run waits
    for it for ever.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._next_flush = 0.0
        self._writer = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)  # hides what an earlier run wrote from there on
        now = time.time()
        self._writer.write_event(Event(step=purge_step, wall_time=now, session_log=start))

    def write(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Adds the scalars of a step, by tag."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for tag, value in scalars:
            event = Event(step=step, wall_time=time.time(), summary=scalar(tag, value))
            self._writer.write_event(event)
        if time.monotonic() >= self._next_flush:  # it waits for the disk
            self._writer.flush()
            self._next_flush = time.monotonic() + _FLUSH_SECONDS

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _plain(value: Any) -> Any:
    """A JSON value; numbers that JSON does not have become None."""
    array = np.asarray(value)
    if array.ndim:
        return [_plain(item) for item in array]
    number = array.item()
    return number if not isinstance(number, float) or math.isfinite(number) else None


def _scalars(name: str, value: Any) -> list[tuple[str, float]]:
    """TensorBoard tags for a value: one per entry of a list, by its place."""
    if isinstance(value, list):
        return [s for i, item in enumerate(value) for s in _scalars(f"{name}/{i}", item)]
    return [] if value is None else [(name, value)]


class Meter:
    """Counts points against the clock, leaving out what is not training.

    The clock starts at the first `restart`, which comes after the first step has compiled.
    """

    def __init__(self) -> None:
        self._points = 0.0
        self._start: float | None = None

    def restart(self) -> None:
        """Forgets what was counted, and starts the clock."""
        self._points, self._start = 0.0, time.perf_counter()

    def add(self, points: float) -> None:
        """Counts points that were trained on."""
        self._points += points

    def rate(self) -> float:
        """Points per second since the clock was started; 0 before."""
        if self._start is None:
            return 0.0
        return self._points / max(time.perf_counter() - self._start, 1e-9)
