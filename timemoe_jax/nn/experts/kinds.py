"""The kinds of experts: what is between an expert's kernels, and after them.

    swiglu        down(silu(gate(x)) * up(x))                      Time-MoE
    gelu          down(gelu(up(x)))                                Seg-MoE, MoHETS
    fourier       F(down(F(up(x))))                                MoHETS
    fourier_glu   F(down(F(up(x)) * sigmoid(F(gate(x)))))          MoHETS

F(a) = [cos p, sin p, gelu b] of a = [p, b], of which p is a third: a product of width 3m / 4 gives
m values (arXiv 2410.02675). GELU is the exact form, of the error function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from timemoe_jax.nn.dropout import kept, numbered
from timemoe_jax.nn.experts.weights import ExpertWeights

Pre = tuple[Array, ...]  # the products with gate, if there is one, and with up


def fourier(a: Float[Array, "... A"]) -> Float[Array, "... M"]:
    """[cos p, sin p, gelu b] of [p, b], of widths m / 4 and m / 2."""
    phase, rest = a[..., : a.shape[-1] // 3], a[..., a.shape[-1] // 3 :]
    gelu = jax.nn.gelu(rest, approximate=False)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase), gelu], axis=-1)


def _swiglu(gate: Array, up: Array) -> Array:
    return jax.nn.silu(gate) * up


def _swiglu_pull(pre: Pre) -> tuple[Array, Callable[[Array], Pre]]:
    gate, up = pre
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid

    def pull(d_hidden: Array) -> Pre:
        return d_hidden * up * (sigmoid + silu * (1 - sigmoid)), d_hidden * silu

    return silu * up, pull


class Kind(NamedTuple):
    """How an expert's products are put together."""

    gated: bool  # whether it has a kernel `gate`
    hidden: Callable[..., Array]  # of the products with (gate and) up
    output: Callable[[Array], Array] | None  # of the product with down; None leaves it as it is
    expanded: bool  # whether `hidden` and `output` give 4 values for 3
    # `hidden` with its derivative: from products to (hidden, d_hidden -> d_products).
    pull: Callable[[Pre], Any]

    def width(self, size: int) -> int:
        """The width of a product that gives `size` values."""
        return 3 * size // 4 if self.expanded else size


def _by_autodiff(hidden: Callable[..., Array]) -> Callable[[Pre], Any]:
    return lambda pre: jax.vjp(hidden, *pre)


def _gelu(up: Array) -> Array:
    return jax.nn.gelu(up, approximate=False)


def _fourier_glu(gate: Array, up: Array) -> Array:
    return fourier(up) * jax.nn.sigmoid(fourier(gate))


KINDS: dict[str, Kind] = {
    "swiglu": Kind(True, _swiglu, None, False, _swiglu_pull),
    "gelu": Kind(False, _gelu, None, False, _by_autodiff(_gelu)),
    "fourier": Kind(False, fourier, fourier, True, _by_autodiff(fourier)),
    "fourier_glu": Kind(True, _fourier_glu, fourier, True, _by_autodiff(_fourier_glu)),
}


class Inner(NamedTuple):
    """What the experts are inside: a kind, and the rate of the dropout before their last product.

    The dropout is drawn by `Routing.seeds`: one draw for each number that is multiplied.
    """

    kind: str = "swiglu"  # of KINDS
    dropout: float = 0.0

    def mask(self, seeds: UInt32[Array, " N"], width: int) -> Float[Array, "N W"]:
        """What the rows of the hidden activations are multiplied by, a seed for each row."""
        return kept(numbered(seeds[:, None], jnp.arange(width, dtype=jnp.uint32)), self.dropout)


SWIGLU = Inner()


def products(weights: ExpertWeights, product: Callable[[Array], Array]) -> Pre:
    """The products with the kernels that the input meets."""
    return tuple(product(w) for w in (weights.gate, weights.up) if w is not None)
