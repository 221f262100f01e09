"""Which windows of held-out series a model is scored on: the same for every model.

The choice depends on nothing but the lengths of the series and what is asked for.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.formats.open import SourcePart, open_parts
from timemoe_jax.data.pipeline.splits import subset_parts
from timemoe_jax.data.pipeline.standardize import FLAT_CONTEXT
from timemoe_jax.data.pipeline.training_data import open_series, split_series, validation_span
from timemoe_jax.data.series import location_and_scale, positive_int
from timemoe_jax.data.series_source import SequenceSource, SubsetSource
from timemoe_jax.errors import DataError

# Windows read together.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class SourceWindows:
    """The windows of one source to forecast."""

    name: str  # domain and name of the source
    num_series: int
    too_short: int  # series without room for a context and the shortest horizon
    sequence: Int64[np.ndarray, " W"]  # the series of each window, ascending
    start: Int64[np.ndarray, " W"]  # the first point of each
    room: Int64[np.ndarray, " W"]  # the longest horizon that each has room for


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """Series, and which windows of them are forecast: see `choose_windows`."""

    source: SequenceSource
    windows: tuple[SourceWindows, ...]
    context_length: int
    horizons: tuple[int, ...]
    max_windows: int


def open_held_out(config: DataConfig, seed: int = 0) -> tuple[SequenceSource, list[SourcePart]]:
    """The series that a run validates on, and which are of which source.

    The seed is that of the run: it decides which series `validation_fraction` holds out. A config
    that holds nothing out is a DataError.
    """
    if config.validation_path:
        return open_parts(config.validation_path)
    source, parts = open_series(config, seed)
    if source is not None and config.validation_rows:
        return validation_span(source, config), parts
    ids = None if source is None else split_series(config, source, parts, seed)
    if source is None or ids is None:
        raise DataError(
            "the data hold nothing out; set data.validation_path, data.validation_sources, "
            "data.validation_fraction or data.validation_rows"
        )
    return _subset(source, parts, ids[1])


def _subset(
    source: SequenceSource, parts: list[SourcePart], ids: Int64[np.ndarray, " num_sequences"]
) -> tuple[SequenceSource, list[SourcePart]]:
    kept = [part for part in subset_parts(parts, ids) if part.stop > part.first]
    return SubsetSource(source, ids), kept


def choose_sources(
    source: SequenceSource, parts: Sequence[SourcePart], names: str
) -> tuple[SequenceSource, list[SourcePart]]:
    """Keeps only the sources that `names` lists as "domain/source" with commas between."""
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = sorted({part.label for part in parts})
    if unknown := sorted(wanted.difference(known)):
        raise DataError(f"{', '.join(unknown)} is none of the sources: {', '.join(known)}")
    kept = [np.arange(p.first, p.stop) for p in parts if p.label in wanted]
    return _subset(source, list(parts), np.concatenate([np.zeros(0, np.int64), *kept]))


def choose_windows(
    source: SequenceSource,
    parts: Sequence[SourcePart],
    context_length: int,
    horizons: Sequence[int],
    max_windows: int = 500,
) -> HeldOut:
    """Chooses what every model is scored on, from the lengths of the series alone.

    A window may start wherever its series has room after it for a context and the longest horizon;
    in a series too short for that, for the longest horizon that fits. At most `max_windows` of
    these starts are taken from each source, evenly spaced, one series after the other; series that
    have room for different horizons get equal shares, as far as they have enough starts. A window
    is scored at every horizon that it has room for; horizons are increasing. If no series is long
    enough, that is a DataError.
    """
    context_length = positive_int("context_length", context_length)
    max_windows = positive_int("max_windows", max_windows)
    lengths = tuple(positive_int("horizons", h) for h in horizons)
    if not lengths or any(a >= b for a, b in itertools.pairwise(lengths)):
        raise DataError(f"horizons must be increasing, and at least one, but are {lengths}")
    windows = tuple(
        _windows_of(source, part, context_length, lengths, max_windows) for part in parts
    )
    if not any(len(w.sequence) for w in windows):
        longest = int(np.max(source.lengths, initial=0))
        raise DataError(
            f"no series has a context of {context_length} points and a horizon of {lengths[0]} "
            f"after it: the longest has {longest}; lower context_length or horizons"
        )
    return HeldOut(source, windows, context_length, lengths, max_windows)


def _windows_of(
    source: SequenceSource, part: SourcePart, context: int, horizons: tuple[int, ...], most: int
) -> SourceWindows:
    lengths = source.lengths[part.first : part.stop]
    # How many of the horizons each series has room for; with room for none it has no window.
    fitting = np.searchsorted(horizons, lengths - context, side="right")
    room = np.array([0, *horizons])[fitting]
    starts = np.where(fitting > 0, lengths - context - room + 1, 0)
    totals = {h: int(np.sum(starts, where=room == h)) for h in horizons}
    sequence, start = [], []
    for h, count in _shared_out(totals, most).items():
        ends = np.cumsum(np.where(room == h, starts, 0))
        # In the middle of `count` equal parts; whole numbers, so that none is rounded.
        chosen = (2 * np.arange(count, dtype=np.int64) + 1) * totals[h] // (2 * max(count, 1))
        which = np.searchsorted(ends, chosen, side="right")
        sequence.append(part.first + which)
        start.append(chosen - (ends - starts)[which])
    order = np.argsort(np.concatenate(sequence), kind="stable")
    sequences = np.concatenate(sequence)[order].astype(np.int64)
    return SourceWindows(
        part.label,
        len(lengths),
        int(np.count_nonzero(fitting == 0)),
        sequences,
        np.concatenate(start)[order].astype(np.int64),
        room[sequences - part.first],
    )


def _shared_out(totals: dict[int, int], most: int) -> dict[int, int]:
    """Shares `most` out evenly between groups of these sizes; small groups are taken whole."""
    shares: dict[int, int] = {}
    for group in sorted(totals, key=totals.__getitem__):
        left = len(totals) - len(shares)
        shares[group] = min(totals[group], (most - sum(shares.values())) // left)
    return shares


class Chunk(NamedTuple):
    """Windows of one room, in the units of their series."""

    contexts: Float64[np.ndarray, "W T"]
    truths: Float64[np.ndarray, "W H"]  # NaN where missing
    mean: Float64[np.ndarray, " W"]  # of the contexts
    deviation: Float64[np.ndarray, " W"]
    num_windows: int  # how many were read, also those that cannot be scored


def read_windows(held_out: HeldOut, windows: SourceWindows) -> Iterator[Chunk]:
    """Reads the windows of a source in chunks of windows with room for the same horizon."""
    context = held_out.context_length
    for room in np.unique(windows.room).tolist():
        ids = np.flatnonzero(windows.room == room)
        for first in range(0, len(ids), _CHUNK):
            rows, scales = [], []
            series, scale, values = -1, 0.0, np.empty(0)
            for i in ids[first : first + _CHUNK].tolist():
                if windows.sequence[i] != series:
                    series = int(windows.sequence[i])
                    values = held_out.source[series].astype(np.float64)
                    scale = float(np.nanstd(values)) if not np.isnan(values).all() else 0.0
                rows.append(values[windows.start[i] : windows.start[i] + context + room])
                scales.append(scale)
            yield _chunk(np.stack(rows), np.array(scales), context)


def _chunk(
    rows: Float64[np.ndarray, "W S"], scales: Float64[np.ndarray, " W"], context: int
) -> Chunk:
    ends = ~np.isnan(rows[:, context - 1])
    contexts, truths, scales = rows[ends, :context], rows[ends, context:], scales[ends]
    mean, deviation = location_and_scale(contexts)
    usable = (deviation > 0) & (deviation >= FLAT_CONTEXT * scales)
    kept = (contexts[usable], truths[usable], mean[usable], deviation[usable])
    return Chunk(*kept, num_windows=len(rows))
