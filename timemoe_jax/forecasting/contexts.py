"""What a caller hands to a forecaster: series, the contexts that are read of them, and batches."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from timemoe_jax.data.series import as_array, location_and_scale, validate_series
from timemoe_jax.errors import DataError

# Names of the last dimension of labeled arrays.
_TIME_DIMENSIONS = ("time", "t", "date", "datetime", "timestamp", "step")
# An array with fewer columns and so many times as many rows is likely to be a table of times.
LEAST_POINTS = 8
UPRIGHT = 8


class Context(NamedTuple):
    """What is read of a series: from the first to the last observed of its last points.

    Attributes:
      values: float64, NaN where missing.
      gap: how many missing values follow; the model forecasts them too.
      label: what to call the series in an error.
      item: contexts of one item end together, and a joint model reads them together; None stands
        for a series by itself.
      scaled_by: how many of the first values say how the context is standardized; None is all.
      ahead: what follows the context and its gap, where it is known: of a covariate of a joint
        model. Such a context has no gap.
      marks: of the calendar [M, S], for a model that reads them; contexts of one item share them.
      end: the index in the marks of the point after the last value.
      scale: by which what follows a constant context is scaled: the deviation of the whole series.
    """

    values: Float64[np.ndarray, " _"]
    gap: int
    label: str
    item: int | None = None
    scaled_by: int | None = None
    ahead: Float64[np.ndarray, " H"] | None = None
    marks: Float[np.ndarray, "M S"] | None = None
    end: int = 0
    scale: float = 0.0

    @classmethod
    def of(
        cls,
        series: Float64[np.ndarray, " _"],
        length: int,
        label: str,
        item: int | None = None,
    ) -> "Context":
        """Reads at most `length` last points; refuses a series without an observed one there."""
        recent = series[-length:]
        observed = np.flatnonzero(~np.isnan(recent))
        if not observed.size:
            raise DataError(
                f"{label} has no observed value among its last {len(recent)} points, which are all "
                "that the context holds"
            )
        first, end = observed[0], observed[-1] + 1
        return cls(recent[first:end], len(recent) - int(end), label, item)

    def until(self, gap: int) -> "Context":
        """The same with a shorter gap, the points in between missing."""
        missing = np.full(self.gap - gap, np.nan)
        longer = np.concatenate([self.values, missing])
        return self._replace(values=longer, gap=gap, end=self.end + len(missing))

    def marks_of(self, length: int, steps: int) -> Float[np.ndarray, "M W"]:
        """The marks of so many last points and of those to forecast, the nearest beyond them."""
        assert self.marks is not None
        index = self.end - length + np.arange(length + steps)
        return self.marks[:, np.clip(index, 0, self.marks.shape[1] - 1)]


class Beside(NamedTuple):
    """A series that is read beside those of an item, and not forecast: a covariate."""

    values: Float64[np.ndarray, " T"]  # NaN where missing
    item: int
    column: str  # of a data frame
    variate: str  # the column, or one category of it
    beside: str  # what to call the series that it is beside
    ahead: Float64[np.ndarray, " H"] | None  # its values at the points to forecast; None: unknown

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"covariate {self.variate} of {self.beside}"

    def context(self, length: int) -> Context:
        """What is read of it; where it goes on, up to the end of the series."""
        context = Context.of(self.values, length, self.name, self.item)
        if self.ahead is None:
            return context
        scale = float(location_and_scale(self.values[None])[1][0])
        return context.until(0)._replace(ahead=self.ahead, scale=scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The series of a call.

    Attributes:
      series: each float64 [T], NaN where a value is missing; may share memory with the input.
      names: what to call each in an error.
      channels: of multivariate series [N, C, T], whose channels follow one another; else None.
      items: which series are of one item, such as the targets of an id; None: the channels of each
        multivariate series, or no two.
      beside: what a joint model reads besides.
    """

    series: list[Float64[np.ndarray, " _"]]
    names: list[str]
    channels: int | None
    items: Sequence[int] | None = None
    beside: Sequence[Beside] = ()

    @classmethod
    def parse(cls, inputs: Any, names: Sequence[str] | None = None) -> "Inputs":
        """Validates what a caller gave: see `Forecaster.forecast`. The input is not modified."""
        if isinstance(inputs, Inputs):  # of a data frame, which was validated
            return inputs
        inputs = _in_time(inputs)
        if isinstance(names, str):
            names = [names]
        elif names is not None and not isinstance(names, Sequence | np.ndarray):
            raise DataError(f"names must be a list with a name for each series, but is {names!r}")
        shape: tuple[int, ...] = getattr(inputs, "shape", ())
        channels = int(shape[1]) if len(shape) == 3 else None
        rows = inputs
        if channels is not None:
            rows = as_array(inputs).reshape(shape[0] * shape[1], shape[2])  # -1 fails for size 0
            names = [f"series {i}" for i in range(shape[0])] if names is None else names
            names = [f"{name} channel {c}" for name in names for c in range(channels)]
        series = validate_series(rows, names)
        if len(shape) == 2 and names is None:
            _warn_if_upright(shape)
        labels = [f"series {i}" for i in range(len(series))] if names is None else list(names)
        return cls(series, labels, channels)

    def warn_if_short(self, horizon: int) -> None:
        """Warns once of all series that have fewer points than are to be forecast."""
        counts = [int(np.count_nonzero(~np.isnan(series))) for series in self.series]
        short = [i for i, count in enumerate(counts) if count < horizon]
        if short:
            warnings.warn(
                f"{len(short):,} of {len(counts):,} series have fewer observed points than the "
                f"horizon of {horizon}, such as {self.names[short[0]]} with {counts[short[0]]}; "
                "forecasts so far ahead of so short a history say little",
                stacklevel=5,
            )

    @property
    def item_numbers(self) -> Sequence[int] | None:
        """The item of each series; None where no two are of one."""
        if self.items is not None or self.channels is None:
            return self.items
        return [i // self.channels for i in range(len(self.series))]

    def contexts(
        self, length: int, marks: Float[np.ndarray, "N M S"] | None = None
    ) -> list[Context]:
        """What is read of each series, and of what is beside them: at most `length` last points.

        Marks are those of each item's points and of those to forecast.
        """
        items = self.item_numbers
        contexts = [
            Context.of(series, length, self.names[i], None if items is None else items[i])
            for i, series in enumerate(self.series)
        ]
        if marks is not None and items is not None:
            ends = [len(s) - c.gap for s, c in zip(self.series, contexts, strict=True)]
            contexts = [
                context._replace(marks=marks[items[i]], end=ends[i])
                for i, context in enumerate(contexts)
            ]
        return contexts + [other.context(length) for other in self.beside]

    def missing(self, length: int) -> Any:
        """How many of the last `length` points of each series are missing."""
        return self.shaped(np.array([int(np.isnan(s[-length:]).sum()) for s in self.series]))

    def shaped(self, rows: Any) -> Any:
        """An array with a row per series, in the shape of the input."""
        if rows is None or self.channels is None:
            return rows
        return rows.reshape(-1, self.channels, *rows.shape[1:])


def _in_time(inputs: Any) -> Any:
    """Refuses tables, of which time runs down the rows, and puts series in the order of time."""
    kind = type(inputs)
    module = kind.__module__.split(".")[0]
    named = kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"
    if isinstance(inputs, list | tuple):
        return [_in_time(each) for each in inputs] if any(map(_is_pandas, inputs)) else inputs
    if _is_pandas(inputs) and hasattr(inputs, "columns"):
        raise DataError(
            "inputs is a pandas DataFrame; use predict_df(df, horizon), or give df.values.T if "
            "every column is a series"
        )
    if isinstance(inputs, Mapping):
        raise DataError(f"inputs is a {named}; give list(inputs.values()), and the keys as names=")
    if hasattr(inputs, "columns") or (hasattr(inputs, "data_vars") and hasattr(inputs, "dims")):
        raise DataError(
            f"inputs is a {named}; convert it to pandas and use predict_df(df, horizon), or give a "
            "NumPy array with a row for each series"
        )
    dims = tuple(getattr(inputs, "dims", ()) or ())
    if len(dims) > 1 and str(dims[-1]).lower() not in _TIME_DIMENSIONS:
        raise DataError(
            f"inputs is a {named} with the dimensions {', '.join(map(str, dims))}; time must be "
            f"the last one and called {', '.join(_TIME_DIMENSIONS)}: transpose it, or give .values"
        )
    index: Any = getattr(inputs, "index", None)
    kinds = ("datetime64", "period", "date", "datetime")
    if _is_pandas(inputs) and getattr(index, "inferred_type", "") in kinds:
        return inputs if index.is_monotonic_increasing else inputs.sort_index(kind="stable")
    return inputs


def _is_pandas(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "pandas"


def _warn_if_upright(shape: tuple[int, ...]) -> None:
    """Warns of an array that is far taller than wide, as tables are whose rows are times."""
    if shape[1] < LEAST_POINTS and shape[0] >= UPRIGHT * shape[1]:
        warnings.warn(
            f"inputs of shape {list(shape)} are {shape[0]:,} series of {shape[1]} points each; if "
            "the rows are times, give inputs.T",
            stacklevel=6,
        )


class Batch(NamedTuple):
    """Contexts as the model reads them: standardized, and padded on the left to one length.

    Attributes:
      x: float32; 0 where nothing is observed.
      mask: where a value is observed; False in the rows beyond the contexts.
      mean: of each context; 0 without standardization.
      std: of each context; 1 without standardization.
    """

    x: Float[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]
    mean: Float64[np.ndarray, " N"]
    std: Float64[np.ndarray, " N"]

    @classmethod
    def of(
        cls, contexts: Sequence[Context], length: int, rows: int, normalize: str, ahead: int = 0
    ) -> "Batch":
        """Fills at least as many rows as there are contexts; `normalize` as `forecast` takes it.

        The last `ahead` points are after the contexts, observed where these know what follows.
        """
        values = np.full((len(contexts), length), np.nan)
        for row, context in zip(values, contexts, strict=True):
            row[length - len(context.values) :] = context.values
        if normalize == "instance":
            with np.errstate(invalid="ignore"):  # an absent variate of a joint model has no mean
                mean, std = location_and_scale(values)
            _scale_by_first(contexts, mean, std)
        else:
            mean, std = np.zeros(len(values)), np.ones(len(values))
        flat = np.array([context.scale or 1.0 for context in contexts])
        safe = np.where(std > 0, std, flat)
        if ahead:
            values = np.concatenate([values, np.full((len(values), ahead), np.nan)], axis=1)
            for row, context in zip(values, contexts, strict=True):
                if context.ahead is not None:
                    row[length : length + len(context.ahead)] = context.ahead
        # Centered before the division, in float64: exact for a small change on a large level.
        values = (values - mean[:, None]) / safe[:, None]
        mask = ~np.isnan(values)
        padding = ((0, rows - len(contexts)), (0, 0))
        with np.errstate(over="ignore"):  # raw values beyond float32: their result is refused
            x = np.pad(np.where(mask, values, 0).astype(np.float32), padding)
        return cls(x, np.pad(mask, padding), mean, std)

    def in_units(self, outputs: Any) -> Float64[np.ndarray, "N ..."]:
        """Outputs of the model, a row each, back in the units of the contexts."""
        shape = (-1,) + (1,) * (outputs.ndim - 1)
        scaled = np.asarray(outputs)[: len(self.mean)].astype(np.float64)
        return self.mean.reshape(shape) + self.std.reshape(shape) * scaled


def _scale_by_first(
    contexts: Sequence[Context], mean: Float64[np.ndarray, " N"], std: Float64[np.ndarray, " N"]
) -> None:
    """Location and scale of the contexts that their first values say, unless these are constant."""
    for i, context in enumerate(contexts):
        if context.scaled_by is not None:
            first = location_and_scale(context.values[None, : context.scaled_by])
            if first[1][0] > 0:
                mean[i], std[i] = first[0][0], first[1][0]


def check_finite(
    what: str, finite: Bool[np.ndarray, " N"], contexts: Sequence[Context], normalize: str
) -> None:
    """Raises for the first context of which `what`, such as "the forecast", is not finite."""
    if finite.all():
        return
    label = contexts[int(np.argmin(finite))].label
    hint = (
        "with normalize='none' its values are fed raw and may be too large: try 'instance'"
        if normalize == "none"
        else "its values are too large for float64, or the checkpoint's parameters are not finite"
    )
    raise DataError(f"{what} of {label} is not finite; {hint}")
