"""How far Seg-MoE and MoHETS are from the published implementations.

python benchmarks/parity_encoders.py shared/parity_seg_moe/seg_tiny shared/parity_mohets/mohets_tiny

A folder holds a published model (`config.json`, `model.safetensors`) and `expected.npz` with what
the published implementation computes from it, in float32 on a CPU. One row per quantity: the
largest error, beside the bound that `tests/models/test_encoder_parity.py` holds it to.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from timemoe_jax.checkpoints.published import _as_tensors, read_published
from timemoe_jax.config import from_mapping
from timemoe_jax.models.base import ModelOutput, abstract_model, family_of
from timemoe_jax.nn.experts.routing import Routing
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.objective import make_loss

# Losses are relative to their value, gradients to the largest entry of a tensor, the rest absolute.
BOUNDS = {
    "output": 2e-5,
    "hidden": 2e-5,
    "router logits": 2e-5,
    "layer": 2e-5,
    "losses": 1e-5,
    "gradients": 1e-4,
    "gradient norms": 1e-4,
    "forecasts": 1e-4,
}


class Case:
    """One published folder: what it should give, and what this library makes of it.

    Args:
      folder: holds the model and `expected.npz`.
      implementation: of the experts.
    """

    def __init__(self, folder: Path, implementation: str = "auto"):
        published = read_published(folder)
        read: Any = published.config
        self.config = dataclasses.replace(read, expert_implementation=implementation)
        self.params = jax.tree.map(jnp.asarray, published.params)
        self.expected = dict(np.load(folder / "expected.npz"))
        marks = self.expected.get("marks")
        self.marks = None if marks is None else jnp.asarray(marks)
        self.x = self.expected["input"]

    def error(self, quantity: str) -> float:
        """The largest error of a quantity."""
        measures = {
            "output": self._outputs,
            "hidden": lambda: iter([self._gap("hidden", self._output.hidden)]),
            "router logits": self._logits,
            "layer": self._layer,
            "losses": self._losses,
            "gradients": self._gradients,
            "gradient norms": self._norms,
            "forecasts": self._forecasts,
        }
        return float(np.max([0.0, *measures[quantity]()]))

    def run(self, marks: Any = None, **changes: Any) -> ModelOutput:
        """The model's output, under a changed config if asked for."""
        config = dataclasses.replace(self.config, **changes)
        graph, _ = abstract_model(config)
        return jax.jit(lambda params, x: nnx.merge(graph, params)(x, marks=marks))(
            self.params, self.x
        )

    @functools.cached_property
    def _output(self) -> ModelOutput:
        return self.run(self.marks)

    def _gap(self, name: str, ours: Any) -> float:
        theirs = self.expected[name]
        return float(np.abs(np.asarray(ours).reshape(theirs.shape) - theirs).max())

    def _outputs(self) -> Iterator[float]:
        def of(output: ModelOutput) -> Any:
            return output.predictions[self.config.step]

        yield self._gap("output", of(self._output))
        if "output_weight_one" in self.expected:
            yield self._gap("output_weight_one", of(self.run(top1_weight="one")))
        if "output_no_marks" in self.expected:
            yield self._gap("output_no_marks", of(self.run()))
        if "output_top1" in self.expected:
            yield self._gap("output_top1", of(self.run(self.marks, num_experts_per_tok=1)))

    def _logits(self) -> Iterator[float]:
        for i in range(self.config.num_hidden_layers):
            name = f"router_logits_{i}"
            if name in self.expected:
                held = self._output.router_logits[i]
                rows = held.reshape(-1, *held.shape[-2:])[:, : self.expected[name].shape[1]]
                yield self._gap(name, rows)

    def _layer(self) -> Iterator[float]:
        """The last sparse layer alone, and what goes into cross-attention."""
        model = nnx.merge(abstract_model(self.config)[0], self.params)
        ffn = model.blocks[self.config.num_hidden_layers - 1].ffn
        if "moe_in" in self.expected:
            tokens = jnp.asarray(self.expected["moe_in"])
            yield self._gap("moe_out", ffn(tokens)[0])
            if "shared_out" in self.expected:
                yield self._gap("shared_out", ffn.shared(tokens))
        for name in self.expected:
            if name.startswith("expert_"):
                yield self._gap(name, _of_one_expert(ffn, int(name[7:]), tokens))
        if "mixed" in self.expected:
            x = self.x.reshape(-1, self.x.shape[-1])
            mean, deviation = (f(x, axis=1, keepdims=True) for f in (np.mean, np.var))
            normed = (x - mean) / np.sqrt(deviation + 1e-5)
            yield self._gap("mixed", model.covariates.mixed(normed, self.marks))
            yield self._gap("covariate_tokens", model.covariates(normed, self.marks))

    @functools.cached_property
    def _losses_and_gradient(self) -> Any:
        run = run_config(self.config, self.x.shape[-1])
        values = np.concatenate([self.x, self.expected["target"][..., -self.config.step :]], -1)
        batch = {"values": values, "mask": np.ones(values.shape, bool)}
        if self.marks is not None:
            later = self.expected["marks_future"][..., : self.config.step]
            batch["marks"] = np.concatenate([self.marks, later], -1)
        return jax.jit(jax.value_and_grad(make_loss(run), has_aux=True))(self.params, batch)

    def _losses(self) -> Iterator[float]:
        (total, parts), _ = self._losses_and_gradient
        factor = family_of(self.config).router_loss_factor(self.config)
        huber = parts.horizons[self.config.step]
        pairs = {"loss": total, "loss_huber": huber, "loss_balance": factor * parts.balancing}
        for name, ours in pairs.items():
            theirs = float(self.expected[name])
            yield abs(float(ours) - theirs) / (abs(theirs) or 1.0)

    @functools.cached_property
    def _gradient_tensors(self) -> dict[str, np.ndarray]:
        tensors = _as_tensors(self.config, self._losses_and_gradient[1])
        return {name: a for name, a in tensors.items() if "inv_freq" not in name}

    def _gradients(self) -> Iterator[float]:
        for name, theirs in self.expected.items():
            if name.startswith("grad."):
                ours = self._gradient_tensors[name.removeprefix("grad.")]
                yield float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))

    def _norms(self) -> Iterator[float]:
        theirs = self.expected["grad_norms"]
        ours = [
            np.linalg.norm(self._gradient_tensors[name].astype(np.float64))
            for name in sorted(self._gradient_tensors)
        ]
        yield float(
            np.max(np.abs(np.array(ours) - theirs) / np.maximum(theirs, theirs.max() / 1e3))
        )

    def forecast(self, x: Any, horizon: int, marks: Any = None) -> np.ndarray:
        """The forecast after contexts [B, C, T]."""
        graph, _ = abstract_model(self.config)
        family: Any = family_of(self.config)

        def run(params: nnx.State, x: Any, mask: Any, marks: Any) -> Any:
            return family.decode(nnx.merge(graph, params), x, mask, horizon, marks=marks).point

        return np.asarray(jax.jit(run)(self.params, x, np.ones(x.shape, bool), marks))

    def _forecasts(self) -> Iterator[float]:
        """The longest of each context: shorter ones are its beginning."""
        longest: dict[bool, tuple[int, str]] = {}
        for name in self.expected:
            if "forecast_" in name:
                key, found = "short" in name, (int(name.rpartition("_")[2]), name)
                longest[key] = max(longest.get(key, (0, "")), found)
        for short, (horizon, name) in longest.items():
            x = self.expected["short_input"] if short else self.x
            marks = self.marks
            if marks is not None:
                later = self.expected["marks_future"]
                marks = jnp.concatenate([marks[..., -x.shape[-1] :], later], axis=-1)
            whole = self.forecast(x, horizon, marks)
            yield self._gap(name, whole)
            for other in self.expected:
                if "forecast_" in other and ("short" in other) == short:
                    yield self._gap(other, whole[..., : int(other.rpartition("_")[2])])


def _of_one_expert(ffn: Any, number: int, tokens: Any) -> Any:
    """A routed expert on all tokens, unweighted."""
    rows = tokens.shape[0] * tokens.shape[1]
    indices = jnp.full((rows, 1), number, jnp.int32)
    return ffn._experts(tokens, Routing(indices, jnp.ones((rows, 1))))[0]


def run_config(model: Any, length: int) -> RunConfig:
    """A run of a model on windows of a length."""
    variates = family_of(model).covariate_variates(model)
    return from_mapping(
        RunConfig,
        {
            "model": {**dataclasses.asdict(model)},
            "data": {
                **{"length": length, "future": model.step, "synthetic_sequences": 1},
                **{"variates": variates, "calendar": variates > 0},
            },
        },
    )


def main() -> None:
    """Prints the rows, and writes them as JSON if asked to."""
    parser = argparse.ArgumentParser(description="Distance from the published computation.")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--quick", action="store_true", help="no forecasts")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    rows = []
    for folder in args.folders:
        case = Case(folder)
        for quantity, bound in BOUNDS.items():
            if args.quick and quantity == "forecasts":
                continue
            error = case.error(quantity)
            print(f"{folder.name:14} {quantity:16} {error:8.1e}   bound {bound:.0e}", flush=True)
            relative = quantity in ("losses", "gradients", "gradient norms")
            row = {"name": f"{folder.name} {quantity}", "value": error}
            row |= {"unit": "relative" if relative else "absolute"}
            rows.append({**row, "reference": bound, "ratio": error / bound})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
