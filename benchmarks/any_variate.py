"""How fast attention among variates is, beside plain causal attention with as many scores.

python benchmarks/any_variate.py

`any_variate_attention` of C variates of N patches, 8 heads of 64, forward and forward+backward, as
compiled functions. In the same rounds runs `causal_attention` over one series of C * N positions,
"plain": it has as many scores. Rows are named `all forward 7x42`: links, pass, variates x patches.
A ratio below 1 says that ours is faster. `linked` has half of the links absent, which changes the
mask alone, and `learned` has links with a gradient.

`temporaries` is the memory beside arguments and results, as the compiler plans it, of
forward+backward. Without blocks it would hold the scores of all (C * N)^2 pairs of every head.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import measure
from timemoe_jax.nn.attention.any_variate import any_variate_attention
from timemoe_jax.nn.attention.causal import causal_attention

HEADS, SIZE, PATCHES = 8, 64, 42
VARIATES = (1, 2, 4, 7, 14, 21, 42, 64)
PASSES = ("forward", "forward+backward")
KINDS = ("all", "linked", "learned")


def ours(kind: str, variates: int, batch: int) -> Callable[..., Array]:
    """Attention among variates, of queries, keys and values [B, N, C * T, H], patches first."""
    links: Array | None = None
    if kind != "all":
        drawn = np.random.default_rng(0).random((batch, variates, variates)) < 0.5
        links = jnp.asarray(drawn | np.eye(variates, dtype=bool))
        links = links if kind == "linked" else links.astype(jnp.float32)
    bias = jnp.zeros((HEADS, variates, variates))

    def attend(q: Array, k: Array, v: Array) -> Array:
        q_, k_, v_ = (a.reshape(*a.shape[:2], -1, variates, a.shape[-1]) for a in (q, k, v))
        return any_variate_attention(q_, k_, v_, bias, links).reshape(q.shape)

    return attend


def plain(q: Array, k: Array, v: Array) -> Array:
    """The reference."""
    return causal_attention(q, k, v, None, "plain")


def compiled(attend: Callable[..., Array], kind: str, arrays: list[Array]) -> Any:
    """Compiles a pass; the gradients are those of queries, keys and values."""

    def both(q: Array, k: Array, v: Array, d_out: Array) -> tuple[Array, Any]:
        out, back = jax.vjp(attend, q, k, v)
        return out, back(d_out)

    if kind == "forward":
        return jax.jit(attend).lower(*arrays[:3]).compile(), arrays[:3]
    return jax.jit(both).lower(*arrays).compile(), arrays


def run(variates: int, args: argparse.Namespace, report: measure.Report) -> None:
    """Measures all kinds and passes at one number of variates."""
    shape = (args.batch, HEADS, variates * PATCHES, SIZE)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(a, args.dtype) for a in rng.normal(size=(4, *shape))]
    for kind in PASSES:
        programs = {"plain": compiled(plain, kind, arrays)}
        for links in KINDS if variates > 1 else KINDS[:1]:
            programs[links] = compiled(ours(links, variates, args.batch), kind, arrays)
        sides = {name: measure.timed(partial(f, *a)) for name, (f, a) in programs.items()}
        times = measure.interleave(sides, args.rounds or (2 if args.quick else 5))
        memory = {name: measure.temporaries(f) / 1e6 for name, (f, _) in programs.items()}
        for name in list(programs)[1:]:
            row = f"{name} {kind} {variates}x{PATCHES}"
            own, other = times[name].best * 1e3, times["plain"].best * 1e3
            report.add(row, own, "ms", "plain", other)
            report.add(f"{row} temporaries", memory[name], "MB", "plain", memory["plain"])
            print(
                f"{row:36} {own:9.2f} ms, {own / other:5.2f} of plain;"
                f" temporaries {memory[name]:8.1f} MB, plain {memory['plain']:8.1f} MB",
                flush=True,
            )


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measure.add_flags(parser)
    parser.add_argument("--variates", help=f"such as 7,21; default {VARIATES}, 2,7 if quick")
    parser.add_argument("--batch", type=int, default=1, help="windows (default 1)")
    args = parser.parse_args()
    measure.prepare()
    report = measure.Report(args.json)
    print(measure.describe_machine())
    chosen = measure.names(args.variates) if args.variates else None
    for variates in chosen or ((2, 7) if args.quick else VARIATES):
        run(int(variates), args, report)
    report.write()


if __name__ == "__main__":
    main()
