"""What a run trains and validates on, from its config: sources, windows, and the mixture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from timemoe_jax.config import DataConfig, parse_resolutions
from timemoe_jax.data import augmentations, pipeline
from timemoe_jax.data.endless import NUM_SERIES, EndlessIndex, JoinedWindows
from timemoe_jax.data.generators.generated_source import GeneratedSource
from timemoe_jax.data.mixing import Mixture, SourcePart, plan_mixture
from timemoe_jax.data.packing import PackedIndex, PackedSource
from timemoe_jax.data.resolutions import ResampledWindows
from timemoe_jax.data.sequence_source import SequenceSource
from timemoe_jax.data.sources import open_source
from timemoe_jax.data.synthetic import SyntheticSource
from timemoe_jax.data.windows import WindowIndex, Windows, WindowSource


class TrainingData(NamedTuple):
    """The windows of a run, and what it draws from where.

    Attributes:
      train: to train on.
      validation: of series held out, never packed, so that losses can be compared between
        policies; None where there are none.
      mixture: how often what is drawn.
      summary: for people.
    """

    train: Windows
    validation: Windows | None
    mixture: Mixture
    summary: str


def open_training_data(
    config: DataConfig, *, seed: int, num_steps: int, batch_size: int
) -> TrainingData:
    """Opens what a run trains on.

    Args:
      config: where series come from, and how they are cut and mixed.
      seed: of what is held out, packed and generated.
      num_steps: the updates of the run.
      batch_size: windows per update, over all processes.

    Raises:
      DataError: something cannot be read, or does not fit the config.
    """
    source, parts = open_series(config, seed)
    held_out: SequenceSource | None = None
    if config.validation_path:
        held_out = open_source(config.validation_path)
    elif source is not None and (ids := split_series(config, source, parts, seed)) is not None:
        source, held_out = (pipeline.SubsetSource(source, part) for part in ids)
        parts = pipeline.subset_parts(parts, ids[0])
    validation = None if held_out is None else _windows(held_out, config)
    windows, summary = [], []
    if source is not None:
        packing = config.policy == "packing"
        windows.append(
            _packed(source, parts, config, seed) if packing else _resampled(source, config, seed)
        )
        summary.append(str(pipeline.describe(source, windows[0].index, batch_size)))
    if config.synthetic_share:
        windows.append(_generated(source, config, seed))
        first = 0 if source is None else len(source)
        parts.append(SourcePart("generated", "series", first, first + NUM_SERIES, endless=True))
        families = config.synthetic_families or "all families"
        summary.append(f"generated series without end ({families})")
    train = windows[0] if len(windows) == 1 else JoinedWindows(windows)
    mixture = plan_mixture(parts, train.index, config, num_steps * batch_size)
    return TrainingData(train, validation, mixture, "; ".join(summary))


def open_series(config: DataConfig, seed: int) -> tuple[SequenceSource | None, list[SourcePart]]:
    """The series of a config that are not endless, if any, and which are of which source.

    Args:
      config: where they come from.
      seed: of those that are generated.

    Raises:
      DataError: something cannot be read.
    """
    if config.path:
        return pipeline.open_parts(config.path)
    if not config.synthetic_sequences:
        return None, []
    source = SyntheticSource(config.synthetic_sequences, config.synthetic_length, seed)
    return source, [SourcePart("synthetic", "generated", 0, len(source))]


def split_series(
    config: DataConfig, source: SequenceSource, parts: Sequence[SourcePart], seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]] | None:
    """Which series to train on and which to hold out; None where the config holds none of them out.

    Args:
      config: `validation_sources` or `validation_fraction`.
      source: the series.
      parts: which are of which source.
      seed: of the choice of a fraction.

    Raises:
      DataError: a source to hold out is none of them, or nothing is left to train on.
    """
    if config.validation_sources:
        return pipeline.split_sources(parts, config.validation_sources)
    if config.validation_fraction:
        return pipeline.split_sequences(len(source), config.validation_fraction, seed)
    return None


def _windows(source: SequenceSource, config: DataConfig) -> WindowSource:
    stride = config.stride or config.length
    return WindowSource(source, WindowIndex(source.lengths, config.length, stride, config.future))


def _resampled(source: SequenceSource, config: DataConfig, seed: int) -> Windows:
    """Windows to train on, at the rates of the config."""
    windows = _windows(source, config)
    rates = parse_resolutions(config.resolutions)
    return ResampledWindows(source, windows.index, rates, seed) if rates else windows


def _packed(
    source: SequenceSource, parts: Sequence[SourcePart], config: DataConfig, seed: int
) -> Windows:
    groups = [part.stop - part.first for part in parts]
    index = PackedIndex(source.lengths, config.length, seed if config.shuffle else None, groups)
    return PackedSource(source, index, config.packing_bleeds)


def _generated(real: SequenceSource | None, config: DataConfig, seed: int) -> Windows:
    """Windows of generated series, each as long as a window; tsmixup mixes the real ones."""
    augmentation = None
    if config.synthetic_augmentation:
        augmentation = augmentations.every_kind(config.synthetic_augmentation)
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
