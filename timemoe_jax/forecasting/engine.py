"""The compiled programs of a forecaster, which read contexts in batches that fit in memory.

Shapes are rounded up to buckets, so that a few programs serve all calls: one for each batch bucket,
context bucket and horizon of few. A call of many lengths pads to one or two of them, since padding
costs less than a program. Padding is masked: it changes a result by rounding alone.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64

from timemoe_jax.checkpoints.trees import flatten, unflatten
from timemoe_jax.config import NORMALIZATIONS
from timemoe_jax.data.series import positive_int
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.contexts import Batch, Context, check_finite
from timemoe_jax.forecasting.device import (
    batch_bytes,
    cast_params,
    dtype_of,
    is_out_of_memory,
)
from timemoe_jax.forecasting.programs import Programs, program_points
from timemoe_jax.forecasting.shapes import (
    length_bucket,
    padded_lengths,
    power_of_two,
    rows_of_batch,
)
from timemoe_jax.models.base import ModelConfig, abstract_model, family_of
from timemoe_jax.models.decoding import Decoded, decode_as, horizon_plan, rounded_horizon
from timemoe_jax.runtime import forks, partitioning
from timemoe_jax.runtime.progress import progress_bar, tell, watch

MAX_AUTO_BATCH = 256  # the most rows of a batch of automatic size


class Settings(NamedTuple):
    """How to forecast all series of a call, as `Forecaster.forecast` takes it."""

    horizon: int  # 0 where the contexts are only read
    context_length: int
    normalize: str
    batch_size: int | str
    progress: bool


class Forecasts(NamedTuple):
    """Forecasts in the units of the series."""

    point: Float64[np.ndarray, "N H"]
    quantiles: Float64[np.ndarray, "N H Q"] | None  # of the model's heads, if it has any


class _Group(NamedTuple):
    """Series that share a program, but for the size of the batch."""

    length: int  # of the padded contexts
    steps: int  # to decode, including those of the gap
    variates: int = 1  # rows of a window of several variates
    ahead: int = 0  # points after the contexts that are read where they are known: 0 or the steps
    marks: int = 0  # rows of marks that are read with those


ABSENT = Context(np.zeros(0), 0, "an absent variate")

# `compute(params, x, mask, steps, *marks)`: anything that is computed of a batch.
Compute = Callable[..., Any]


class Engine:
    """Parameters, and the programs that were compiled for them; arguments as for `Forecaster`."""

    def __init__(
        self,
        config: ModelConfig,
        params: nnx.State,
        dtype: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
    ):
        forks.check()
        self.family = family_of(config)
        self.config = self.family.for_inference(config, dtype_of(dtype, params))
        self.graph, _ = abstract_model(self.config)
        self.mesh = mesh if mesh is not None and mesh.size > 1 else None
        self.params = cast_params(params, jnp.dtype(self.config.dtype), self.family)
        self._parts = 1
        if self.mesh is not None:
            places = partitioning.shardings(self.params, self.mesh, self.family.rules())
            self.params = jax.device_put(self.params, places)
            self._parts = math.prod(self.mesh.shape[axis] for axis in partitioning.BATCH)
        # The largest batch that was found to fit, by group.
        self._fitting: dict[_Group, int] = {}

        def run(
            params: nnx.State,
            x: Float[Array, "B *C T"],
            mask: Bool[Array, "B *C T"],
            *marks: Float[Array, "B M S"],
            horizon: int,
        ) -> Decoded:
            axes = tuple(range(1, mask.ndim))
            mask |= ~mask.any(axis=axes, keepdims=True)  # padding rows need a last point to read
            model = nnx.merge(self.graph, params)

            def decode(x: Array, mask: Array, *marks: Array) -> Decoded:
                return self.family.decode(model, x, mask, horizon, *marks)

            return decode_as(self.config, decode, x, mask, *marks)

        def run_known(params: nnx.State, x: Array, mask: Array, horizon: int) -> Decoded:
            mask |= ~mask.any(axis=(1, 2), keepdims=True)
            model = nnx.merge(self.graph, params)

            def decode(x: Array, mask: Array) -> Decoded:
                return self.family.decode_known(model, x, mask, horizon)

            return decode_as(self.config, decode, x, mask)

        def read(params: nnx.State, x: Array, mask: Array, horizon: int) -> Decoded:
            model = nnx.merge(self.graph, params)
            head, output = self._plan(horizon)[0], model(x, mask)
            levels = self.config.quantile_levels
            spread = model.quantile_head(output.hidden, head) if levels else None
            return Decoded(output.predictions[head], spread)

        self._decode = Programs(run, self._operations)
        self._decode_known = Programs(run_known, self._operations)
        self._read = Programs(read, self._operations)

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process makes the same engine of: it compiles its own programs.

        An engine on a mesh cannot be pickled, since the other process has other devices.
        """
        if self.mesh is not None:
            raise DataError(
                "a forecaster on a mesh cannot be pickled; load it in each process, on its devices"
            )
        flat = {name: np.asarray(array) for name, array in flatten(self.params).items()}
        return _engine_of, (self.config, flat, self.config.dtype)

    @property
    def joint(self) -> bool:
        """Whether the series of an item are read together."""
        return self.family.joint

    @property
    def num_programs(self) -> int:
        """How many programs were compiled, or loaded, and are kept."""
        kept = (self._decode, self._decode_known, self._read)
        return sum(programs._cache_size() for programs in kept)

    @functools.cached_property
    def _operations(self) -> float:
        """Multiplications and additions of a point, about: two for each parameter it meets."""
        size = sum(p.size for p in jax.tree.leaves(self.params))
        if not size:
            return 0.0
        active = size - self.family.idle_parameters(self.config, self.params)
        return 2.0 * active * self._readings / self.family.stride(self.config)

    @property
    def _readings(self) -> int:
        """How often a series is read for a forecast."""
        return 2 if self.config.mirrored else 1

    def usable_context(self, context_length: int | None, horizon: int) -> int:
        """Checks a context length, or chooses it: see `Forecaster.usable_context`."""
        limit = self.config.max_position_embeddings
        # The window of an encoder slides over what it has forecast: that takes no room in it.
        horizon = 0 if self.family.encoder else horizon
        if context_length is None:
            context_length = min(limit - horizon, self.config.longest_context or limit)
            if context_length < 1:
                raise DataError(
                    f"horizon {horizon} leaves no room for a context within "
                    f"max_position_embeddings {limit}"
                )
            return context_length
        context_length = positive_int("context_length", context_length)
        if context_length + horizon > limit:
            beside = f" + horizon {horizon}" if horizon else ""
            raise DataError(
                f"context_length {context_length}{beside} exceeds max_position_embeddings {limit}"
            )
        return context_length

    def settings(
        self,
        horizon: int,
        context_length: int | None,
        normalize: str,
        batch_size: int | str,
        progress: bool,
    ) -> Settings:
        """Checks what a caller asked for, and fills in the context length."""
        forks.check()
        if normalize not in NORMALIZATIONS:
            raise DataError(
                f"normalize must be {' or '.join(NORMALIZATIONS)}, but is {normalize!r}"
            )
        if batch_size != "auto":
            batch_size = positive_int("batch_size", batch_size)
        usable = self.usable_context(context_length, horizon)
        return Settings(horizon, usable, normalize, batch_size, progress)

    def run(self, contexts: Sequence[Context], settings: Settings) -> Forecasts:
        """Forecasts the horizon after each context and its gap.

        Raises:
          DataError: a forecast is not finite, or not even one series fits in memory.
        """
        levels, horizon = len(self.config.quantile_levels), settings.horizon
        contexts = self._aligned(contexts)
        point = np.empty((len(contexts), horizon))
        quantiles = np.empty((len(contexts), horizon, levels)) if levels else None
        for rows, batch, decoded in self._decoded_batches(contexts, settings):
            outputs = batch.in_units(decoded.point.reshape(-1, decoded.point.shape[-1]))
            spread = None
            if decoded.quantiles is not None:
                shape = decoded.quantiles.shape
                spread = batch.in_units(decoded.quantiles.reshape(-1, *shape[-2:]))
            for row, i in enumerate(rows):
                if i < 0:
                    continue
                begin = contexts[i].gap
                point[i] = outputs[row, begin : begin + horizon]
                if quantiles is not None and spread is not None:
                    quantiles[i] = spread[row, begin : begin + horizon]
        finite = np.asarray(np.isfinite(point).all(axis=1))
        check_finite("the forecast", finite, contexts, settings.normalize)
        return Forecasts(point, quantiles)

    def _decoded_batches(
        self, contexts: Sequence[Context], settings: Settings
    ) -> Iterator[tuple[list[int], Batch, Decoded]]:
        """As `batches`: first of windows of which nothing is known ahead, then of the others."""
        parts: dict[bool, list[int]] = {False: [], True: []}
        for window in self._windows(contexts):
            parts[any(contexts[i].ahead is not None for i in window)] += window
        for known, part in parts.items():
            compute = self._decoded_known if known else self._decoded
            chosen = [contexts[i] for i in part]
            for rows, batch, decoded in self.batches(chosen, settings, compute) if part else ():
                yield [part[row] if row >= 0 else -1 for row in rows], batch, decoded

    def reads_along(self, gap: int, horizon: int) -> bool:
        """Whether `along` says what forecasts after such gaps would: where one head does it all."""
        every_point = self.family.stride(self.config) == 1
        alone = every_point and not (self.family.joint or self.family.encoder)
        alone = alone and not self.config.mirrored
        return alone and len(self._plan(_gap_bucket(gap) + horizon)) == 1

    def along(
        self,
        contexts: Sequence[Context],
        wanted: Sequence[Sequence[tuple[int, int]]],
        settings: Settings,
    ) -> list[Forecasts]:
        """What would be forecast after some points of each context and as many missing ones.

        `wanted` holds for each of K points of a context its index, and how many points are missing
        after it. The horizon and the gap of a context choose the head that is read; where it does
        not reach over the missing points and the horizon, the forecast is NaN.
        """
        found: dict[int, Forecasts] = {}
        if settings.batch_size == "auto":
            settings = settings._replace(batch_size=self._batch_along(contexts, settings.horizon))
        for rows, batch, said in self.batches(contexts, settings, self._said):
            for row, i in enumerate(rows):
                kept, mean, std = len(contexts[i].values), batch.mean[row], batch.std[row]
                parts = []
                for outputs in said:  # of points, and of quantiles if there are any
                    tail = outputs[row, len(outputs[row]) - kept :]
                    values = np.full((len(wanted[i]), settings.horizon, *tail.shape[2:]), np.nan)
                    for k, (at, gap) in enumerate(wanted[i]):
                        if gap + settings.horizon <= tail.shape[1]:
                            values[k] = tail[at, gap : gap + settings.horizon]
                    parts.append(mean + std * values)
                found[i] = Forecasts(parts[0], parts[1] if len(parts) > 1 else None)
        return [found[i] for i in range(len(contexts))]

    def _batch_along(self, contexts: Sequence[Context], horizon: int) -> int:
        """How many contexts a batch holds whose outputs at every point fit in memory."""
        groups = {self._group([context], horizon) for context in contexts}
        sizes = []
        for group in groups:
            columns = 1 + len(self.config.quantile_levels)
            each = 8 * max(g.length for g in groups) * self._plan(group.steps)[0] * columns
            fitting = max(1, int(batch_bytes() // each))
            sizes.append(min(self._batch_size("auto", group), power_of_two(fitting + 1) // 2))
        return min(sizes)

    def _said(self, params: nnx.State, x: Array, mask: Array, steps: int) -> list[np.ndarray]:
        """Points [B, T, P], and quantiles [B, T, P, Q] of a model with heads for them."""
        self._tell_if_new(self._read, x, steps)
        read = self._read(params, x, mask, horizon=steps)
        return [np.asarray(a) for a in read if a is not None]

    def _plan(self, steps: int) -> tuple[int, ...]:
        return horizon_plan(steps, self.config.horizon_lengths, self.config.forecast_plan)

    def batches(
        self, contexts: Sequence[Context], settings: Settings, compute: Compute
    ) -> Iterator[tuple[list[int], Batch, Any]]:
        """Computes something of all contexts, in batches that are halved until they fit in memory.

        Yields which context each row of a batch is (-1 is none: an absent variate), the batch, and
        what `compute` returned for it.
        """
        groups = self._groups(contexts, settings.horizon)
        hidden = not settings.progress
        bar = progress_bar(total=len(contexts), unit="series", disable=hidden)
        with bar, watch(lambda: f"forecasting {len(contexts):,} series", quiet=not hidden):
            for group, windows in groups.items():
                done = 0
                while done < len(windows):
                    size = self._batch_size(settings.batch_size, group)
                    part = windows[done : done + size]
                    rows = [i for window in part for i in _filled(window, group.variates)]
                    chosen = [contexts[i] if i >= 0 else ABSENT for i in rows]
                    bucket = self._bucket(len(part), size, group.length, len(windows) > size)
                    height = bucket * group.variates
                    try:
                        how = (height, settings.normalize, group.ahead)
                        batch = Batch.of(chosen, group.length, *how)
                        x, mask = (self._shaped(a, group) for a in (batch.x, batch.mask))
                        marks = _marks(chosen, group, bucket)
                        computed = self._call(compute, x, mask, group.steps, *marks)
                    except (jax.errors.JaxRuntimeError, MemoryError) as error:
                        self._halve(group, bucket, error, chosen[0].label)
                        continue
                    yield rows, batch, computed
                    done += len(part)
                    bar.update(sum(map(len, part)))

    def _groups(self, contexts: Sequence[Context], horizon: int) -> dict[_Group, list[list[int]]]:
        """The windows that share a program, in few groups: see `padded_lengths`."""
        buckets: dict[_Group, list[list[int]]] = collections.defaultdict(list)
        for window in self._windows(contexts):
            buckets[self._group([contexts[i] for i in window], horizon)].append(window)
        kinds: dict[_Group, dict[int, int]] = collections.defaultdict(dict)
        for group, windows in buckets.items():
            rows = len(windows) * group.variates
            kinds[group._replace(length=0)][group.length] = rows
        padded = {
            kind: padded_lengths(rows, program_points(self._operations))
            for kind, rows in kinds.items()
        }
        groups: dict[_Group, list[list[int]]] = collections.defaultdict(list)
        for group, windows in buckets.items():
            length = padded[group._replace(length=0)][group.length]
            groups[group._replace(length=length)] += windows
        return groups

    def _windows(self, contexts: Sequence[Context]) -> list[list[int]]:
        """Which contexts are read together: each alone, or those of an item by a joint model."""
        windows: dict[int, list[int]] = collections.defaultdict(list)
        for i, context in enumerate(contexts):
            together = self.family.joint or context.marks is not None
            item = context.item if together else None
            windows[-1 - i if item is None else item].append(i)
        return list(windows.values())

    def _aligned(self, contexts: Sequence[Context]) -> list[Context]:
        """The contexts, those that are read together with the same gap."""
        aligned = list(contexts)
        for window in self._windows(contexts):
            gap = min(contexts[i].gap for i in window)
            for i in window:
                aligned[i] = contexts[i].until(gap) if contexts[i].gap > gap else contexts[i]
        return aligned

    def _shaped(self, rows: np.ndarray, group: _Group) -> np.ndarray:
        """Rows [R, T] as the model reads them: [B, T], or [B, C, T] of a joint model."""
        if not (self.family.joint or group.marks):
            return rows
        return rows.reshape(-1, group.variates, group.length + group.ahead)

    def warmup(self, length: int, horizon: int, count: int) -> None:
        """Compiles the program for a call with `count` series of one length."""
        group = self._group([Context(np.zeros(length), 0, "warm-up")], horizon)
        size = self._batch_size("auto", group)
        shape = (self._bucket(min(count, size), size, group.length, count > size), group.length)
        x, mask = np.zeros(shape, np.float32), np.ones(shape, bool)
        self._call(self._decoded, self._shaped(x, group), self._shaped(mask, group), group.steps)

    def _group(self, window: Sequence[Context], horizon: int) -> _Group:
        limit, gap = self.config.max_position_embeddings, window[0].gap
        length = max(len(context.values) for context in window)
        # Gaps are rounded up to a few sizes, so that each does not need a program of its own.
        room = max(limit - length - horizon, gap)
        gap = _gap_bucket(gap) if self.family.encoder else min(_gap_bucket(gap), room)
        heads, plan = self.config.horizon_lengths, self.config.forecast_plan
        steps = rounded_horizon(gap + horizon, heads, plan)
        if (marks := window[0].marks) is not None:
            return _Group(length_bucket(length), steps, len(window), marks=len(marks))
        known = any(context.ahead is not None for context in window)
        variates = power_of_two(len(window))
        return _Group(length_bucket(length), steps, variates, steps if known else 0)

    def _halve(self, group: _Group, tried: int, error: Exception, label: str) -> None:
        """Remembers that a batch did not fit; raises where its size was not the reason."""
        if not is_out_of_memory(error):
            raise error
        if tried <= self._parts:
            raise DataError(
                f"{label}: a context of {group.length} points and a forecast of {group.steps} do "
                "not fit in memory, even alone; give a shorter context_length or horizon"
            ) from None
        self._fitting[group] = tried // 2
        logging.warning("a batch of %d series did not fit; going on with halves", tried)

    def _decoded(
        self, params: nnx.State, x: Array, mask: Array, steps: int, *marks: Array
    ) -> Decoded:
        self._tell_if_new(self._decode, x, steps, *marks)
        return self._decode(params, x, mask, *marks, horizon=steps)

    def _decoded_known(self, params: nnx.State, x: Array, mask: Array, steps: int) -> Decoded:
        self._tell_if_new(self._decode_known, x, steps)
        return self._decode_known(params, x, mask, horizon=steps)

    def _tell_if_new(self, programs: Programs, x: Any, steps: int, *marks: Any) -> None:
        if not programs.holds(x, *marks, horizon=steps):
            shown = f"{len(x)} series of {x.shape[-1]} points and {steps} to forecast"
            tell(lambda: f"compiling a program for {shown}, once")

    def _call(
        self,
        compute: Compute,
        x: Float[np.ndarray, "B *C T"],
        mask: Bool[np.ndarray, "B *C T"],
        steps: int,
        *marks: Float[np.ndarray, "B M S"],
    ) -> Any:
        """Runs a program and waits for it, so that a lack of memory shows here."""
        forks.check()
        if self.mesh is None:
            return jax.block_until_ready(compute(self.params, x, mask, steps, *marks))
        sharding = partitioning.batch_sharding(self.mesh)
        with partitioning.use_mesh(self.mesh):
            x, mask, *there = jax.device_put((x, mask, *marks), sharding)
            return jax.block_until_ready(compute(self.params, x, mask, steps, *there))

    def _bucket(self, count: int, size: int, length: int, more: bool) -> int:
        """Rows of a batch of `count` series: one of few sizes, a multiple of the mesh's parts."""
        rows = rows_of_batch(count, size, length, more, program_points(self._operations))
        return -(-rows // self._parts) * self._parts

    def _batch_size(self, batch_size: int | str, group: _Group) -> int:
        if batch_size == "auto":
            each = self.family.bytes_per_series(self.config, group.length, group.steps)
            each *= group.variates * self._readings
            fitting = max(1, int(batch_bytes() // each))
            size = min(MAX_AUTO_BATCH, 1 << (fitting.bit_length() - 1)) * self._parts
        else:
            size = int(batch_size)
        return min(size, self._fitting.get(group, size))


def _engine_of(config: ModelConfig, flat: dict[str, np.ndarray], dtype: str) -> Engine:
    """The engine that was pickled."""
    return Engine(config, unflatten(abstract_model(config)[1], flat), dtype)


def _marks(
    contexts: Sequence[Context], group: _Group, windows: int
) -> tuple[Float[np.ndarray, "B M S"], ...]:
    """The marks of the windows of a batch, if the model is to read them."""
    if not group.marks:
        return ()
    marks = np.zeros((windows, group.marks, group.length + group.steps), np.float32)
    for row, context in zip(marks, contexts[:: group.variates], strict=False):
        row[:] = context.marks_of(group.length, group.steps)
    return (marks,)


def _gap_bucket(gap: int) -> int:
    """Rounds the missing points at the end up to one of few numbers."""
    return power_of_two(gap) if gap else 0


def _filled(window: list[int], variates: int) -> list[int]:
    return window + [-1] * (variates - len(window))
