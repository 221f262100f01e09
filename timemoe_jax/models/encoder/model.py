"""An encoder of patches: embedding, blocks, and a head that says the window shifted in time.

The blocks of a model differ in shape where their segments do, so they are not stacked: each is
compiled by itself, of which the published models have four to eight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from timemoe_jax.errors import DataError
from timemoe_jax.models.base import ModelOutput
from timemoe_jax.models.encoder.config import EncoderConfig
from timemoe_jax.models.encoder.windows import aligned, marks_from, moved_back
from timemoe_jax.nn.attention.encoder import EncoderAttention
from timemoe_jax.nn.dropout import Seed, drop_path, dropout, seed_of
from timemoe_jax.nn.experts.parallel import Options
from timemoe_jax.nn.experts.segments import Decisions, Noise, SegmentMoe
from timemoe_jax.nn.layers import RMSNorm
from timemoe_jax.nn.patches import PatchEmbedding, WindowHead, instance_statistics, uniform
from timemoe_jax.runtime import partitioning

EPS = 1e-6  # of the norms of tokens
_SEEDS = 8  # that a block draws, at most

Layer = Callable[[int], SegmentMoe]


def expert_options(config: EncoderConfig) -> Options:
    """How the experts are computed."""
    return Options(
        config.expert_implementation, config.expert_capacity_factor, config.expert_exchange
    )


class Encoded(NamedTuple):
    """What `Encoder.encode` returns."""

    outputs: Float[Array, "R L"]  # of the window's points, in the units of the input
    hidden: Float[Array, "R T D"]  # after the final norm
    decisions: list[Decisions]  # of each layer that has a router


class Block(nnx.Module):
    """x += attention(norm(x)); x += cross attention(norm(x)), if any; x += layer(norm(x))."""

    def __init__(
        self, config: EncoderConfig, layer: int, ffn: SegmentMoe, cross: bool, *, rngs: nnx.Rngs
    ):
        size = config.hidden_size

        def attention() -> EncoderAttention:
            return EncoderAttention(
                size,
                config.num_attention_heads,
                config.num_key_value_heads,
                theta=config.rope_theta,
                init=uniform,
                dtype=jnp.dtype(config.dtype),
                rngs=rngs,
            )

        self.attention_norm = RMSNorm(size, eps=EPS)
        self.attention = attention()
        self.cross_norm = RMSNorm(size, eps=EPS) if cross else None
        self.cross = attention() if cross else None
        self.ffn_norm = RMSNorm(size, eps=EPS)
        self.ffn = ffn
        self.rates = config.dropout, config.drop_path_of(layer)

    def __call__(
        self,
        h: Float[Array, "R T D"],
        mask: Bool[Array, "R T"] | None,
        covariates: Float[Array, "R T D"] | None,
        seeds: list[Seed] | None,
    ) -> tuple[Float[Array, "R T D"], Decisions | None]:
        """The residual stream, float32, and what the router decided."""
        rate, path = self.rates
        of = (lambda i: None) if seeds is None else (lambda i: seeds[i])
        read = self.attention(self.attention_norm(h), mask, rate=rate, seed=of(0))
        h = h + drop_path(read, path, of(1))
        if covariates is not None and self.cross is not None and self.cross_norm is not None:
            read = self.cross(self.cross_norm(h), mask, covariates, rate, of(2))
            h = h + drop_path(read, path, of(3))
        noise = None if seeds is None else Noise(seeds[4], seeds[5], seeds[6])
        y, decisions = self.ffn(self.ffn_norm(h), mask, noise)
        return h + drop_path(y, path, of(7)), decisions


class Encoder(nnx.Module):
    """The whole model.

    Args:
      config: the architecture, and how to compute it.
      layer: makes the sparse layer of the block of a number.
      covariates: makes tokens of marks and series; None of a model without covariates.
      rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        config: EncoderConfig,
        layer: Layer,
        covariates: nnx.Module | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.embed = PatchEmbedding(
            config.patch_size,
            config.hidden_size,
            norm=config.embedding_norm,
            dtype=dtype,
            rngs=rngs,
        )
        self.covariates = covariates
        cross = covariates is not None
        self.blocks = nnx.List(
            [Block(config, i, layer(i), cross, rngs=rngs) for i in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, eps=EPS)
        self.head = WindowHead(config.patch_size, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B *C T"],
        mask: Bool[Array, "B *C T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        *,
        marks: Float[Array, "B M T"] | None = None,
        key: Array | None = None,
    ) -> ModelOutput:
        """Says at each point of a window the value `config.step` points later.

        Args:
          x: windows of at most `max_position_embeddings` points, in any units.
          mask: False where a point is missing or padding. A window lasts from its first observed
            point to its last; missing points in between are interpolated.
          segments: packed rows, which this model does not read.
          marks: the calendar of the points, of a model with covariates; None leaves them out.
          key: draws dropout and stochastic depth, while training.

        Returns:
          predictions {step: [B, *C, T, 1]}, 0 where there is none; hidden states of the tokens,
          from the first observed point on; logits [L, B, *C, S, E] of the routers, of the layer
          with most segments, zeros beyond those of the others; and which of them `count`.
        """
        if segments is not None:
            raise DataError("an encoder reads no packed rows; give data.policy 'windows'")
        *lead, length = x.shape
        rows = x.reshape(-1, length).astype(jnp.float32)
        flat = None if mask is None else mask.reshape(rows.shape)
        joint = marks is not None
        window = aligned(rows, flat, lead[-1] if joint else 1)
        if marks is not None and mask is not None:
            marks = marks_from(marks, window.first[:: lead[-1]], length)
        lengths = None if mask is None else window.lengths
        encoded = self.encode(window.values, lengths, marks, key)
        outputs = moved_back(encoded.outputs, window.first, length).reshape(*lead, length, 1)
        hidden = encoded.hidden.reshape(*lead, *encoded.hidden.shape[1:])
        output = ModelOutput({self.config.step: outputs}, hidden)
        return output if not encoded.decisions else _with_decisions(output, encoded, lead)

    def encode(
        self,
        x: Float[Array, "R W"],
        lengths: Int[Array, " R"] | None = None,
        marks: Float[Array, "B M W"] | None = None,
        key: Array | None = None,
    ) -> Encoded:
        """The windows that come out, of rows that begin at index 0 and have so many points."""
        config = self.config
        if x.shape[1] < config.patch_size:
            x = jnp.pad(x, ((0, 0), (0, config.patch_size - x.shape[1])))
        tokens = x.shape[1] // config.patch_size
        points = mask = None
        if lengths is not None:
            points = jnp.arange(x.shape[1]) < lengths[:, None]
            mask = jnp.arange(tokens) < (lengths // config.patch_size)[:, None]
        mean, deviation = instance_statistics(x, points)
        normed = (x - mean) / deviation
        normed = normed if points is None else jnp.where(points, normed, 0)
        drop = None if key is None else seed_of(key, 0)
        h = dropout(self.embed(normed, mask), config.dropout, drop)
        covariates = None
        make: Any = self.covariates
        if marks is not None and make is not None:
            drop = None if key is None else seed_of(key, 1)
            covariates = dropout(make(normed, marks, mask), config.dropout, drop)
        decisions = []
        for i, block in enumerate(self.blocks):
            numbers = range(_SEEDS * (i + 1), _SEEDS * (i + 2))
            seeds = None if key is None else [seed_of(key, n) for n in numbers]
            h, decided = block(h, mask, covariates, seeds)
            h = partitioning.constrain(h, partitioning.BATCH)
            decisions += [] if decided is None else [decided]
        hidden = self.norm(h)
        outputs = self.head(hidden, mask) * deviation + mean
        return Encoded(outputs, hidden, decisions)


def _with_decisions(output: ModelOutput, encoded: Encoded, lead: list[int]) -> ModelOutput:
    """The decisions of all layers side by side: those of few segments are padded."""
    decisions = encoded.decisions
    most = max(each.logits.shape[1] for each in decisions)

    def stacked(arrays: list[Array]) -> Array:
        padded = [
            jnp.pad(a, ((0, 0), (0, most - a.shape[1])) + ((0, 0),) * (a.ndim - 2)) for a in arrays
        ]
        joined = jnp.stack(padded)
        return joined.reshape(len(joined), *lead, *joined.shape[2:])

    drawn = [each.probabilities for each in decisions if each.probabilities is not None]
    return output._replace(
        router_logits=stacked([each.logits for each in decisions]),
        dropped=jnp.stack([each.dropped for each in decisions]),
        counts=stacked([each.counts for each in decisions]),
        probabilities=stacked(drawn) if len(drawn) == len(decisions) else None,
    )
