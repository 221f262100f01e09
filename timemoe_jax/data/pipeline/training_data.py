"""What a run trains and validates on, from its config: sources, windows, and the mixture."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from timemoe_jax.data.config import DataConfig, parse_resolutions
from timemoe_jax.data.formats.open import SourcePart, open_parts, open_source
from timemoe_jax.data.generators import augmentations
from timemoe_jax.data.generators.families.components import SyntheticSource
from timemoe_jax.data.generators.generated_source import GeneratedSource
from timemoe_jax.data.pipeline.endless import NUM_SERIES, EndlessIndex, JoinedWindows
from timemoe_jax.data.pipeline.gaps import FilledSource
from timemoe_jax.data.pipeline.joint import JointIndex, JointWindows
from timemoe_jax.data.pipeline.mixing import Mixture, plan_mixture
from timemoe_jax.data.pipeline.packing import PackedIndex, PackedSource
from timemoe_jax.data.pipeline.resolutions import ResampledWindows
from timemoe_jax.data.pipeline.splits import Split, split_sequences, split_sources, subset_parts
from timemoe_jax.data.pipeline.tails import TailIndex, heads_of
from timemoe_jax.data.pipeline.windows import Index, WindowIndex, Windows, WindowSource
from timemoe_jax.data.series_source import HeadSource, SequenceSource, SpanSource, SubsetSource
from timemoe_jax.errors import listed


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """How much training data a source of series gives."""

    sequences: int
    points: int  # of all of them
    windows: int  # cut from them
    skipped_sequences: int  # of fewer than two points, which give no window
    uncovered_points: int  # in no window
    skipped_files: int  # passed over while searching folders
    padded_share: float  # of the windows' points: those beyond the end of a series
    updates_per_epoch: int  # the batches in which every window comes once

    def __str__(self) -> str:
        return (
            f"{self.sequences:,} sequences, {self.points:,} points, {self.windows:,} windows "
            f"({self.padded_share:.1%} padding), {self.updates_per_epoch:,} updates per epoch; "
            f"left out: {self.skipped_sequences:,} sequences of fewer than two points, "
            f"{self.uncovered_points:,} points in no window, {self.skipped_files:,} files"
        )


def describe(source: SequenceSource, index: Index, batch_size: int) -> DatasetSummary:
    """Counts what a source gives with windows of an index, in batches over all processes."""
    cells = len(index) * index.size * getattr(index, "variates", 1)
    return DatasetSummary(
        sequences=len(source),
        points=int(np.sum(source.lengths)),
        windows=len(index),
        skipped_sequences=index.skipped_sequences,
        uncovered_points=index.uncovered_points,
        skipped_files=len(source.skipped_files),
        padded_share=index.padded_points / cells if cells else 0.0,
        updates_per_epoch=math.ceil(len(index) / batch_size),
    )


class TrainingData(NamedTuple):
    """The windows of a run, and how often it draws from each source."""

    train: Windows
    # Those of held-out series or parts, never packed, so that losses of all policies compare.
    validation: Windows | None
    mixture: Mixture
    summary: str  # a line for the log


def open_training_data(
    config: DataConfig, *, seed: int, num_steps: int, batch_size: int
) -> TrainingData:
    """Opens what a run of `num_steps` updates trains on, `batch_size` windows over all processes.

    The seed decides on what is held out, packed and generated.

    Raises:
      DataError: something cannot be read, or does not fit the config.
    """
    source, parts = open_series(config, seed)
    held_out: SequenceSource | None = None
    validation: Windows | None = None
    notes = []
    if source is not None and source.ignored_columns:
        notes.append(f"columns left out: {listed([*map(repr, source.ignored_columns)])}")
    if source is not None and config.fill_absent:
        source = filled = FilledSource(source)
        notes += _fill_notes(filled)
    if config.validation_path:
        held_out = open_source(config.validation_path)
        held_out = FilledSource(held_out) if config.fill_absent else held_out
    elif source is not None and config.validation_rows:
        held_out = validation_span(source, config)
    elif source is not None and config.validation_tail:
        heads = heads_of(source.lengths, config.validation_tail)
        tails = TailIndex(source.lengths, heads, config.length, config.future)
        if len(tails):
            validation = WindowSource(source, tails)
        else:
            notes.append("no series has 16 points, of which the last could be held out")
        source = HeadSource(source, heads)
    elif source is not None and (ids := split_series(config, source, parts, seed)) is not None:
        source, held_out = (SubsetSource(source, part) for part in ids)
        parts = subset_parts(parts, ids[0])
    if held_out is not None:
        validation = _windows(held_out, config)
    windows, summary = [], []
    if source is not None and config.train_rows:
        source = SpanSource(source, 0, config.train_rows)
    if source is not None:
        packing = config.policy == "packing"
        windows.append(
            _packed(source, parts, config, seed) if packing else _resampled(source, config, seed)
        )
        summary.append(str(describe(source, windows[0].index, batch_size)))
    if config.synthetic_share:
        windows.append(_generated(source, config, seed))
        first = 0 if source is None else len(source)
        parts.append(SourcePart("generated", "series", first, first + NUM_SERIES, endless=True))
        families = config.synthetic_families or "all families"
        summary.append(f"generated series without end ({families})")
    train = windows[0] if len(windows) == 1 else JoinedWindows(windows)
    mixture = plan_mixture(parts, train.index, config, num_steps * batch_size)
    return TrainingData(train, validation, mixture, "; ".join([*summary, *notes]))


def _fill_notes(filled: FilledSource) -> list[str]:
    notes = []
    if filled.absent:
        notes.append(f"{filled.absent:,} times without a row are missing points")
    if filled.irregular:
        notes.append(f"{filled.irregular:,} series have no regular times and are read row by row")
    return notes


def open_series(config: DataConfig, seed: int) -> tuple[SequenceSource | None, list[SourcePart]]:
    """The series of a config that are not endless, if any, and which are of which source."""
    if config.path:
        return open_parts(config.path)
    if not config.synthetic_sequences:
        return None, []
    source = SyntheticSource(config.synthetic_sequences, config.synthetic_length, seed)
    return source, [SourcePart("synthetic", "generated", 0, len(source))]


def split_series(
    config: DataConfig, source: SequenceSource, parts: Sequence[SourcePart], seed: int
) -> Split | None:
    """Which series to train on and which to hold out; None if the config holds none of them out."""
    if config.validation_sources:
        return split_sources(parts, config.validation_sources)
    if config.validation_fraction:
        # Series that make one window are held out together.
        each = np.arange(len(source)) if not config.variates else source.groups()
        _, numbers = np.unique(each, return_inverse=True)
        chosen = split_sequences(int(numbers[-1]) + 1, config.validation_fraction, seed)
        train, held_out = (np.flatnonzero(np.isin(numbers, part)) for part in chosen)
        return train, held_out
    return None


def validation_span(source: SequenceSource, config: DataConfig) -> SpanSource:
    """The rows to validate on, and as many before them as a window reads."""
    first, last = config.train_rows - config.length, config.train_rows + config.validation_rows
    return SpanSource(source, max(first, 0), last)


def _windows(source: SequenceSource, config: DataConfig) -> WindowSource | JointWindows:
    stride = config.stride or config.length
    if config.variates:
        index = JointIndex(source, config.variates, config.length, stride, config.future)
        return JointWindows(source, index, config.calendar)
    return WindowSource(source, WindowIndex(source.lengths, config.length, stride, config.future))


def _resampled(source: SequenceSource, config: DataConfig, seed: int) -> Windows:
    """Windows to train on, at the rates of the config."""
    windows = _windows(source, config)
    rates = parse_resolutions(config.resolutions)
    if not rates or isinstance(windows, JointWindows):
        return windows
    return ResampledWindows(source, windows.index, rates, seed, config.resolution_min)


def _packed(
    source: SequenceSource, parts: Sequence[SourcePart], config: DataConfig, seed: int
) -> Windows:
    groups = [part.stop - part.first for part in parts]
    index = PackedIndex(source.lengths, config.length, seed if config.shuffle else None, groups)
    return PackedSource(source, index, config.packing_bleeds)


def _generated(real: SequenceSource | None, config: DataConfig, seed: int) -> Windows:
    """Windows of generated series, each as long as a window; tsmixup mixes the real ones."""
    share = config.synthetic_augmentation
    augmentation = augmentations.every_kind(share) if share else None
    source = GeneratedSource.parse(
        config.synthetic_families,
        config.length + config.future,
        seed,
        NUM_SERIES,
        real=real,
        augmentation=augmentation,
    )
    index = EndlessIndex(config.length, future=config.future)
    if config.policy == "packing":
        return PackedSource(source, index, config.packing_bleeds)
    return WindowSource(source, index)
