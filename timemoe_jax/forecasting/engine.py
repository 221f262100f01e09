"""The compiled programs behind a forecaster: contexts in, forecasts out, in batches that fit.

Shapes are rounded up to buckets, so that a few programs serve all calls: one for each batch bucket,
context bucket and horizon. A series' own length and the horizon decide its context bucket, so that
the others in a call cannot change its result.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64

from timemoe_jax.config import DTYPES
from timemoe_jax.data.series import location_and_scale
from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.models.base import Family, ModelConfig, abstract_model, family_of
from timemoe_jax.models.decoding import Decoded
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.host_memory import free_bytes
from timemoe_jax.runtime.progress import progress_bar

# Of the memory that is free, what a batch may take when its size is chosen here, and the most.
MEMORY_SHARE = 0.25
MAX_BATCH_BYTES = 2**31
MAX_AUTO_BATCH = 256


class Context(NamedTuple):
    """What is read of a series: from the first to the last observed of its last points.

    Attributes:
      values: float64, NaN where missing.
      gap: how many missing values follow, which are forecast, too.
      label: what to call the series in an error.
    """

    values: Float64[np.ndarray, " _"]
    gap: int
    label: str


class Forecasts(NamedTuple):
    """Forecasts in the units of the series.

    Attributes:
      point: [N, H].
      quantiles: [N, H, Q], at the levels of the model's own heads; None without those.
    """

    point: Float64[np.ndarray, "N H"]
    quantiles: Float64[np.ndarray, "N H Q"] | None


class _Group(NamedTuple):
    """Series that share a program, but for the size of the batch."""

    length: int  # that contexts are padded to
    steps: int  # to decode, those of the gap among them


class Engine:
    """Parameters, and the programs that were compiled for them.

    Args:
      config: of the model.
      params: its parameters.
      dtype: to compute in: "float32", "bfloat16", or "auto": bfloat16 where the parameters are
        stored in it and the backend is an accelerator, else float32.
      mesh: devices to spread parameters and batches over (`partitioning.make_mesh`); None is one.

    Raises:
      ConfigError: the dtype is not known.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: nnx.State,
        dtype: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._family = family_of(config)
        self.config = self._family.for_inference(config, _dtype(dtype, params))
        self.graph, _ = abstract_model(self.config)
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        self.params = _cast(params, jnp.dtype(self.config.dtype), self._family)
        self._parts = 1
        if self._mesh is not None:
            places = partitioning.shardings(self.params, self._mesh, self._family.rules())
            self.params = jax.device_put(self.params, places)
            self._parts = math.prod(self._mesh.shape[axis] for axis in partitioning.BATCH)
        self._programs: set[tuple[tuple[int, ...], int]] = set()
        # The largest batch that was found to fit, by group.
        self._fitting: dict[_Group, int] = {}

        def run(
            params: nnx.State, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
        ) -> Decoded:
            return self._family.decode(nnx.merge(self.graph, params), x, mask, horizon)

        self._decode = jax.jit(run, static_argnames="horizon")

    @property
    def num_programs(self) -> int:
        """How many programs were compiled, or loaded, so far."""
        return len(self._programs)

    def run(
        self,
        contexts: Sequence[Context],
        horizon: int,
        normalize: str,
        batch_size: int | str = "auto",
        progress: bool = False,
    ) -> Forecasts:
        """Forecasts the horizon after each context and its gap.

        Args:
          contexts: of the series.
          horizon: points to forecast.
          normalize: "instance" or "none".
          batch_size: series per step, or "auto": what fits in memory. Halved where it does not.
          progress: whether to show a progress bar.

        Raises:
          DataError: a forecast is not finite, or not even one series fits in memory.
        """
        levels = len(self.config.quantile_levels)
        point = np.empty((len(contexts), horizon))
        quantiles = np.empty((len(contexts), horizon, levels)) if levels else None
        groups: dict[_Group, list[int]] = collections.defaultdict(list)
        for i, context in enumerate(contexts):
            groups[self._group(context, horizon)].append(i)
        with progress_bar(total=len(contexts), unit="series", disable=not progress) as bar:
            for group, rows in groups.items():
                done = 0
                while done < len(rows):
                    size = self._batch_size(batch_size, group)
                    part = rows[done : done + size]
                    found = self._try([contexts[i] for i in part], group, normalize, size)
                    if found is None:  # it did not fit, and will be tried in smaller batches
                        continue
                    for row, i in enumerate(part):
                        begin = contexts[i].gap
                        point[i] = found.point[row, begin : begin + horizon]
                        if quantiles is not None and found.quantiles is not None:
                            quantiles[i] = found.quantiles[row, begin : begin + horizon]
                    done += len(part)
                    bar.update(len(part))
        _check_finite(point, [context.label for context in contexts], normalize)
        return Forecasts(point, quantiles)

    def warmup(self, length: int, horizon: int, batch_size: int | str, count: int) -> None:
        """Compiles the program for some series of one length.

        Args:
          length: of their contexts.
          horizon: points to forecast.
          batch_size: as `run` takes it.
          count: how many series a call will hold.
        """
        group = self._group(Context(np.zeros(length), 0, "warm-up"), horizon)
        size = self._batch_size(batch_size, group)
        shape = (self._bucket(min(count, size), size), group.length)
        self._call(np.zeros(shape, np.float32), np.ones(shape, bool), group.steps)

    def _group(self, context: Context, horizon: int) -> _Group:
        limit = self.config.max_position_embeddings
        # A few sizes of gap, so that each does not need a program of its own.
        room = max(limit - len(context.values) - horizon, context.gap)
        gap = min(power_of_two(context.gap), room) if context.gap else 0
        return _Group(_length_bucket(len(context.values)), gap + horizon)

    def _try(
        self, contexts: list[Context], group: _Group, normalize: str, size: int
    ) -> Forecasts | None:
        """A batch, padded to its buckets; None where it did not fit, and smaller ones are to come.

        Raises:
          DataError: one series alone did not fit.
        """
        try:
            return self._batch(contexts, group, normalize, self._bucket(len(contexts), size))
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            tried = self._bucket(len(contexts), size)
            if tried <= self._parts:
                raise DataError(
                    f"{contexts[0].label}: a context of {group.length} points and a forecast of "
                    f"{group.steps} do not fit in memory, even alone; give a shorter "
                    "context_length or horizon"
                ) from None
            self._fitting[group] = tried // 2
            logging.warning("a batch of %d series did not fit; going on with halves", tried)
            return None

    def _batch(
        self, contexts: list[Context], group: _Group, normalize: str, bucket: int
    ) -> Forecasts:
        values = np.full((len(contexts), group.length), np.nan)
        for row, context in zip(values, contexts, strict=True):
            row[group.length - len(context.values) :] = context.values
        if normalize == "instance":
            mean, std = location_and_scale(values)
        else:
            mean, std = np.zeros(len(values)), np.ones(len(values))
        safe = np.where(std > 0, std, 1.0)
        # Centred before the division, in float64: exact for a small change on a large level.
        values = (values - mean[:, None]) / safe[:, None]
        mask = ~np.isnan(values)
        room = ((0, bucket - len(contexts)), (0, 0))
        with np.errstate(over="ignore"):  # raw values beyond float32: the forecast is refused
            x = np.pad(np.where(mask, values, 0).astype(np.float32), room)
        # A row that pads the batch still needs a last point to read.
        mask = np.pad(mask, room, constant_values=True)
        out = self._call(x, mask, group.steps)

        def in_units(a: Array | None) -> Any:
            if a is None:
                return None
            shape = (-1,) + (1,) * (a.ndim - 1)
            scaled = np.asarray(a)[: len(contexts)].astype(np.float64)
            return mean.reshape(shape) + std.reshape(shape) * scaled

        return Forecasts(in_units(out.point), in_units(out.quantiles))

    def _call(
        self, x: Float[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"], steps: int
    ) -> Decoded:
        """Runs a program and waits for it, so that a lack of memory shows here."""
        self._programs.add((x.shape, steps))
        if self._mesh is None:
            return jax.block_until_ready(self._decode(self.params, x, mask, horizon=steps))
        place = partitioning.batch_sharding(self._mesh)
        with partitioning.use_mesh(self._mesh):
            x, mask = jax.device_put((x, mask), place)
            return jax.block_until_ready(self._decode(self.params, x, mask, horizon=steps))

    def _bucket(self, count: int, size: int) -> int:
        """Rows of a batch of `count` series: few sizes, and as many for each part of the mesh."""
        rows = min(size, power_of_two(count))
        return -(-rows // self._parts) * self._parts

    def _batch_size(self, batch_size: int | str, group: _Group) -> int:
        if batch_size == "auto":
            each = self._family.bytes_per_series(self.config, group.length, group.steps)
            fitting = max(1, int(_batch_bytes() // each))
            size = min(MAX_AUTO_BATCH, 1 << (fitting.bit_length() - 1)) * self._parts
        else:
            size = int(batch_size)
        return min(size, self._fitting.get(group, size))


def _dtype(dtype: str, params: nnx.State) -> str:
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype must be auto, {' or '.join(DTYPES)}, but is {dtype!r}")
    if dtype != "auto":
        return dtype
    stored = {p.dtype for p in jax.tree.leaves(params)}
    half = stored == {jnp.dtype("bfloat16")} and jax.default_backend() != "cpu"
    return "bfloat16" if half else "float32"


def _cast(params: nnx.State, dtype: jnp.dtype, family: Family) -> nnx.State:
    """Parameters in the dtype they are computed in; norms and routers stay float32."""

    def cast(path: tuple[Any, ...], p: Array) -> Array:
        keep = re.search(family.float32, partitioning.path_name(path))
        return jnp.asarray(p, jnp.float32 if keep else dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def _length_bucket(length: int) -> int:
    """A padded length at most a quarter longer (15 points where that is more), one of few."""
    step = max(16, power_of_two(length) // 8)
    return -(-length // step) * step


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _batch_bytes() -> float:
    """What a batch may take of the memory that is free now."""
    return min(MEMORY_SHARE * _free_bytes(), MAX_BATCH_BYTES)


def _free_bytes() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return free_bytes()


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or "RESOURCE_EXHAUSTED" in text
        or "out of memory" in text.lower()
    )


def _check_finite(forecasts: Float64[np.ndarray, "N H"], labels: list[str], normalize: str) -> None:
    rows = np.flatnonzero(~np.isfinite(forecasts).all(axis=1))
    if not rows.size:
        return
    hint = (
        "with normalize='none' its values are fed raw and may be too large: try 'instance'"
        if normalize == "none"
        else "its values are too large for float64, or the checkpoint's parameters are not finite"
    )
    raise DataError(f"the forecast of {labels[rows[0]]} is not finite; {hint}")
