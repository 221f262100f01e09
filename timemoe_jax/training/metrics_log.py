"""The metrics of a run: `metrics.jsonl`, TensorBoard events, and a meter of its speed."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class MetricsLog:
    """Writes each record to `metrics.jsonl` and, scalar by scalar, to TensorBoard.

    A run that resumes at `start_step` drops the records after it, so that none stands twice.
    """

    def __init__(self, workdir: Path, start_step: int):
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        kept = [r for r in read_metrics(self._path) if r["step"] <= start_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds one record: numbers, and arrays as nested lists."""
        plain = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        for name, value in plain.items():
            for tag, scalar in _scalars(name, value):
                self._events.add_scalar(tag, scalar, step)

    def close(self) -> None:
        """Writes out what is buffered."""
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
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
