"""Which experts a model uses: per dataset, and at every point of one series, with pictures of both.

The paper's Figure 4 (arXiv 2409.16040) for any model and any series.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64, Int

from timemoe_jax.config import NORMALIZATIONS
from timemoe_jax.data.series import location_and_scale, positive_int, validate_series
from timemoe_jax.errors import ConfigError, DataError
from timemoe_jax.forecasting.engine import power_of_two
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import ModelConfig, family_of
from timemoe_jax.nn.experts.routing import Routing, route, router_statistics
from timemoe_jax.runtime.progress import progress_bar

if TYPE_CHECKING:
    pass

# What one batch may take where its size is chosen here.
BATCH_BYTES = 2**28
MAX_BATCH = 64


def expert_usage(
    source: Forecaster | nnx.Module,
    inputs: Any,
    context_length: int | None = None,
    normalize: str = "instance",
    *,
    weighted: bool = False,
    batch_size: int | str = "auto",
    progress: bool = False,
    names: Sequence[str] | None = None,
) -> Float64[np.ndarray, "L E"]:
    """How much of each layer's work each expert does, over the observed points of all series.

    Args:
      source: a forecaster, or a model; it has experts.
      inputs: one series [T], several [N, T], or a list of series of different lengths; NaN where
        missing, which counts for nothing.
      context_length: read at most so many last points of each; by default as many as the model
        has positions.
      normalize: "instance" z-scores what is read of each series; "none" takes it as it is.
      weighted: whether each choice counts as much as the router's weight for it; else 1.
      batch_size: series per step, or "auto".
      progress: whether to show a progress bar.
      names: what to call each series in an error.

    Returns:
      the share of the (point, choice) pairs that went to each expert; each layer's sum to 1.

    Raises:
      ConfigError: the model is dense.
      DataError: a series or an argument cannot be used; the message says which and why.
    """
    model = _sparse_model(source)
    series = validate_series(inputs, names)
    labels = list(names) if names else [f"series {i}" for i in range(len(series))]
    length = _context_length(context_length, model.config)
    _check_normalize(normalize)
    contexts = [_context(s, length, label) for s, label in zip(series, labels, strict=True)]
    graph, params = nnx.split(model)
    totals = np.zeros((model.config.num_hidden_layers, model.config.num_experts))
    rows_of: dict[int, list[int]] = {}
    for i, context in enumerate(contexts):
        rows_of.setdefault(_bucket(len(context)), []).append(i)
    with progress_bar(total=len(series), unit="series", disable=not progress) as bar:
        for bucket, rows in rows_of.items():
            size = _batch_size(batch_size, bucket, model.config)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                height = min(size, power_of_two(len(part)))
                x, mask = _batch([contexts[i] for i in part], height, bucket, normalize)
                sums, finite = _sums_of_batch(graph, params, x, mask, weighted)
                _check_finite(np.asarray(finite), [labels[i] for i in part], normalize)
                # In float64, whose whole numbers do not end at 2^24.
                totals += np.asarray(sums, np.float64)
                bar.update(len(part))
    return totals / totals.sum(axis=1, keepdims=True)


def expert_path(
    source: Forecaster | nnx.Module,
    series: Any,
    normalize: str = "instance",
    name: str = "the series",
) -> Int[np.ndarray, "L T K"]:
    """The experts that each layer chooses at every point of one series, best first.

    Args:
      source: a forecaster, or a model; it has experts.
      series: one series [T], no longer than the model has positions; NaN where missing.
      normalize: "instance" z-scores the series; "none" takes it as it is.
      name: what to call it in an error.

    Returns:
      the number of an expert; -1 where the point is missing.

    Raises:
      ConfigError: the model is dense.
      DataError: the series cannot be used; the message says why.
    """
    model = _sparse_model(source)
    _check_normalize(normalize)
    rows = validate_series(series, None if np.ndim(series) > 1 else [name])
    limit = model.config.max_position_embeddings
    if len(rows) != 1:
        raise DataError(f"{name} must be one series [T], but {len(rows)} are given")
    (values,) = rows
    if len(values) > limit:
        raise DataError(
            f"{name} has {len(values)} points, more than max_position_embeddings {limit}; "
            "give a part of it"
        )
    graph, params = nnx.split(model)
    x, mask = _batch([values], 1, min(_bucket(len(values)), limit), normalize)
    indices, finite = _path_of_batch(graph, params, x, mask)
    _check_finite(np.asarray(finite), [name], normalize)
    return np.where(np.isnan(values)[None, :, None], -1, np.asarray(indices)[:, 0, : len(values)])


def usage_sums(
    logits: Float[Array, "L B T E"],
    mask: Bool[Array, "B T"],
    num_experts_per_tok: int,
    *,
    bias: Float[Array, "L E"] | None = None,
    weighted: bool = False,
) -> Float[Array, "L E"]:
    """How many (point, choice) pairs went to each expert, or the sum of their weights.

    Args:
      logits: of the routers.
      mask: True where a point counts.
      num_experts_per_tok: K.
      bias: the selection bias of each layer, as `route` was given it.
      weighted: whether a pair counts as much as its weight; else 1.
    """
    if not weighted:
        counts = mask.astype(jnp.float32)
        statistics = router_statistics(logits, num_experts_per_tok, counts, bias=bias)
        return jnp.sum(statistics.choices, axis=-2)
    routing = _route_layers(logits, num_experts_per_tok, bias)
    # Where a point does not count, its weight may be anything, even not a number.
    weights = jnp.where(mask[None, :, :, None], routing.weights, 0)
    chosen = jax.nn.one_hot(routing.indices, logits.shape[-1], dtype=jnp.float32)
    return jnp.einsum("lbtk,lbtke->le", weights, chosen)


def _route_layers(
    logits: Float[Array, "L B T E"], num_experts_per_tok: int, bias: Float[Array, "L E"] | None
) -> Routing:
    per_layer = None if bias is None else bias[:, None, None, :]
    return route(logits, num_experts_per_tok, per_layer)


# The structure of the model is an argument that does not change, and the functions are global, so
# that each shape compiles once for all calls.
@functools.partial(jax.jit, static_argnames=("graph", "weighted"))
def _sums_of_batch(
    graph: nnx.GraphDef,
    params: nnx.State,
    x: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    weighted: bool,
) -> tuple[Float[Array, "L E"], Bool[Array, " B"]]:
    logits, bias, k = _router_logits(graph, params, x, mask)
    return usage_sums(logits, mask, k, bias=bias, weighted=weighted), _finite(logits, mask)


@functools.partial(jax.jit, static_argnames="graph")
def _path_of_batch(
    graph: nnx.GraphDef, params: nnx.State, x: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> tuple[Int[Array, "L B T K"], Bool[Array, " B"]]:
    logits, bias, k = _router_logits(graph, params, x, mask)
    return _route_layers(logits, k, bias).indices, _finite(logits, mask)


def _router_logits(
    graph: nnx.GraphDef, params: nnx.State, x: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, "L B T E"], Float[Array, "L E"] | None, int]:
    """The logits, the selection bias and how many experts are chosen."""
    model = nnx.merge(graph, params)
    family = family_of(model.config)
    bias = family.selection_bias(params)
    logits = model(x, mask).router_logits
    return logits, None if bias is None else bias[...], family.experts_per_token(model.config)


def _finite(logits: Float[Array, "L B T E"], mask: Bool[Array, "B T"]) -> Bool[Array, " B"]:
    """Of which series every observed point has finite logits."""
    return jnp.all(jnp.isfinite(logits) | ~mask[None, :, :, None], axis=(0, 2, 3))


def _check_finite(finite: Bool[np.ndarray, " B"], labels: Sequence[str], normalize: str) -> None:
    for label, good in zip(labels, finite, strict=False):  # the rows beyond fill the batch
        if not good:
            hint = (
                "with normalize='none' its values may be too large: try 'instance'"
                if normalize == "none"
                else "the model's parameters may not be finite"
            )
            raise DataError(f"{label}: the router's logits are not finite; {hint}")


def _sparse_model(source: Forecaster | nnx.Module) -> Any:
    model: Any = source.model if isinstance(source, Forecaster) else source
    if not family_of(model.config).experts_per_token(model.config):
        raise ConfigError("the model is dense: it has no experts to look at")
    return model


def _check_normalize(normalize: str) -> None:
    if normalize not in NORMALIZATIONS:
        raise DataError(f"normalize must be {' or '.join(NORMALIZATIONS)}, but is {normalize!r}")


def _context_length(context_length: Any, config: ModelConfig) -> int:
    limit = config.max_position_embeddings
    if context_length is None:
        return config.default_context or limit
    length = positive_int("context_length", context_length)
    if length > limit:
        raise DataError(f"context_length {length} exceeds max_position_embeddings {limit}")
    return length


def _context(
    series: Float64[np.ndarray, " _"], context_length: int, label: str
) -> Float64[np.ndarray, " _"]:
    """The last points, from the first to the last that is observed."""
    recent = series[-context_length:]
    observed = np.flatnonzero(~np.isnan(recent))
    if not observed.size:
        raise DataError(f"{label} has no observed value among its last {len(recent)} points")
    return recent[observed[0] : observed[-1] + 1]


def _batch(
    contexts: Sequence[Float64[np.ndarray, " _"]], height: int, length: int, normalize: str
) -> tuple[Float[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Normalised series, padded on the right to one length, and where they are observed."""
    values = np.full((len(contexts), length), np.nan)
    for row, context in zip(values, contexts, strict=True):
        row[: len(context)] = context
    if normalize == "instance":
        mean, std = location_and_scale(values)
        values = (values - mean[:, None]) / np.where(std > 0, std, 1.0)[:, None]
    mask = np.zeros((height, length), bool)
    mask[: len(values)] = ~np.isnan(values)
    x = np.zeros((height, length), np.float32)
    with np.errstate(over="ignore"):  # what float32 does not hold is found by its logits
        x[: len(values)] = np.where(mask[: len(values)], values, 0)
    return x, mask


def _batch_size(batch_size: int | str, length: int, config: Any) -> int:
    if batch_size != "auto":
        return positive_int("batch_size", batch_size)
    routed = 4 * config.num_hidden_layers * config.num_experts * config.num_experts_per_tok
    width = max(config.intermediate_size, 2 * config.expert_size) + 8 * config.hidden_size
    fitting = max(1, BATCH_BYTES // (4 * length * (routed + width)))
    return min(MAX_BATCH, 1 << (fitting.bit_length() - 1))


def _bucket(length: int) -> int:
    """A padded length, one of few: a power of two from 16 on."""
    return max(16, power_of_two(length))
