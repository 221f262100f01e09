"""Which experts a model uses: the paper's Figure 4 (arXiv 2409.16040) for any model and series."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64

from timemoe_jax.errors import ConfigError
from timemoe_jax.forecasting.contexts import Inputs, check_finite
from timemoe_jax.forecasting.engine import Engine
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import family_of
from timemoe_jax.models.decoding import observed_positions, whole_positions
from timemoe_jax.nn.experts.routing import route, router_statistics

LOGITS = "the output of the router"


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
    by_series: bool = False,
) -> Float64[np.ndarray, "*N L E"]:
    """How much of each layer's work each expert does, over the observed points of all series.

    Of a model that decides for patches or segments, such a decision counts as a point does here.

    Args:
      source: a forecaster or a model that has experts.
      inputs: series, as `Forecaster.forecast` takes them; missing points do not count.
      context_length: read at most so many last points of each; by default as many as the model
        has positions.
      normalize: "instance" standardizes what is read of each series; "none" takes it as it is.
      weighted: whether each choice counts as much as the router's weight for it; else 1.
      batch_size: series per step, or "auto".
      progress: whether to show a progress bar.
      names: what to call each series in an error.
      by_series: whether to tell series, such as the channels of a joint model, apart.

    Returns:
      the share of the (point, choice) pairs that went to each expert; those of a layer sum to 1.
      With `by_series` there is an axis of series in front.

    Raises:
      ConfigError: the model is dense.
      DataError: a series or an argument cannot be used; the message says which and why.
    """
    engine = _sparse_engine(source)
    settings = engine.settings(0, context_length, normalize, batch_size, progress)
    contexts = Inputs.parse(inputs, names).contexts(settings.context_length)
    contexts = [context._replace(gap=0) for context in contexts]
    config = engine.config
    totals = np.zeros((len(contexts), config.num_hidden_layers, config.num_experts))

    def compute(params: nnx.State, x: Array, mask: Array, steps: int) -> tuple[Array, Array]:
        return _sums_of_batch(engine.graph, params, x, mask, weighted)

    for rows, _, (sums, finite) in engine.batches(contexts, settings, compute):
        filled = [row for row, i in enumerate(rows) if i >= 0]
        part = [rows[row] for row in filled]
        here = [contexts[i] for i in part]
        check_finite(LOGITS, np.asarray(finite)[filled], here, normalize)
        # In float64, whose whole numbers do not end at 2^24.
        totals[part] = np.asarray(sums, np.float64)[filled]
    if not by_series:
        totals = totals.sum(axis=0)
    return totals / totals.sum(axis=-1, keepdims=True)


def usage_sums(
    logits: Float[Array, "L B T E"],
    mask: Bool[Array, "B T"] | Bool[Array, "L B T"],
    num_experts_per_tok: int,
    *,
    bias: Float[Array, "L E"] | None = None,
    weighted: bool = False,
    scoring: str = "softmax",
) -> Float[Array, "L E"]:
    """How many (point, choice) pairs went to each expert, or the sum of their weights.

    Only points under the mask count, which is one for all layers or one for each; `bias` is the
    selection bias of each layer, and the scoring that of `route`.
    """
    if not weighted:
        counts = mask.astype(jnp.float32)
        statistics = router_statistics(
            logits, num_experts_per_tok, counts, bias=bias, scoring=scoring
        )
        return jnp.sum(statistics.choices, axis=-2)
    per_layer = None if bias is None else bias[:, None, None, :]
    routing = route(logits, num_experts_per_tok, per_layer, scoring)
    # Where a point does not count, its weight may be anything, even not a number.
    weights = jnp.where(mask[..., None], routing.weights, 0)
    chosen = jax.nn.one_hot(routing.indices, logits.shape[-1], dtype=jnp.float32)
    return jnp.einsum("lbtk,lbtke->le", weights, chosen)


# The function is global, and the structure of the model is a static argument, so that each shape
# compiles once for all calls.
@functools.partial(jax.jit, static_argnames=("graph", "weighted"))
def _sums_of_batch(
    graph: nnx.GraphDef,
    params: nnx.State,
    x: Float[Array, "B *C T"],
    mask: Bool[Array, "B *C T"],
    weighted: bool,
) -> tuple[Float[Array, "R L E"], Bool[Array, " R"]]:
    model = nnx.merge(graph, params)
    family = family_of(model.config)
    bias, k = family.selection_bias(params), family.experts_per_token(model.config)
    stride = family.stride(model.config)
    x, mask = whole_positions(x, mask, stride)
    output = model(x, mask)
    # Of a joint model every variate is a row, and of a patch that reads something counts. A model
    # whose decisions are of segments says which of them are of any points.
    logits = output.router_logits
    logits = logits.reshape(len(logits), -1, *logits.shape[-2:])
    counted = output.counts
    if counted is None:
        counted = observed_positions(mask.reshape(-1, mask.shape[-1]), stride)
    counted = jnp.broadcast_to(counted.reshape(-1, *logits.shape[1:3]), logits.shape[:3])
    bias = None if bias is None else bias[...]
    # Whether every decision about a series has finite logits.
    finite = jnp.all(jnp.isfinite(logits) | ~counted[..., None], axis=(0, 2, 3))

    def of_series(logits: Float[Array, "L T E"], mask: Bool[Array, "L T"]) -> Float[Array, "L E"]:
        how = functools.partial(usage_sums, bias=bias, weighted=weighted, scoring=family.scoring)
        return how(logits[:, None], mask[:, None], k)

    return jax.vmap(of_series, in_axes=(1, 1))(logits, counted), finite


def _sparse_engine(source: Forecaster | nnx.Module) -> Engine:
    """The engine of a forecaster, or one for a model in the dtype that it computes in."""
    model: Any = source
    config = model.config
    if not family_of(config).experts_per_token(config):
        raise ConfigError("the model is dense: it has no experts to look at")
    if isinstance(source, Forecaster):
        return source.engine
    return Engine(config, nnx.state(source, nnx.Param), config.dtype)
