"""What a caller hands to a forecaster, as series and the contexts that are read of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.data.series import validate_series
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.engine import Context


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The series of a call.

    Attributes:
      series: each float64 [T], NaN where a value is missing; may share memory with the input.
      names: what to call each in an error.
      channels: of multivariate series [N, C, T], whose channels follow one another; else None.
    """

    series: list[Float64[np.ndarray, " _"]]
    names: list[str]
    channels: int | None

    @classmethod
    def parse(cls, inputs: Any, names: Sequence[str] | None = None) -> "Inputs":
        """Takes the series out of what a caller gave.

        Args:
          inputs: one series [T], several [N, T], multivariate ones [N, C, T], or a list of series
            of different lengths. Not modified.
          names: of the series; by default "series 0" and so on.

        Raises:
          DataError: a series cannot be used, or there are not as many names.
        """
        shape: tuple[int, ...] = getattr(inputs, "shape", ())
        channels = int(shape[1]) if len(shape) == 3 else None
        rows = inputs
        if channels is not None:  # sizes in full, since there may be none
            rows = np.asarray(inputs).reshape(shape[0] * shape[1], shape[2])
        if names is not None:
            names = _of_channels(names, channels)
        elif channels is not None:
            names = _of_channels([f"series {i}" for i in range(len(inputs))], channels)
        series = validate_series(rows, names)
        labels = [f"series {i}" for i in range(len(series))] if names is None else list(names)
        return cls(series, labels, channels)

    def contexts(self, length: int) -> list[Context]:
        """What is read of each series: at most so many of its last points.

        Raises:
          DataError: nothing of them is observed.
        """
        pairs = zip(self.series, self.names, strict=True)
        return [context_of(series, length, name) for series, name in pairs]

    def missing(self, length: int) -> Any:
        """How many of the last `length` points of each series are missing."""
        return self.shaped(np.array([int(np.isnan(s[-length:]).sum()) for s in self.series]))

    def shaped(self, rows: Any) -> Any:
        """An array with a row per series, in the shape of the input."""
        if rows is None or self.channels is None:
            return rows
        return rows.reshape(-1, self.channels, *rows.shape[1:])


def context_of(series: Float64[np.ndarray, " _"], length: int, label: str) -> Context:
    """The points to read, from the first to the last observed, and how many missing ones follow.

    Raises:
      DataError: none is observed.
    """
    recent = series[-length:]
    observed = np.flatnonzero(~np.isnan(recent))
    if not observed.size:
        raise DataError(
            f"{label} has no observed value among its last {len(recent)} points, which are all "
            "that the context holds"
        )
    first, end = observed[0], observed[-1] + 1
    return Context(recent[first:end], len(recent) - int(end), label)


def _of_channels(names: Sequence[str], channels: int | None) -> list[str]:
    if channels is None:
        return list(names)
    return [f"{name} channel {c}" for name in names for c in range(channels)]
