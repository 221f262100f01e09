"""Agreement with what the published implementation computes from the same weights."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from timemoe_jax import losses
from timemoe_jax.hf_conversion import read_published
from timemoe_jax.models.decoding import decode, decode_uncached, horizon_plan
from timemoe_jax.models.time_moe import TimeMoeOutput, abstract_model
from timemoe_jax.nn.routing import router_statistics

HORIZONS = (1, 5, 8, 13, 37, 64, 96, 100, 192, 333)
# Reading the whole series anew compiles once for every length, so not every horizon.
UNCACHED = (1, 13, 64)
UNCACHED_TINY = (5, 13, 100)


class Case:
    """One published folder, its expected values, and the model as a function of parameters."""

    def __init__(self, folder: Path, implementation: str = "auto"):
        published = read_published(folder)
        self.name = folder.name
        self.params = published.params
        self.config = dataclasses.replace(published.config, expert_implementation=implementation)
        self.graph, _ = abstract_model(self.config)
        self.expected = dict(np.load(folder / "expected.npz"))
        self.x = jnp.asarray(self.expected["input"])

    def run(self, params: nnx.State, x: jax.Array) -> TimeMoeOutput:
        return nnx.merge(self.graph, params)(x)

    @functools.cached_property
    def output(self) -> TimeMoeOutput:
        return jax.jit(self.run)(self.params, self.x)

    def balancing(self, output: TimeMoeOutput) -> jax.Array | float:
        if output.router_logits is None:
            return 0.0
        statistics = router_statistics(output.router_logits, self.config.num_experts_per_tok)
        return 0.02 * losses.balancing_loss(statistics)

    def masked_loss(self, output: TimeMoeOutput) -> jax.Array:
        mask = jnp.asarray(self.expected["mask"], jnp.float32)
        per_head = losses.forecast_losses(output.predictions, self.x[:, 1:], mask, delta=2.0)
        return sum(per_head.values()) / len(per_head) + self.balancing(output)

    def full_loss(self, output: TimeMoeOutput) -> jax.Array:
        """The published loss without a mask: the zeros past the end count as targets."""
        per_head = [
            jnp.mean(losses.huber(predicted - losses.following(self.x[:, 1:], p), 2.0))
            for p, predicted in output.predictions.items()
        ]
        return sum(per_head) / len(per_head) + self.balancing(output)

    @functools.cached_property
    def losses_and_gradient(self) -> tuple[jax.Array, jax.Array, nnx.State]:
        def loss(params: nnx.State) -> tuple[jax.Array, jax.Array]:
            output = self.run(params, self.x[:, :-1])
            return self.full_loss(output), self.masked_loss(output)

        (full, masked), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(self.params)
        return full, masked, gradient

    def generate(self, how, horizon: int) -> np.ndarray:
        def run(params: nnx.State, x: jax.Array) -> jax.Array:
            return how(nnx.merge(self.graph, params), x, jnp.ones(x.shape, bool), horizon)

        return np.asarray(jax.jit(run)(self.params, self.x))


@pytest.fixture(scope="module")
def case(parity_folder: Path) -> Case:
    return Case(parity_folder)


@pytest.fixture(scope="module")
def tiny_cases(golden: Path) -> dict[str, Case]:
    return {name: Case(golden, name) for name in ("dense", "blocked")}


def assert_close(actual, expected: np.ndarray, absolute: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=absolute)


def check_output(case: Case) -> None:
    """Hidden states, every head at every position, and the router's logits."""
    output, expected = case.output, case.expected
    assert_close(output.hidden, expected["hidden"], 2e-5)
    assert list(output.predictions) == [1, 8, 32, 64]
    for p, predicted in output.predictions.items():
        assert_close(predicted, expected[f"head_{p}"], 2e-5)
    if case.config.use_dense:
        assert output.router_logits is None
        assert "router_logits" not in expected
    else:
        assert_close(output.router_logits, expected["router_logits"], 2e-5)


def check_losses(case: Case) -> None:
    full, masked, _ = case.losses_and_gradient
    np.testing.assert_allclose(full, case.expected["loss_full"], rtol=1e-5)
    np.testing.assert_allclose(masked, case.expected["loss_masked"], rtol=1e-5)


def check_gradients(case: Case) -> None:
    gradient, config = case.losses_and_gradient[2], case.config
    blocks = gradient["blocks"]
    found = {
        "grad_q_proj0": blocks["attention"]["query"]["kernel"][0],
        "grad_embed_gate": gradient["embed"]["gate"][...],
        "grad_head_last": gradient["heads"][str(config.horizon_lengths[-1])]["kernel"][...],
    }
    if not config.use_dense:
        found["grad_gate0"] = blocks["ffn"]["router"]["kernel"][0]
        found["grad_expert3_down"] = blocks["ffn"]["experts"]["down"][-1, 3]
    assert set(found) == {key for key in case.expected if key.startswith("grad_")}
    for key, value in found.items():
        expected = case.expected[key].T
        assert_close(value, expected, 1e-4 * np.abs(expected).max())


CHECKS = (check_output, check_losses, check_gradients)


@pytest.mark.parametrize("check", CHECKS)
def test_matches_published(case: Case, check):
    check(case)


@pytest.mark.parametrize("implementation", ["dense", "blocked"])
@pytest.mark.parametrize("check", CHECKS)
def test_both_expert_implementations_match_published(tiny_cases, implementation, check):
    check(tiny_cases[implementation])


@pytest.mark.parametrize("horizon", HORIZONS)
def test_forecast(case: Case, horizon: int):
    """With the key/value cache, against the published forecast; without, against it."""
    cached = case.generate(decode, horizon)
    assert_close(cached, case.expected[f"generate_{horizon}"], 1e-4)
    if horizon in (UNCACHED_TINY if case.name == "moe_tiny" else UNCACHED):
        assert_close(case.generate(decode_uncached, horizon), cached, 1e-5)


def test_forecasts_cover_every_kind_of_step(case: Case):
    """Every horizon of the fixture is compared, several of them over steps of several heads."""
    found = {int(key[9:]) for key in case.expected if key.startswith("generate_")}
    assert found == set(HORIZONS)
    steps = {p for h in HORIZONS for p in horizon_plan(h, case.config.horizon_lengths)[1:]}
    assert steps == set(case.config.horizon_lengths)
