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
from timemoe_jax.models.decoding import decode_uncached
from timemoe_jax.models.time_moe.decoding import decode
from timemoe_jax.models.time_moe.model import TimeMoe
from timemoe_jax.nn.experts.routing import router_statistics
from timemoe_jax.training import losses

HORIZONS = (1, 5, 8, 13, 37, 64, 96, 100, 192, 333)
# Decoding without a cache compiles once for every length, so not every horizon.
UNCACHED_HORIZONS = (1, 13, 100)
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
        self.graph, _ = abstract_model(self.config)
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

    def _run(self, params: nnx.State, x: Float[Array, "B T"]) -> ModelOutput:
        return nnx.merge(self.graph, params)(x)

    @functools.cached_property
    def _output(self) -> ModelOutput:
        return jax.jit(self._run)(self.params, self.x)

    def _heads_error(self) -> float:
        predictions = self._output.predictions
        assert {f"head_{p}" for p in predictions} == {k for k in self.expected if "head_" in k[:5]}
        return _largest([_gap(v, self.expected[f"head_{p}"]) for p, v in predictions.items()])

    def _logits_error(self) -> float:
        logits, expected = self._output.router_logits, self.expected.get("router_logits")
        assert (logits is None) == (expected is None) == self.config.use_dense
        return 0.0 if logits is None or expected is None else _gap(logits, expected)

    def _balancing(self, output: ModelOutput) -> Float[Array, ""]:
        """Weighted by its factor; as published it counts every token, masked or not."""
        if output.router_logits is None:
            return jnp.zeros(())
        statistics = router_statistics(output.router_logits, self.config.num_experts_per_tok)
        return self.config.router_aux_loss_factor * losses.balancing_loss(statistics)

    def _masked_loss(self, output: ModelOutput) -> Float[Array, ""]:
        mask = jnp.asarray(self.expected["mask"], jnp.float32)
        each = losses.forecast_losses(
            output.predictions, losses.Targets(self.x[:, 1:], mask), delta=2.0
        )
        return sum(each.values(), jnp.zeros(())) / len(each) + self._balancing(output)

    def _full_loss(self, output: ModelOutput) -> Float[Array, ""]:
        """The published loss without a mask: the zeros past the end count as targets."""
        each = [
            jnp.mean(losses.huber(predicted - losses.following(self.x[:, 1:], p), 2.0))
            for p, predicted in output.predictions.items()
        ]
        return sum(each, jnp.zeros(())) / len(each) + self._balancing(output)

    @functools.cached_property
    def _losses_and_gradient(self) -> tuple[Array, Array, nnx.State]:
        def loss(params: nnx.State) -> tuple[Array, Array]:
            output = self._run(params, self.x[:, :-1])
            return self._full_loss(output), self._masked_loss(output)

        (full, masked), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.params)
        return full, masked, gradient

    def _losses_error(self) -> float:
        full, masked, _ = self._losses_and_gradient
        pairs = ((full, "loss_full"), (masked, "loss_masked"))
        return _largest([abs(float(a) / float(self.expected[name]) - 1) for a, name in pairs])

    def _gradients_error(self) -> float:
        gradient = self._losses_and_gradient[2]
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

    def _generate(self, how: Callable[..., Array], horizon: int) -> Array:
        def run(params: nnx.State, x: Array) -> Array:
            return how(nnx.merge(self.graph, params), x, jnp.ones(x.shape, bool), horizon)

        return jax.jit(run)(self.params, self.x)

    def _forecast_error(self, horizon: int) -> float:
        return _gap(self._generate(_point, horizon), self.expected[f"generate_{horizon}"])

    def _cache_error(self, horizon: int) -> float:
        return _gap(self._generate(_point, horizon), self._generate(_uncached, horizon))


def _point(model: TimeMoe, x: Array, mask: Array, horizon: int) -> Array:
    return decode(model, x, mask, horizon).point


def _uncached(model: TimeMoe, x: Array, mask: Array, horizon: int) -> Array:
    return decode_uncached(model, x, mask, horizon).point


def _gap(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max())


def _largest(values: Sequence[float]) -> float:
    """Not a number if any is: the built-in `max` would pass over it."""
    return float(np.max(values))


def _error(case: Case, quantity: str, quick: bool) -> float:
    if quantity not in ("forecasts", "cached against uncached"):
        return case.error(quantity)
    horizons = HORIZONS if quantity == "forecasts" else UNCACHED_HORIZONS
    return _largest([case.error(quantity, h) for h in (horizons[:2] if quick else horizons)])


def main() -> None:
    """Prints the rows, and writes them as JSON if asked to."""
    parser = argparse.ArgumentParser(description="Distance from the published computation.")
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("tests/golden/moe_tiny")])
    parser.add_argument("--quick", action="store_true", help="the two shortest forecasts only")
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
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
