"""How fast the sparse layer is: beside a dense one, the published one, and the machine's peak.

python benchmarks/expert_layer.py
python benchmarks/expert_layer.py --sizes base --tokens 4096 \
    --published-python PYTHON --published-code CHECKOUT

Every implementation of `timemoe_jax.nn.experts.compute` ("capacity" with its default factor),
forward and forward+backward, as one compiled function: the router's logits, the top-k, and
`expert_ffn`. Forward+backward returns the output and the gradients of x and of all four kernels. In
the same rounds run

  dense    a SwiGLU of the same active parameters, hidden width K * F, compiled likewise, its
           products accumulated in float32. It has no router, so a ratio of 1 is already better
           than equal.
  pytorch  the published layer with the same arrays, its shared expert replaced by zeros: see
           `published.py`. Where its results have other norms, a line says so.

Rows are named `blocked forward+backward 4096`: implementation, pass, tokens; then the size unless
it is base, the dtype unless it is float32, and `segments of 4` where --segments has the first of
four tokens decide for all of them. The router then reads a quarter of the tokens, and whole
segments are sorted, gathered and put back; `decisions` are the router and the top-k alone. The
ratio is our time over the reference's: below 1, ours is faster. `GFLOP/s` are those that the
mathematics asks for, 6 * T * K * D * F forward and three times that forward+backward, beside the
rate of one large matrix product in the same rounds. `temporaries` is memory beside arguments and
results, as the compiler plans it.

The floor: a forward pass cannot take less than 6 * T * K * D * F / peak, the whole three times
that. The dense reference does exactly this work, so against one that runs at the peak the ratio
cannot fall below 1; the router, moving T * K rows there and back, and reading all E experts'
kernels come on top. An implementation that keeps no hidden activations computes gate and up again,
22 instead of 18 * T * K * D * F, so its floor forward+backward is 1.22.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import measure
from benchmarks.published import layer_arrays
from timemoe_jax.nn.experts.compute import IMPLEMENTATIONS, expert_ffn
from timemoe_jax.nn.experts.routing import Routing, route
from timemoe_jax.nn.experts.weights import ExpertWeights

NUM_EXPERTS, CHOICES = 8, 2
SIZES = {"base": (384, 768), "large": (768, 1536), "ultra": (1024, 2048)}  # D, F
TOKENS = (512, 2048, 4096, 16384, 65536)
PASSES = ("forward", "forward+backward")
MEMORY_SHARE = 0.5  # of what there is; a function that plans with more is skipped

Kernels = Sequence[Float[Array, "..."]]
Layer = Callable[[Float[Array, "T D"], Kernels], Float[Array, "T D"]]


class Work(NamedTuple):
    """One size, number of tokens and dtype."""

    size: str
    tokens: int
    dtype: str
    segment: int = 1  # tokens of a decision

    @property
    def suffix(self) -> str:
        """What of it stands in a row's name."""
        parts = [str(self.tokens)]
        parts += [self.size] if self.size != "base" else []
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [f"segments of {self.segment}"] if self.segment > 1 else []
        return " ".join(parts)

    def flops(self, kind: str) -> int:
        """What the mathematics of a pass asks for."""
        d_model, d_hidden = SIZES[self.size]
        forward = 6 * self.tokens * CHOICES * d_model * d_hidden
        return forward * (1 if kind == "forward" else 3)


class Compiled(NamedTuple):
    """A pass of a layer, and what it is called with."""

    run: Any
    arguments: tuple[Any, ...]

    @property
    def side(self) -> measure.Side:
        """What `measure.interleave` takes."""
        return measure.timed(lambda: self.run(*self.arguments))


def decide(x: Float[Array, "T D"], router: Float[Array, "D E"], segment: int) -> Routing:
    """What the first token of each segment decides."""
    first = x if segment == 1 else x[::segment]
    return route(first.astype(jnp.float32) @ router.astype(jnp.float32), CHOICES)


def sparse(implementation: str, segment: int) -> Layer:
    """Router, top-k and experts, as in `timemoe_jax.nn.experts.layer`."""

    def layer(x: Float[Array, "T D"], kernels: Kernels) -> Float[Array, "T D"]:
        router, *experts = kernels
        routing = decide(x, router, segment)
        return expert_ffn(x, routing, ExpertWeights(*experts), implementation)

    return layer


def decisions(segment: int) -> Layer:
    """Router and top-k alone."""

    def layer(x: Float[Array, "T D"], kernels: Kernels) -> Float[Array, "S K"]:
        return decide(x, kernels[0], segment).weights

    return layer


@jax.custom_vjp
def product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """Accumulated in float32, here and in its gradients, whose operands are of the given dtype.

    Without a rule of its own the gradient would multiply float32 by bfloat16 matrices.
    """
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _product_backward(
    operands: tuple[Array, Array], d_y: Float[Array, "M N"]
) -> tuple[Float[Array, "M K"], Float[Array, "K N"]]:
    a, b = operands
    d_y = d_y.astype(a.dtype)
    return product(d_y, b.T).astype(a.dtype), product(a.T, d_y).astype(b.dtype)


product.defvjp(lambda a, b: (product(a, b), (a, b)), _product_backward)


def swiglu(x: Float[Array, "T D"], kernels: Kernels) -> Float[Array, "T D"]:
    """The dense reference."""
    gate, up, down = kernels
    hidden = jax.nn.silu(product(x, gate)) * product(x, up)
    return product(hidden.astype(x.dtype), down).astype(x.dtype)


def compiled(layer: Layer, kind: str, x: Array, kernels: Kernels, d_y: Array) -> Compiled:
    """Compiles a pass; the output is a result of both, or nothing would ask for it."""

    def both(x: Array, kernels: Kernels, d_y: Array) -> tuple[Array, Any]:
        y, back = jax.vjp(layer, x, kernels)
        return y, back(d_y)

    function, arguments = (layer, (x, kernels)) if kind == "forward" else (both, (x, kernels, d_y))
    return Compiled(jax.jit(function).lower(*arguments).compile(), arguments)


class Bench:
    """Measures one work after the other.

    Args:
      implementations: of the experts.
      report: where rows go.
      published: None to do without.
      args: of the command line.
    """

    def __init__(
        self,
        implementations: Sequence[str],
        report: measure.Report,
        published: measure.PublishedProcess | None,
        args: argparse.Namespace,
    ):
        self.implementations = implementations
        self.report = report
        self.published = published
        self.rounds: int = args.rounds
        self.limit: float = args.limit
        self.peak = measure.MatrixPeak(args.dtype, args.quick)
        # By (who, pass, size): seconds per token, from which the next larger work is foreseen.
        self.pace: dict[tuple[str, str, str], float] = {}

    def run(self, work: Work) -> None:
        """Measures everything there is to measure of a work, and reports it."""
        layers = self._layers(work)
        sides = {name: one.side for name, one in layers.items()}
        sides |= self._published_sides(work, layers)
        sides["decisions"] = self._decisions(work)
        timings = measure.interleave({**sides, "peak": self.peak.side}, self.rounds)
        self.peak.see(timings.pop("peak"))
        routing = timings.pop("decisions").best * 1e3
        self.report.add(f"decisions {work.suffix}", routing, "ms")
        print(f"{f'decisions {work.suffix}':42} {routing:10.2f} ms", flush=True)
        for name, timing in timings.items():
            who, kind = name.split()
            self.pace[who, kind, work.size] = timing.best / work.tokens
        memory = {name: measure.temporaries(one.run) for name, one in layers.items()}
        for name in timings:
            self._report(work, name, timings, memory)

    def _layers(self, work: Work) -> dict[str, Compiled]:
        """By "who pass", what is worth running; the dense reference is called "SwiGLU"."""
        d_model, d_hidden = SIZES[work.size]
        arrays = layer_arrays(work.tokens, d_model, d_hidden, NUM_EXPERTS)
        x, d_y = (jnp.asarray(a, work.dtype) for a in (arrays[0], arrays[2]))
        kernels = tuple(jnp.asarray(a, work.dtype) for a in arrays[1])
        # As many columns, or rows, as K experts have.
        dense = (
            *(jnp.concatenate(list(k[:CHOICES]), axis=1) for k in kernels[1:3]),
            jnp.concatenate(list(kernels[3][:CHOICES])),
        )
        layers = {}
        for who in ("SwiGLU", *self.implementations):
            sparse_layer = (sparse(who, work.segment), kernels)
            layer, own = (swiglu, dense) if who == "SwiGLU" else sparse_layer
            for kind in PASSES:
                if self._too_long(who, kind, work):
                    continue
                one = self._compiled(f"{who} {kind} {work.suffix}", layer, kind, x, own, d_y)
                if one is not None:
                    layers[f"{who} {kind}"] = one
        return layers

    def _decisions(self, work: Work) -> measure.Side:
        """Router and top-k of a work."""
        arrays = layer_arrays(work.tokens, *SIZES[work.size], NUM_EXPERTS)
        x, router = jnp.asarray(arrays[0], work.dtype), jnp.asarray(arrays[1][0], work.dtype)
        run = jax.jit(decisions(work.segment))
        return measure.timed(lambda: run(x, (router,)))

    def _too_long(self, who: str, kind: str, work: Work) -> bool:
        pace = self.pace.get((who, kind, work.size), 0.0)
        if who == "dense" and not pace:
            # It computes all experts, not K.
            pace = work.flops(kind) * NUM_EXPERTS / CHOICES / self.peak.rate / work.tokens
        if pace * work.tokens <= self.limit:
            return False
        seconds = f"a call would take about {pace * work.tokens:.0f} s"
        print(f"{who} {kind} {work.suffix}: skipped, {seconds} (--limit)")
        return True

    def _compiled(
        self, name: str, layer: Layer, kind: str, x: Array, kernels: Kernels, d_y: Array
    ) -> Compiled | None:
        try:
            one = compiled(layer, kind, x, kernels, d_y)
        except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
            print(f"{name}: skipped, {str(error).splitlines()[0]}")
            return None
        if measure.temporaries(one.run) <= MEMORY_SHARE * measure.device_memory():
            return one
        print(f"{name}: skipped, it needs {measure.temporaries(one.run) / 1e9:.0f} GB")
        return None

    def _published_sides(self, work: Work, layers: dict[str, Compiled]) -> dict[str, measure.Side]:
        """The published layer's, after comparing what it computes with what ours do."""
        if self.published is None or work.segment > 1:
            return {}
        kinds = [kind for kind in PASSES if not self._too_long("pytorch", kind, work)]
        if not kinds:
            return {}
        d_model, d_hidden = SIZES[work.size]
        try:
            self.published.ask("clear")
            answer = self.published.ask(
                "layer",
                tokens=work.tokens,
                d_model=d_model,
                d_hidden=d_hidden,
                num_experts=NUM_EXPERTS,
                choices=CHOICES,
                dtype=work.dtype,
            )
        except measure.PublishedError as error:
            print(f"pytorch {work.suffix}: skipped, {error}")
            return {}
        self._compare(work, layers, answer["norms"])
        return {f"pytorch {kind}": self.published.side(kind) for kind in kinds}

    def _compare(self, work: Work, layers: dict[str, Compiled], expected: list[float]) -> None:
        """Equal work has equal norms: of the output and of every gradient."""
        bound = 1e-4 if jax.default_backend() == "cpu" else 2e-2
        for who in self.implementations:
            one = layers.get(f"{who} {PASSES[1]}")
            if one is None:
                continue
            y, (d_x, d_kernels) = one.run(*one.arguments)
            norms = [np.linalg.norm(np.asarray(a, np.float32)) for a in (y, d_x, *d_kernels)]
            error = np.max(np.abs(np.divide(norms, expected) - 1))
            if not error <= bound:
                print(f"{who} {work.suffix}: its norms are {error:.1%} off those of pytorch")

    def _report(
        self,
        work: Work,
        name: str,
        timings: dict[str, measure.Timing],
        memory: dict[str, int],
    ) -> None:
        """The rows of one side, and their line of the table."""
        who, kind = name.split()
        full, timing, add = f"{name} {work.suffix}", timings[name], self.report.add
        rate = work.flops(kind) / timing.best
        cells = [f"{timing.best * 1e3:10.2f} ms +{timing.spread:4.0%}"]
        references = {"dense": timings.get(f"SwiGLU {kind}")}
        references["pytorch"] = timings.get(f"pytorch {kind}")
        found = {key: other for key, other in references.items() if other is not None}
        if who in ("SwiGLU", "pytorch"):
            found = {}
        for key, other in found.items():
            add(full, timing.best * 1e3, "ms", key, other.best * 1e3)
        if not found:
            add(full, timing.best * 1e3, "ms")
        for key in references:
            cells.append(f"{timing.best / found[key].best:8.2f}" if key in found else " " * 8)
        add(f"{full} GFLOP/s", rate / 1e9, "GFLOP/s", "matrix product", self.peak.rate / 1e9)
        cells.append(f"{rate / 1e9:9.1f} {rate / self.peak.rate:7.0%}")
        if name in memory:
            of = None if who == "SwiGLU" else memory.get(f"SwiGLU {kind}", 0) / 1e6
            add(f"{full} temporaries", memory[name] / 1e6, "MB", "dense", of)
            cells.append(f"{memory[name] / 1e6:9.1f}")
        print(f"{full:42}", *cells, flush=True)


def parse() -> argparse.Namespace:
    """The command line; what it leaves open depends on --quick."""
    parser = argparse.ArgumentParser(description="Speed and memory of the sparse layer.")
    measure.add_flags(parser)
    parser.add_argument("--sizes", help=f"of {','.join(SIZES)}; default base,ultra, base if quick")
    parser.add_argument("--tokens", help=f"default {','.join(map(str, TOKENS))}; 512 if quick")
    parser.add_argument("--segments", default="1", help="tokens of a decision, such as 1,4")
    parser.add_argument("--implementations", help=f"default {','.join(IMPLEMENTATIONS)}")
    parser.add_argument(
        "--limit", type=float, default=20, help="skip what would take longer, in seconds per call"
    )
    args = parser.parse_args()
    args.sizes = measure.names(args.sizes or ("base" if args.quick else "base,ultra"))
    args.tokens = measure.names(
        args.tokens or ("512" if args.quick else ",".join(map(str, TOKENS)))
    )
    args.tokens = sorted(int(tokens) for tokens in args.tokens)
    args.segments = [int(segment) for segment in measure.names(args.segments)]
    odd = [t for t in args.tokens for s in args.segments if s < 1 or t % s]
    if odd:
        parser.error(f"--segments must divide every number of --tokens, but not {odd[0]}")
    args.implementations = measure.names(args.implementations or ",".join(IMPLEMENTATIONS))
    args.rounds = args.rounds or (2 if args.quick else 5)
    for flag, known in (("sizes", SIZES), ("implementations", IMPLEMENTATIONS)):
        unknown = set(getattr(args, flag)) - set(known)
        if unknown:
            parser.error(f"--{flag} may hold {', '.join(known)}, not {', '.join(unknown)}")
    return args


def main() -> None:
    """Prints the table, and writes the rows as JSON if asked to."""
    args = parse()
    measure.prepare()
    print(f"{measure.describe_machine()}, {args.dtype}")
    published = measure.start_published(args)
    report = measure.Report(args.json)
    bench = Bench(args.implementations, report, published, args)
    heading = f"{'best, spread':>19} {'/dense':>8} {'/pytorch':>8} {'GFLOP/s':>9} {'of peak':>7}"
    print(f"{'':42} {heading} {'temp MB':>9}", flush=True)
    try:
        for size in args.sizes:
            for tokens in args.tokens:
                for segment in args.segments:
                    bench.run(Work(size, tokens, args.dtype, segment))
    finally:  # a run given up still leaves its rows
        report.add("matrix product", bench.peak.rate / 1e9, "GFLOP/s")
        print(f"{'matrix product':42} {bench.peak.rate / 1e9:.1f} GFLOP/s")
        report.write()
        if published:
            published.close()


if __name__ == "__main__":
    main()
