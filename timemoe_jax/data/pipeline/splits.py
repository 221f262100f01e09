"""Chooses the series that are held out from training."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from timemoe_jax.data.formats.open import SourcePart
from timemoe_jax.errors import DataError

Split = tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]  # both ascending


def subset_parts(
    parts: Sequence[SourcePart], ids: Int64[np.ndarray, " num_sequences"]
) -> list[SourcePart]:
    """The parts of a `SubsetSource` that keeps the series `ids`, ascending, of a source."""
    stops = np.searchsorted(ids, [part.stop for part in parts]).tolist()
    return [
        dataclasses.replace(part, first=first, stop=stop)
        for part, first, stop in zip(parts, [0, *stops[:-1]], stops, strict=True)
    ]


def split_sources(parts: Sequence[SourcePart], names: str) -> Split:
    """Holds out the series of sources named "domain/source", with commas between."""
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = {part.label for part in parts}
    if unknown := sorted(wanted - known):
        raise DataError(
            f"validation_sources names {', '.join(unknown)}, but the sources are: "
            f"{', '.join(sorted(known))}"
        )
    held_out = np.zeros(parts[-1].stop if parts else 0, bool)
    for part in parts:
        held_out[part.first : part.stop] = part.label in wanted
    if held_out.all():
        raise DataError(f"validation_sources {names!r} leaves nothing to train on")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_sequences(num_sequences: int, fraction: float, seed: int) -> Split:
    """Holds out a fraction of the series: at least one if it is above 0, but never all."""
    if not 0.0 <= fraction < 1.0 or seed < 0 or num_sequences < 1:
        raise DataError(
            f"num_sequences is {num_sequences}, fraction {fraction} and seed {seed}; they must be "
            "at least 1, from 0 to less than 1, and at least 0"
        )
    if fraction == 0.0:
        return np.arange(num_sequences, dtype=np.int64), np.zeros(0, np.int64)
    if num_sequences == 1:
        raise DataError(
            f"a fraction of {fraction} holds out whole series, but there is only one series; "
            "give a fraction of 0, and data.validation_tail to hold out the last part of each"
        )
    held_out = min(max(1, round(fraction * num_sequences)), num_sequences - 1)
    order = np.random.default_rng(seed).permutation(num_sequences).astype(np.int64, copy=False)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
