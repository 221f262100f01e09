"""The validator of series that every public entry point uses: arrays, files, command line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from timemoe_jax.errors import DataError


def check_levels(levels: Any) -> Float64[np.ndarray, " Q"]:
    """Returns quantile levels as an array; a DataError if they do not rise between 0 and 1."""
    try:
        values = np.array(levels, np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.ndim != 1 or not values.size or not ((values > 0) & (values < 1)).all():
        raise DataError(
            f"quantile levels must be numbers between 0 and 1, both excluded, but are {levels!r}"
        )
    if (np.diff(values) <= 0).any():
        raise DataError(f"quantile levels must rise, but are {levels}")
    return values


def validate_series(
    inputs: Any, names: Sequence[str] | None = None
) -> list[Float64[np.ndarray, " _"]]:
    """Turns the series that a caller gives into float64 arrays, or says what is wrong with them.

    `inputs` is one series [T], several of one length [N, T], or a list of series of different
    lengths; numbers of any dtype, NaN where a value is missing. It is not modified, but the arrays
    that are returned, a [T] per series, may share its memory.

    Raises:
      DataError: there is no series, or not a name for each; or one is empty, not numeric, of the
        wrong rank, wholly missing, or infinite somewhere.
    """
    if isinstance(inputs, list | tuple) and not _is_flat(inputs):
        rows = list(inputs)
    else:
        array = _numeric(inputs, "the input")
        if array.ndim > 2:
            raise DataError(
                f"the input must be one series [T] or several [N, T], but has shape {array.shape}"
            )
        rows = [array] if array.ndim < 2 else list(array)
    if not rows:
        raise DataError("the input holds no series")
    if names is None:
        names = [f"series {i}" for i in range(len(rows))]
    if len(names) != len(rows):
        raise DataError(f"names has {len(names)} entries for {len(rows)} series; give one each")
    return [_one(row, name) for row, name in zip(rows, names, strict=True)]


def _is_flat(values: Sequence[Any]) -> bool:
    """Whether a list is one series of numbers rather than a list of series."""
    return len(values) > 0 and all(np.ndim(value) == 0 for value in values)


def as_array(values: Any) -> np.ndarray:
    """Values as a NumPy array, NaN where they are masked or NA."""
    if isinstance(values, np.ma.MaskedArray):
        if values.dtype.kind in "fiub":
            return np.where(np.ma.getmaskarray(values), np.nan, values.data.astype(np.float64))
        return values.filled(np.nan) if values.dtype == object else values.data
    dtype = getattr(values, "dtype", None)
    if hasattr(dtype, "na_value") and getattr(dtype, "kind", "O") in "fiub":
        return values.to_numpy(np.float64, na_value=np.nan)  # an extension array of pandas
    return np.asarray(values)


def _numeric(values: Any, name: str) -> np.ndarray:
    try:
        array = as_array(values)
    except ValueError:
        raise DataError(f"{name} is ragged; give a list of one-dimensional series") from None
    if array.dtype == object:
        # A list with None, or a column of a data frame, may still hold numbers.
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{name} must hold numbers, but holds other objects") from None
    # Extension floats (bfloat16) have kind "V" but convert; text, dates and complex do not.
    extension = array.dtype.kind == "V" and array.dtype.names is None
    if array.dtype.kind not in "fiub" and not extension:
        raise DataError(f"{name} must hold numbers, but is of dtype {array.dtype}")
    return array.astype(np.float64, copy=False)


def _one(row: Any, name: str) -> Float64[np.ndarray, " _"]:
    series = _numeric(row, name)
    if series.ndim != 1:
        raise DataError(f"{name} must be one-dimensional [T], but has shape {series.shape}")
    if series.size == 0:
        raise DataError(f"{name} is empty; it needs at least one value")
    infinite = np.flatnonzero(np.isinf(series))
    if infinite.size:
        raise DataError(
            f"{name} is infinite at position {infinite[0]} ({infinite.size} such values); "
            "mark missing values as NaN"
        )
    if np.isnan(series).all():
        raise DataError(f"{name} has no observed value: all {series.size} are missing")
    return series


def positive_int(name: str, value: Any) -> int:
    """Returns `value` if it is an integer of at least 1, and raises a DataError if not."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise DataError(f"{name} must be an integer of at least 1, but is {value!r}")
    return int(value)


def location_and_scale(
    values: Float[np.ndarray, "N T"],
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """Mean and population standard deviation of the observed values, at least one, of each row.

    They are exact for magnitudes whose squares overflow, since the rows are scaled first. The
    deviation of a constant row is exactly 0.
    """
    values = values.astype(np.float64)
    observed = ~np.isnan(values)
    count = observed.sum(axis=1)
    filled = np.where(observed, values, 0)
    largest = np.abs(filled).max(axis=1)
    unit = np.where(largest > 0, largest, 1.0)
    filled = filled / unit[:, None]
    mean = filled.sum(axis=1) / count
    deviation = np.where(observed, filled - mean[:, None], 0)
    std = np.sqrt(np.square(deviation).sum(axis=1) / count)
    lowest = np.where(observed, values, np.inf).min(axis=1)
    constant = lowest == np.where(observed, values, -np.inf).max(axis=1)
    # A rounded mean would leave a constant row a deviation of 1e-17, by which it would be divided.
    return np.where(constant, lowest, mean * unit), np.where(constant, 0.0, std * unit)
