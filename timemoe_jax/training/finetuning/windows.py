"""Which points fine-tuning trains on, and which forecasts validate it."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from timemoe_jax.data.formats.open import SourcePart
from timemoe_jax.data.pipeline.joint import JointWindows
from timemoe_jax.data.pipeline.mixing import Mixture
from timemoe_jax.data.pipeline.tails import JointOriginIndex, OriginIndex, pieces_of
from timemoe_jax.data.pipeline.windows import Windows, WindowSource
from timemoe_jax.data.series import location_and_scale
from timemoe_jax.data.series_source import HeadSource, SequenceSource, SubsetSource
from timemoe_jax.errors import DataError
from timemoe_jax.training.finetuning.config import FinetuneConfig

LEAST_CONTEXT = 4  # points that a forecast must read at least
LEAST_WINDOWS = 20  # fewer teach nothing
VALIDATION_SHARE = 5  # of a series 1 / this is held out, at least a horizon
MOST_VARIATES = 32  # that a joint model reads together
_LENGTHS = 16  # lengths of windows are multiples of this
# Forecasts of a validation: so many of any context, or as many as read so many points, up to most.
_FORECASTS, _POINTS_READ, _MOST_FORECASTS = 256, 1 << 18, 1024
_TIMES = 5  # of each series, where as many can be had


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Series cut in time: what is trained on, and what is held out after it."""

    source: SequenceSource  # of the series that are used
    heads: Int64[np.ndarray, " N"]  # points of each that are trained on
    windows: Windows  # to train on
    num_windows: int  # different ones
    skipped: dict[str, int]  # why, and how many series are not used

    @property
    def mixture(self) -> Mixture:
        """All windows as one pool."""
        whole = SourcePart("data", "series", 0, len(self.source))
        extent = self.windows.index.extent(0, len(self.source))
        return Mixture((whole,), (extent,), None, len(self.windows), "windows")


def split_in_time(
    source: SequenceSource, config: FinetuneConfig, context: int, joint: bool
) -> Split:
    """Holds out the last points of each series, and finds the windows in those before.

    A window reads at most `context` points, and is padded before the series begins.

    Raises:
      DataError: too little is left to learn from; the message says what would do.
    """
    horizon = config.horizon
    source, skipped = _usable(source, horizon, joint)
    lengths = source.lengths.astype(np.int64)
    held_out = np.maximum(lengths // VALIDATION_SHARE, horizon)
    if config.validation_points:
        held_out = np.full(len(lengths), config.validation_points)
    # A series without room for both is held out as a whole, but for the context.
    heads = np.maximum(lengths - held_out, np.minimum(lengths - horizon, LEAST_CONTEXT))
    longest = int((heads - horizon).max(initial=0))
    if longest < LEAST_CONTEXT:
        most = int(lengths.max(initial=0))
        raise DataError(
            f"the longest series has {most:,} points, of which "
            f"{int(held_out.max(initial=0)):,} are held out; a horizon of "
            f"{horizon} cannot be learned from so few: give longer series or a shorter horizon"
        )
    context = min(context, -(-longest // _LENGTHS) * _LENGTHS)
    if min(context, longest) < horizon:
        raise DataError(
            f"contexts of {min(context, longest):,} points are shorter than the horizon of "
            f"{horizon}, which teaches little; give a longer context_length, longer series or a "
            "shorter horizon"
        )
    head_source, least = HeadSource(source, heads), min(context, max(horizon, LEAST_CONTEXT))
    windows, index = _windows(head_source, context, config, least, joint)
    count = int(index.origins.sum())
    if count < LEAST_WINDOWS:
        raise DataError(
            f"there are {count} windows of at least {least} points and a horizon of {horizon} to "
            f"train on, fewer than {LEAST_WINDOWS}, which teach nothing; give more or longer "
            "series, a shorter horizon or fewer validation_points"
        )
    return Split(source, heads, windows, count, skipped)


def _windows(
    source: SequenceSource, context: int, config: FinetuneConfig, least: int, joint: bool
) -> tuple[Windows, OriginIndex]:
    if not joint:
        index = OriginIndex(source.lengths, context, config.horizon, least)
        return WindowSource(source, index), index
    groups = source.groups()
    sizes = np.unique(groups, return_counts=True)[1]
    if config.covariates:
        _check_covariates(sizes, config)
    variates = min(int(sizes.max()), MOST_VARIATES)
    first, _ = pieces_of(groups, variates)
    index = OriginIndex(source.lengths[first], context, config.horizon, least)
    return JointWindows(source, JointOriginIndex(groups, variates, index)), index


def _check_covariates(sizes: Int64[np.ndarray, " items"], config: FinetuneConfig) -> None:
    """Refuses items of which the last variates of a window would not be the covariates."""
    least, most, count = int(sizes.min()), int(sizes.max()), config.covariates
    said = f"{count:,} variates of each item are covariates (past_variates, known_variates), but "
    if least <= count:
        raise DataError(f"{said}an item has {least:,}, which leaves none to forecast; give fewer")
    if least < most:
        raise DataError(f"{said}items have from {least:,} to {most:,}; give all of them as many")
    if most > MOST_VARIATES:
        raise DataError(
            f"{said}an item has {most:,}, more than the {MOST_VARIATES} that are read together in "
            "fine-tuning; give fewer targets or covariates"
        )


def _usable(
    source: SequenceSource, horizon: int, joint: bool
) -> tuple[SequenceSource, dict[str, int]]:
    """The series that can be forecast and learned from; the others are counted by the reason."""
    least = horizon + LEAST_CONTEXT
    short, empty, constant = source.lengths < least, [], []
    for i in np.flatnonzero(~short):
        values = source.read_stored(int(i), 0, source.lengths.item(i))
        finite = values[np.isfinite(values)]
        empty.append(bool(finite.size < 2))
        constant.append(bool(finite.size > 1 and finite.min() == finite.max()))
    of_rest = {
        f"shorter than {least} points": int(short.sum()),
        "without two values": sum(empty),
        "constant": sum(constant),
    }
    skipped = {reason: count for reason, count in of_rest.items() if count}
    kept = np.flatnonzero(~short)
    if not joint:  # there what is missing or constant is an absent variate beside the others
        kept = kept[~(np.array(empty, bool) | np.array(constant, bool))]
    if not kept.size:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        raise DataError(f"no series can be learned from: {reasons}")
    return (source if len(kept) == len(source) else SubsetSource(source, kept)), skipped


class Validation(NamedTuple):
    """Forecasts to make after held-out origins: W windows of the variates *C that are read."""

    # Contexts, normalized as in use, and after them the H points to forecast where any variate is
    # known ahead; 0 where nothing is observed or known.
    x: Float[np.ndarray, "W *C S"]
    mask: Bool[np.ndarray, "W *C S"]
    location: Float64[np.ndarray, "W *C"]  # of each context
    scale: Float64[np.ndarray, "W *C"]
    # In the units of the series; NaN where missing, and of covariates.
    targets: Float64[np.ndarray, "W *C H"]
    unit: Float64[np.ndarray, "W *C"]  # the deviation of the series
    # Which forecasts have something in common: those of a series (of a joint model, of the variates
    # that are read together), and those that begin in the last horizon of what is held out, in the
    # one before it...
    series: Int64[np.ndarray, " W"]
    period: Int64[np.ndarray, " W"]
    times: float  # horizons that are held out of the median series

    def __len__(self) -> int:
        return len(self.x)


def validation_windows(split: Split, config: FinetuneConfig, joint: bool) -> Validation:
    """Forecasts, evenly over the series and over what is held out, at most as the config says.

    Raises:
      DataError: nothing that is held out was observed.
    """
    source, heads = split.source, split.heads
    context, size = split.windows.index.length, getattr(split.windows.index, "variates", 1)
    first, sizes = pieces_of(source.groups() if joint else np.arange(len(source)), size)
    most = config.validation_windows
    most = most or min(max(_FORECASTS, _POINTS_READ // (context * size)), _MOST_FORECASTS)
    # Of as many series as have forecasts at several times each: what is to come is another time.
    origins = (source.lengths[first] - config.horizon - heads[first] + 1).astype(np.int64)
    apart = 1 + (origins - 1) // config.horizon
    each = np.minimum(apart, min(_TIMES, math.isqrt(most)))
    each = np.minimum(origins, np.maximum(each, most // len(first)))
    number = max(1, most * len(first) // int(each.sum()))
    chosen = np.arange(len(first))
    if len(first) > number:
        chosen = np.linspace(0, len(first) - 1, number).round().astype(int)
    rows, groups = [], []
    for piece in chosen.tolist():
        begin, count = int(first[piece]), int(sizes[piece])
        series = [source[begin + c].astype(np.float64) for c in range(count)]
        found = _of_piece(series, int(heads[begin]), config, context, each.item(piece), size)
        last = len(series[0]) - config.horizon
        groups += [(piece, (last - origin) // config.horizon) for origin, *_ in found]
        rows += [forecast for _, *forecast in found]
    if not rows:
        raise DataError(
            "no point that is held out for validation was observed after an observed context; give "
            "more validation_points"
        )
    read, targets, units = (np.stack(part) for part in zip(*rows, strict=True))
    shared = (read, context, targets, units, config.normalize, joint)
    times = 1 + float(np.median(origins[chosen] - 1)) / config.horizon
    x, mask, location, scale, targets, units = _normalized(*shared)
    of_series, period = np.array(groups, np.int64).T
    return Validation(x, mask, location, scale, targets, units, of_series, period, times)


def _of_piece(
    series: list[np.ndarray], head: int, config: FinetuneConfig, context: int, most: int, size: int
) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """The origins of one piece, and of each what is read [C, S], targets [C, H] and units [C]."""
    length, horizon, known = len(series[0]), config.horizon, config.known_variates
    values = np.full((size, length), np.nan)
    for c, each in enumerate(series):
        values[c] = np.where(np.isfinite(each), each, np.nan)
    observed = np.isfinite(values).any(axis=0)
    last = length - horizon
    count = min(most, last - head + 1)
    origins = np.linspace(last, head, count).round().astype(int) if count > 1 else [last]
    # Of the whole series: one that leaves its past far behind is not to decide for all others.
    units = _deviations(values)
    rows = []
    for origin in sorted({_after_observed(observed, int(t), last) for t in origins} - {-1}):
        later = values[:, origin : origin + horizon]
        target = np.where((np.arange(size) < size - config.covariates)[:, None], later, np.nan)
        if np.isfinite(target).any():
            read = np.full((size, context + (horizon if known else 0)), np.nan)
            part = values[:, max(origin - context, 0) : origin]
            read[:, context - part.shape[1] : context] = part
            if known:
                read[-known:, context:] = later[-known:]
            rows.append((origin, read, target, units))
    return rows


def _after_observed(observed: Bool[np.ndarray, " T"], origin: int, last: int) -> int:
    """The first origin from this one on whose point before is observed; -1 where there is none."""
    found = np.flatnonzero(observed[origin - 1 : last])
    return origin + int(found[0]) if found.size else -1


def _deviations(values: Float64[np.ndarray, "C T"]) -> Float64[np.ndarray, " C"]:
    """The population deviation of each row; 1 of one that has none."""
    deviations = np.ones(len(values))
    seen = np.isfinite(values).any(axis=1)
    if seen.any():
        found = location_and_scale(values[seen])[1]
        deviations[seen] = np.where(found > 0, found, 1.0)
    return deviations


def _normalized(
    read: np.ndarray,
    context: int,
    targets: np.ndarray,
    units: np.ndarray,
    normalize: str,
    joint: bool,
) -> tuple[np.ndarray, ...]:
    rows = read.reshape(-1, read.shape[-1])
    location, scale = np.zeros(len(rows)), np.ones(len(rows))
    mask = np.isfinite(rows)
    seen = mask[:, :context].any(axis=1)
    if normalize == "instance":
        location[seen], scale[seen] = location_and_scale(rows[seen, :context])
    # What is known ahead of a covariate may change where its context is constant.
    safe = np.where(scale > 0, scale, units.reshape(-1))
    with np.errstate(over="ignore"):
        x = np.where(mask, (rows - location[:, None]) / safe[:, None], 0).astype(np.float32)
    shape = read.shape if joint else rows.shape
    over = shape[:-1]
    return (
        x.reshape(shape),
        mask.reshape(shape),
        location.reshape(over),
        scale.reshape(over),
        targets.reshape(*over, -1),
        units.reshape(over),
    )
