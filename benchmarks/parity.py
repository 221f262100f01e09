"""How far this library is from what the published implementation computes.

python benchmarks/parity.py tests/golden/moe_tiny

Each folder holds a published model (`config.json`, `model.safetensors`) and `expected.npz` with
what the published implementation computes from it, in float32 on a CPU. One row per quantity: the
largest error, beside the bound that `tests/models/test_parity.py` holds it to.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from timemoe_jax.checkpoints.published import read_published
from timemoe_jax.models.base import ModelOutput, abstract_model
from timemoe_jax.models.decoding import Decoded, decode_uncached
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.decoding import decode
from timemoe_jax.nn.experts.routing import router_statistics
from timemoe_jax.training import losses

HORIZONS = (1, 5, 8, 13, 37, 64, 96, 100, 192, 333)
# Decoding without a cache compiles once for every length, so not every horizon.
UNCACHED_HORIZONS = (1, 13, 100)
ALL_HORIZONS = {"forecasts": HORIZONS, "cached against uncached": UNCACHED_HORIZONS}
# The shortest that read what they have forecast.
QUICK_HORIZONS = {"forecasts": (5,), "cached against uncached": (2,)}
# Losses are relative to their value, gradients to their largest entry, the rest absolute.
BOUNDS = {
    "hidden": 2e-5,
    "heads": 2e-5,
    "router logits": 2e-5,
    "losses": 1e-5,
    "gradients": 1e-4,
    "forecasts": 1e-4,
    "cached against uncached": 1e-5,
}


class Case:
    """One published folder: what it should give, and what this library makes of it.

    Args:
      folder: holds the model and `expected.npz`.
      implementation: of the experts.
    """

    def __init__(self, folder: Path, implementation: str = "auto"):
        published = read_published(folder)
        self.params = published.params
        read: Any = published.config
        self.config = dataclasses.replace(read, expert_implementation=implementation)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.x = jnp.asarray(self.expected["input"])

    def error(self, quantity: str, horizon: int | None = None) -> float:
        """The largest error of a quantity; of forecasts at one horizon."""
        measures: dict[str, Callable[[], float]] = {
            "hidden": lambda: _gap(self._output.hidden, self.expected["hidden"]),
            "heads": self._heads_error,
            "router logits": self._logits_error,
            "losses": self._losses_error,
            "gradients": self._gradients_error,
            "forecasts": lambda: self._forecast_error(horizon or 1),
            "cached against uncached": lambda: self._cache_error(horizon or 1),
        }
        return measures[quantity]()

    @functools.cached_property
    def _output(self) -> ModelOutput:
        return _forward(self.config)(self.params, self.x)

    def _heads_error(self) -> float:
        predictions = self._output.predictions
        assert {f"head_{p}" for p in predictions} == {k for k in self.expected if "head_" in k[:5]}
        return _largest([_gap(v, self.expected[f"head_{p}"]) for p, v in predictions.items()])

    def _logits_error(self) -> float:
        logits, expected = self._output.router_logits, self.expected.get("router_logits")
        assert (logits is None) == (expected is None) == self.config.use_dense
        return 0.0 if logits is None or expected is None else _gap(logits, expected)

    @functools.cached_property
    def _losses_and_gradient(self) -> tuple[tuple[Array, Array], nnx.State]:
        mask = jnp.asarray(self.expected["mask"], jnp.float32)
        return _losses_and_gradient(self.config)(self.params, self.x, mask)

    def _losses_error(self) -> float:
        full, masked = self._losses_and_gradient[0]
        pairs = ((full, "loss_full"), (masked, "loss_masked"))
        return _largest([abs(float(a) / float(self.expected[name]) - 1) for a, name in pairs])

    def _gradients_error(self) -> float:
        gradient = self._losses_and_gradient[1]
        blocks, last = gradient["blocks"], str(self.config.horizon_lengths[-1])
        found = {
            "grad_q_proj0": blocks["attention"]["query"]["kernel"][0],
            "grad_embed_gate": gradient["embed"]["gate"][...],
            "grad_head_last": gradient["heads"][last]["kernel"][...],
        }
        if not self.config.use_dense:
            found["grad_gate0"] = blocks["ffn"]["router"]["kernel"][0]
            found["grad_expert3_down"] = blocks["ffn"]["experts"]["down"][-1, 3]
        expected = {k: v.T for k, v in self.expected.items() if k.startswith("grad_")}
        assert found.keys() == expected.keys()
        # An expert that no token chose has a gradient of zero, and ours must be zero, too.
        scales = {k: float(np.abs(v).max()) or 1.0 for k, v in expected.items()}
        return _largest([_gap(found[k], v) / scales[k] for k, v in expected.items()])

    def _generate(self, how: Callable[..., Decoded], horizon: int) -> Array:
        return _generation(self.config, how, horizon)(self.params, self.x)

    def _forecast_error(self, horizon: int) -> float:
        return _gap(self._generate(decode, horizon), self.expected[f"generate_{horizon}"])

    def _cache_error(self, horizon: int) -> float:
        return _gap(self._generate(decode, horizon), self._generate(decode_uncached, horizon))


# Programs, compiled once for all cases of one configuration.


@functools.cache
def _forward(config: TimeMoeConfig) -> Callable[..., ModelOutput]:
    graph, _ = abstract_model(config)
    return jax.jit(lambda params, x: nnx.merge(graph, params)(x))


@functools.cache
def _losses_and_gradient(config: TimeMoeConfig) -> Callable[..., tuple]:
    """The two published losses, and the gradient of the first; of parameters, series and a mask."""
    graph, _ = abstract_model(config)

    def loss(params: nnx.State, x: Array, mask: Array) -> tuple[Array, tuple[Array, Array]]:
        output = nnx.merge(graph, params)(x[:, :-1])
        balancing = _balancing(config, output)
        full = _full_loss(output, x) + balancing
        return full, (full, _masked_loss(output, x, mask) + balancing)

    def run(params: nnx.State, x: Array, mask: Array) -> tuple[tuple[Array, Array], nnx.State]:
        gradient, both = jax.grad(loss, has_aux=True)(params, x, mask)
        return both, gradient

    return jax.jit(run)


def _balancing(config: TimeMoeConfig, output: ModelOutput) -> Float[Array, ""]:
    """Weighted by its factor; as published it counts every token, masked or not."""
    if output.router_logits is None:
        return jnp.zeros(())
    statistics = router_statistics(output.router_logits, config.num_experts_per_tok)
    return config.router_aux_loss_factor * losses.balancing_loss(statistics)


def _masked_loss(output: ModelOutput, x: Array, mask: Array) -> Float[Array, ""]:
    targets = losses.Targets(x[:, 1:], mask)
    each = losses.forecast_losses(output.predictions, targets, delta=2.0)
    return sum(each.values(), jnp.zeros(())) / len(each)


def _full_loss(output: ModelOutput, x: Array) -> Float[Array, ""]:
    """The published loss without a mask: the zeros past the end count as targets."""
    each = [
        jnp.mean(losses.huber(predicted - losses.following(x[:, 1:], p), 2.0))
        for p, predicted in output.predictions.items()
    ]
    return sum(each, jnp.zeros(())) / len(each)


@functools.cache
def _generation(
    config: TimeMoeConfig, how: Callable[..., Decoded], horizon: int
) -> Callable[..., Array]:
    graph, _ = abstract_model(config)

    def run(params: nnx.State, x: Array) -> Array:
        return how(nnx.merge(graph, params), x, jnp.ones(x.shape, bool), horizon).point

    return jax.jit(run)


def _gap(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max())


def _largest(values: Sequence[float]) -> float:
    """Not a number if any is: the built-in `max` would pass over it."""
    return float(np.max(values))


def _error(case: Case, quantity: str, quick: bool) -> float:
    horizons = (QUICK_HORIZONS if quick else ALL_HORIZONS).get(quantity)
    if horizons is None:
        return case.error(quantity)
    return _largest([case.error(quantity, h) for h in horizons])


def main() -> None:
    """Prints the rows, and writes them as JSON if asked to."""
    parser = argparse.ArgumentParser(description="Distance from the published computation.")
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("tests/golden/moe_tiny")])
    parser.add_argument("--quick", action="store_true", help="short forecasts only")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    rows = []
    for folder in args.folders:
        case = Case(folder)
        for quantity, bound in BOUNDS.items():
            error = _error(case, quantity, args.quick)
            print(f"{folder.name:10} {quantity:26} {error:8.1e}   bound {bound:.0e}", flush=True)
            unit = "relative" if quantity in ("losses", "gradients") else "absolute"
            row = {"name": f"{folder.name} {quantity}", "value": error, "unit": unit}
            rows.append({**row, "reference": bound, "ratio": error / bound})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
