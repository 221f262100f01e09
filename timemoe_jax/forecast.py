"""`Forecaster`: arrays in, forecasts out, in the units of the input."""

import collections
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64, Int

from timemoe_jax import checkpoint
from timemoe_jax.config import DTYPES, NORMALIZATIONS, ModelConfig
from timemoe_jax.data.series import location_and_scale, validate_series
from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.logs import progress_bar
from timemoe_jax.models.decoding import decode, horizon_plan
from timemoe_jax.models.time_moe import TimeMoe, abstract_model

# What one batch may take when its size is chosen here.
AUTO_BATCH_BYTES = 2**30
MAX_AUTO_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What `Forecaster.forecast` returns."""

    point: Float64[np.ndarray, "N H"]  # in the units of the input
    context_length: int  # at most so many of each series' last points were read
    missing: Int[np.ndarray, " N"]  # missing values among them


class Forecaster:
    """A model that forecasts any series, any horizon.

    The forecast of a series does not depend on the others in the call, on their order or on the
    batch size, beyond rounding. Inputs are never modified.

    Args:
      config: of the model.
      params: its parameters.
      dtype: to compute in: "float32", "bfloat16", or "auto": bfloat16 where the parameters are
        stored in it and the backend is an accelerator, else float32.

    Raises:
      ConfigError: the dtype is not known.
    """

    def __init__(self, config: ModelConfig, params: nnx.State, dtype: str = "auto"):
        if dtype not in ("auto", *DTYPES):
            raise ConfigError(f"dtype must be auto, {' or '.join(DTYPES)}, but is {dtype!r}")
        if dtype == "auto":
            stored = {p.dtype for p in jax.tree.leaves(params)}
            half = stored == {jnp.dtype("bfloat16")} and jax.default_backend() != "cpu"
            dtype = "bfloat16" if half else "float32"
        self.config = dataclasses.replace(config, dtype=dtype, remat="none")
        self.digest: str | None = None  # of the stored parameters, where they were loaded
        self._graph, _ = abstract_model(self.config)
        self._params = _cast(params, jnp.dtype(dtype))

        def run(
            params: nnx.State, x: Float[Array, "B T"], mask: Bool[Array, "B T"], horizon: int
        ) -> Float[Array, "B H"]:
            return decode(nnx.merge(self._graph, params), x, mask, horizon)

        self._decode = jax.jit(run, static_argnames="horizon")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], dtype: str = "auto") -> "Forecaster":
        """Loads a training run, an Orbax checkpoint or a published safetensors folder.

        Args:
          path: the workdir of a run (its newest checkpoint), a folder of checkpoints, one
            checkpoint, or a folder with `config.json` and safetensors.
          dtype: see the class.

        Raises:
          CheckpointError: the folder is none of these, or is damaged.
        """
        loaded = checkpoint.load_model(path)
        forecaster = cls(loaded.config, loaded.params, dtype)
        forecaster.digest = loaded.digest
        return forecaster

    @property
    def model(self) -> TimeMoe:
        """The model itself: `model(x [B, T]).predictions[P]` is [B, T, P]."""
        return nnx.merge(self._graph, self._params)

    def forecast(
        self,
        inputs: Any,
        horizon: int,
        context_length: int | None = None,
        normalize: str = "instance",
        batch_size: int | str = "auto",
        progress: bool = False,
        names: Sequence[str] | None = None,
    ) -> Forecast:
        """Forecasts each series from its own last points.

        A missing value (NaN) is masked, never imputed, and keeps its place in time; where the last
        values of a series are missing, they are forecast too, so that the result always follows
        the end of the input.

        Args:
          inputs: one series [T], several [N, T], or a list of series of different lengths.
          horizon: points to forecast.
          context_length: read at most so many last points; by default as many as the model's
            positions hold beside the horizon.
          normalize: "instance" z-scores each context (population deviation; a constant series is
            forecast as that constant); "none" feeds the values as they are.
          batch_size: series per step, or "auto".
          progress: whether to show a progress bar.
          names: what to call each series in an error.

        Returns:
          point forecasts [N, horizon], float64.

        Raises:
          DataError: a series or the horizon cannot be used; the message says which and why.
        """
        series = validate_series(inputs, names)
        horizon = _positive_int("horizon", horizon)
        context_length = self.usable_context(context_length, horizon)
        if normalize not in NORMALIZATIONS:
            raise DataError(
                f"normalize must be {' or '.join(NORMALIZATIONS)}, but is {normalize!r}"
            )
        labels = list(names) if names else [f"series {i}" for i in range(len(series))]
        contexts, gaps = zip(
            *(_context(s, context_length, label) for s, label in zip(series, labels, strict=True)),
            strict=True,
        )
        point = np.empty((len(series), horizon))
        with progress_bar(total=len(series), unit="series", disable=not progress) as bar:
            for (length, gap), rows in _groups(contexts, gaps).items():
                size = self._batch_size(batch_size, length, gap + horizon)
                for start in range(0, len(rows), size):
                    part = rows[start : start + size]
                    forecasts = self._batch(
                        [contexts[i] for i in part], length, gap + horizon, normalize, size
                    )
                    _check_finite(forecasts, [labels[i] for i in part], normalize)
                    point[part] = forecasts[:, gap:]
                    bar.update(len(part))
        missing = [int(np.isnan(s[-context_length:]).sum()) for s in series]
        return Forecast(point, context_length, np.array(missing))

    def _batch(
        self,
        contexts: list[Float64[np.ndarray, " _"]],
        length: int,
        horizon: int,
        normalize: str,
        batch_size: int,
    ) -> Float64[np.ndarray, "B H"]:
        """Forecasts contexts padded on the left to one length, in a batch padded to a bucket."""
        values = np.full((len(contexts), length), np.nan)
        for row, context in zip(values, contexts, strict=True):
            row[length - len(context) :] = context
        if normalize == "instance":
            mean, std = location_and_scale(values)
        else:
            mean, std = np.zeros(len(values)), np.ones(len(values))
        safe = np.where(std > 0, std, 1.0)
        # Centred before the division, in float64: exact for a small change on a large level.
        values = (values - mean[:, None]) / safe[:, None]
        mask = ~np.isnan(values)
        bucket = min(batch_size, _power_of_two(len(contexts)))
        room = ((0, bucket - len(contexts)), (0, 0))
        x = np.pad(np.where(mask, values, 0).astype(np.float32), room)
        # A row that pads the batch still needs a last point to read.
        mask = np.pad(mask, room, constant_values=True)
        out = np.asarray(self._decode(self._params, x, mask, horizon=horizon))
        return mean[:, None] + std[:, None] * out[: len(contexts)].astype(np.float64)

    def usable_context(self, context_length: int | None, horizon: int) -> int:
        """The context that a forecast reads: the one given, or what the positions have room for.

        Raises:
          DataError: context and horizon together exceed `max_position_embeddings`.
        """
        limit = self.config.max_position_embeddings
        if context_length is None:
            context_length = limit - horizon
            if context_length < 1:
                raise DataError(
                    f"horizon {horizon} leaves no room for a context within "
                    f"max_position_embeddings {limit}"
                )
            return context_length
        context_length = _positive_int("context_length", context_length)
        if context_length + horizon > limit:
            raise DataError(
                f"context_length {context_length} + horizon {horizon} exceeds "
                f"max_position_embeddings {limit}"
            )
        return context_length

    def _batch_size(self, batch_size: int | str, length: int, horizon: int) -> int:
        if batch_size != "auto":
            return _positive_int("batch_size", batch_size)
        config = self.config
        positions = length + sum(horizon_plan(horizon, config.horizon_lengths)[:-1])
        kv_size = config.num_key_value_heads * config.head_dim
        cache = 2 * config.num_hidden_layers * positions * kv_size
        width = max(config.intermediate_size, 2 * config.expert_size) + 8 * config.hidden_size
        bytes_each = 4 * (2 * cache + length * width)
        fitting = max(1, AUTO_BATCH_BYTES // bytes_each)
        return min(MAX_AUTO_BATCH, 1 << (fitting.bit_length() - 1))


def _cast(params: nnx.State, dtype: jnp.dtype) -> nnx.State:
    """Parameters in the dtype they are computed in; norms and routers stay float32."""

    def cast(path: tuple[Any, ...], p: Array) -> Array:
        keep = any("norm" in str(key) or "router" in str(key) for key in path)
        return jnp.asarray(p, jnp.float32 if keep else dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def _context(
    series: Float64[np.ndarray, " _"], context_length: int, label: str
) -> tuple[Float64[np.ndarray, " _"], int]:
    """The points to read, from the first to the last observed, and how many missing ones follow."""
    recent = series[-context_length:]
    observed = np.flatnonzero(~np.isnan(recent))
    if not observed.size:
        raise DataError(
            f"{label} has no observed value among its last {len(recent)} points, which are all "
            "that the context holds"
        )
    first, end = observed[0], observed[-1] + 1
    return recent[first:end], len(recent) - int(end)


def _groups(
    contexts: Sequence[np.ndarray], gaps: Sequence[int]
) -> dict[tuple[int, int], list[int]]:
    """Which series run together: those of one padded length and one gap.

    The padded length follows from the series alone, so that the others cannot change its result.
    """
    groups: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    for i, (context, gap) in enumerate(zip(contexts, gaps, strict=True)):
        groups[_length_bucket(len(context)), gap].append(i)
    return groups


def _length_bucket(length: int) -> int:
    """A padded length at most a quarter longer (15 points where that is more), one of few."""
    step = max(16, _power_of_two(length) // 8)
    return -(-length // step) * step


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise DataError(f"{name} must be an integer of at least 1, but is {value!r}")
    return int(value)


def _check_finite(forecasts: Float64[np.ndarray, "B H"], labels: list[str], normalize: str) -> None:
    rows = np.flatnonzero(~np.isfinite(forecasts).all(axis=1))
    if not rows.size:
        return
    hint = (
        "with normalize='none' its values are fed raw and may be too large: try 'instance'"
        if normalize == "none"
        else "its values are too large for float64, or the checkpoint's parameters are not finite"
    )
    raise DataError(f"the forecast of {labels[rows[0]]} is not finite; {hint}")
