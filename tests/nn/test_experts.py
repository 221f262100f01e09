"""The routed experts: by hand, and every implementation held to the dense one."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from timemoe_jax.nn import experts as nn_experts
from timemoe_jax.nn.experts import compute as experts
from timemoe_jax.nn.experts import grouped as expert_groups
from timemoe_jax.nn.experts.blocked import block_size
from timemoe_jax.nn.experts.compute import IMPLEMENTATIONS, count_dropped, expert_ffn, resolve
from timemoe_jax.nn.experts.kinds import KINDS, Inner
from timemoe_jax.nn.experts.parallel import Options, apply_experts
from timemoe_jax.nn.experts.routing import Routing, route
from timemoe_jax.nn.experts.weights import ExpertWeights
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig

D, F = 6, 10
# Room for every token on one expert: nothing is dropped.
AMPLE = 8.0
TOKAMAX = "grouped by tokamax"


def kernels(num_experts: int, seed: int = 0, dtype=jnp.float32) -> ExpertWeights:
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((num_experts, D, F), (num_experts, D, F), (num_experts, F, D))
    drawn = (jax.random.normal(k, s) / 2 for k, s in zip(keys, shapes, strict=True))
    return ExpertWeights(*(w.astype(dtype) for w in drawn))


def tokens(count: int, seed: int = 1, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, D)).astype(dtype)


def routed(count: int, choices: int, num_experts: int, seed: int = 0) -> Routing:
    return route(2 * jax.random.normal(jax.random.key(seed), (count, num_experts)), choices)


@functools.partial(jax.jit, static_argnames="implementation")
def value_and_gradients(x, indices, shares, weights, *, implementation):
    """The output, and the gradients of a weighted sum of it for everything that has one."""
    direction = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def loss(x, shares, weights):
        y = expert_ffn(x, Routing(indices, shares), weights, implementation, AMPLE)
        return jnp.sum(y.astype(jnp.float32) * direction), y

    gradients, y = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, shares, weights)
    return y, gradients


compiled = jax.jit(expert_ffn, static_argnames=("implementation", "capacity_factor"))
dense_ffn = functools.partial(compiled, implementation="dense")
capacity_ffn = functools.partial(compiled, implementation="capacity")


@jax.jit
def two_dense_layers(x, routing, stacked):
    """A sum over the output, and its gradients for the input and the kernels."""

    def total(x, stacked):
        for i in range(2):
            x = x + expert_ffn(x, routing, jax.tree.map(lambda w, i=i: w[i], stacked), "dense")
        return jnp.sum(jnp.sin(x))

    return jax.value_and_grad(total, (0, 1))(x, stacked)


def assert_close(reference, other) -> None:
    """To a few float32 roundings of the largest entry of each array."""
    for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(other), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(1.0, float(jnp.abs(a).max()))
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-6 * scale)


@pytest.fixture(params=[name for name in IMPLEMENTATIONS if name != "dense"] + [TOKAMAX])
def implementation(request, monkeypatch):
    """Each in turn; tokamax's product runs on a CPU too, so that what surrounds it is tested."""
    if request.param != TOKAMAX:
        return request.param
    pytest.importorskip("tokamax", reason="tokamax is absent: pip install tokamax")
    monkeypatch.setattr(expert_groups, "product_library", lambda backend: "tokamax")
    monkeypatch.setitem(IMPLEMENTATIONS, TOKAMAX, IMPLEMENTATIONS["grouped"])
    return TOKAMAX


class TestEveryImplementation:
    """What holds for all of them, beside the dense reference."""

    def check(self, implementation, x, routing, weights) -> None:
        run = functools.partial(value_and_gradients, x, *routing[:2], weights)
        assert_close(run(implementation="dense"), run(implementation=implementation))

    @pytest.mark.parametrize(
        ("count", "choices", "num_experts"),
        [(1, 1, 1), (33, 1, 8), (100, 2, 8), (65, 3, 3)],
    )
    def test_value_and_gradients(self, implementation, count, choices, num_experts):
        routing = routed(count, choices, num_experts)
        self.check(implementation, tokens(count), routing, kernels(num_experts))

    @pytest.mark.parametrize("order", [(0, 1), (7, 3)])
    def test_all_tokens_on_the_same_experts(self, implementation, order):
        """Several blocks for each of two experts, and six empty experts, without a gradient."""
        count = 100
        routing = Routing(jnp.tile(jnp.array(order), (count, 1)), jnp.full((count, 2), 0.3))
        weights = kernels(8)
        assert block_size(count, 2, 8) < count
        self.check(implementation, tokens(count), routing, weights)
        _, (_, _, d_weights) = value_and_gradients(
            tokens(count), *routing[:2], weights, implementation=implementation
        )
        for d in d_weights:
            used = np.abs(d).max(axis=(1, 2)) > 0
            assert set(np.flatnonzero(used)) == set(order)

    # What the fixture sets holds for all examples.
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 2**32 - 1), st.floats(0.2, 3.0))
    def test_any_routing(self, implementation, seed, skew):
        """From even to all on a few experts, of one compiled shape."""
        rng = np.random.default_rng(seed)
        preference = skew * np.arange(5) + rng.gumbel(size=(24, 5))
        indices = jnp.asarray(np.argsort(-preference, axis=1)[:, :2], jnp.int32)
        shares = jnp.asarray(rng.uniform(0, 1, (24, 2)), jnp.float32)
        self.check(implementation, tokens(24, seed % 1000), Routing(indices, shares), kernels(5))

    @pytest.mark.parametrize("kind", ["gelu", "fourier", "fourier_glu"])
    def test_kinds_and_segments(self, implementation, kind):
        """Twelve decisions of three tokens, one of nobody, with dropout: value and gradients."""
        if implementation in ("capacity", TOKAMAX) and kind == "fourier_glu":
            pytest.skip("the others differ from it by no more than a product")
        inner, span, routing = Inner(kind, 0.3), 3, routed(12, 2, 4)
        indices = routing.indices.at[5, 1].set(-1)
        seeds = jnp.arange(24, dtype=jnp.uint32).reshape(12, 2) * jnp.uint32(77_777_777)
        wide, narrow = KINDS[kind].width(2 * F - 4), KINDS[kind].width(2 * D - 4)
        size, hidden = 2 * D - 4, 2 * F - 4
        shapes = ((4, size, wide), (4, size, wide), (4, hidden, narrow))
        keys = jax.random.split(jax.random.key(3), 4)
        gate, up, down = (jax.random.normal(k, s) / 2 for k, s in zip(keys, shapes, strict=False))
        weights = ExpertWeights(gate if KINDS[kind].gated else None, up, down)
        x = jax.random.normal(keys[3], (12 * span, size))

        @functools.partial(jax.jit, static_argnames="name")
        def both(x, shares, weights, name):
            def loss(x, shares, weights):
                choice = Routing(indices, shares, seeds)
                y = expert_ffn(x, choice, weights, name, AMPLE, inner)
                return jnp.sum(jnp.sin(3 * y)), y

            return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, shares, weights)

        expected = both(x, routing.weights, weights, "dense")
        found = both(x, routing.weights, weights, implementation)
        for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * max(1.0, float(np.abs(a).max())))

    def test_indices_of_nobody(self, implementation):
        """Outside [0, E): no value, and no gradient, as if the weight were zero."""
        routing = routed(24, 2, 8)
        here = (routing.indices >= 2) & (routing.indices < 7)
        shifted = Routing(routing.indices - 2, routing.weights)
        nothing = Routing(
            jnp.where(here, routing.indices - 2, 0), jnp.where(here, routing.weights, 0)
        )
        assert not here.all()
        y, (d_x, d_shares, d_weights) = value_and_gradients(
            tokens(24), *shifted[:2], kernels(5), implementation=implementation
        )
        reference, (d_x_r, d_shares_r, d_weights_r) = value_and_gradients(
            tokens(24), *nothing[:2], kernels(5), implementation="dense"
        )
        assert_close((reference, d_x_r, d_weights_r), (y, d_x, d_weights))
        assert_close(jnp.where(here, d_shares_r, 0), d_shares)

    def test_bfloat16(self, implementation):
        """Against float32 from the same (rounded) numbers.

        No result passes more than eight roundings to bfloat16 in a row, each of a relative size of
        at most 2^-9.
        """
        x, weights = tokens(24, dtype=jnp.bfloat16), kernels(5, dtype=jnp.bfloat16)
        routing = routed(24, 2, 5, seed=3)
        single = jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights))
        exact = value_and_gradients(single[0], *routing[:2], single[1], implementation="dense")
        for name in ("dense", implementation):
            rounded = value_and_gradients(x, *routing[:2], weights, implementation=name)
            assert rounded[0].dtype == jnp.bfloat16
            for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
                error = np.linalg.norm(np.asarray(b, np.float32) - a) / np.linalg.norm(a)
                assert 0 < error < 8 * 2**-9

    def test_under_scan_and_checkpoint(self, implementation):
        """Two layers of stacked kernels: scanned and recomputed, as against one after the other."""
        stacked = jax.tree.map(lambda *w: jnp.stack(w), kernels(4, 0), kernels(4, 9))
        x, routing = tokens(20), routed(20, 2, 4, seed=3)
        ffn = functools.partial(expert_ffn, implementation=implementation, capacity_factor=AMPLE)

        def scanned(x, stacked):
            layer = jax.checkpoint(lambda h, w: (h + ffn(h, routing, w), None))
            return jnp.sum(jnp.sin(jax.lax.scan(layer, x, stacked)[0]))

        found = jax.jit(jax.value_and_grad(scanned, (0, 1)))(x, stacked)
        expected = two_dense_layers(x, routing, stacked)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(b).max()))

    @pytest.mark.parametrize("mapped", [False, True])
    def test_under_vmap(self, implementation, mapped):
        """Over nothing of its own, and over the tokens and their routing."""
        xs = jnp.stack([tokens(9, 1), tokens(9, 2 if mapped else 1)])
        routings = [routed(9, 2, 4, seed=s if mapped else 0) for s in (0, 1)]
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *routings)
        axis = 0 if mapped else None

        def one(x, routing, _):
            return expert_ffn(x, routing, kernels(4), implementation, AMPLE)

        each = (xs, stacked) if mapped else (xs[0], routings[0])
        out = jax.jit(jax.vmap(one, in_axes=(axis, axis, 0)))(*each, jnp.arange(2))
        expected = [dense_ffn(x, r, kernels(4)) for x, r in zip(xs, routings, strict=True)]
        assert_close(jnp.stack(expected), out)

    @pytest.mark.parametrize("checked", [False, True])
    def test_under_shard_map(self, implementation, checked):
        """Tokens over four devices, kernels on all: their gradients add up, whoever checks."""
        x, routing, weights = tokens(24), routed(24, 2, 5), kernels(5)
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = P("d"), Routing(P("d"), P("d")), P()
        ffn = functools.partial(expert_ffn, implementation=implementation, capacity_factor=AMPLE)
        mapped = jax.shard_map(ffn, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=checked)
        direction = jnp.cos(jnp.arange(x.size)).reshape(x.shape)

        def loss(x, shares, weights):
            y = mapped(x, Routing(routing.indices, shares), weights)
            return jnp.sum(y * direction), y

        gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, routing.weights, weights)
        expected = value_and_gradients(x, *routing[:2], weights, implementation="dense")
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves((y, gradients)), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=4e-6 * max(1.0, float(np.abs(a).max())))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "auto"])
def test_by_hand(implementation):
    """silu(40) is 40 in float32, and silu(0) is 0: two experts of width 1 can be worked out."""
    weights = ExpertWeights(
        gate=jnp.array([[[40.0]], [[80.0]]]),
        up=jnp.array([[[2.0]], [[1.0]]]),
        down=jnp.array([[[0.5]], [[0.25]]]),
    )
    x = jnp.array([[1.0], [2.0], [0.0]])
    # Expert 0: 40x * 2x / 2 = 40x². Expert 1: 80x * x / 4 = 20x².
    routing = Routing(
        jnp.array([[0, 1], [1, 0], [0, 1]]), jnp.array([[0.5, 0.25], [0.75, 0.125], [0.9, 0.1]])
    )
    expected = [[0.5 * 40 + 0.25 * 20], [0.75 * 80 + 0.125 * 160], [0.0]]
    found = compiled(x, routing, weights, implementation, 2.0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_by_hand(implementation):
    """As above: y = w * 40x², so dy/dw = 40x², dy/dx = 80wx, dy/ddown = w * 80x²."""
    weights = ExpertWeights(
        jnp.full((2, 1, 1), 40.0), jnp.full((2, 1, 1), 2.0), jnp.full((2, 1, 1), 0.5)
    )
    x, indices = jnp.array([[3.0]]), jnp.array([[1]])

    def y(x, shares, weights):
        return expert_ffn(x, Routing(indices, shares), weights, implementation)[0, 0]

    gradients = jax.jit(jax.grad(y, argnums=(0, 1, 2)))
    d_x, d_shares, d_weights = gradients(x, jnp.array([[0.25]]), weights)
    np.testing.assert_allclose(d_x, [[80 * 0.25 * 3]], rtol=1e-6)
    np.testing.assert_allclose(d_shares, [[40 * 9]], rtol=1e-6)
    # y = w * (gate x)(up x) down: each kernel's gradient is y over the kernel.
    np.testing.assert_allclose(d_weights.gate[:, 0, 0], [0, 90 / 40], rtol=1e-6)
    np.testing.assert_allclose(d_weights.up[:, 0, 0], [0, 90 / 2], rtol=1e-6)
    np.testing.assert_allclose(d_weights.down[:, 0, 0], [0, 90 / 0.5], rtol=1e-6)


def test_a_capacity_drops_the_last_second_choices():
    """Four tokens on two experts of 4 rows at factor 1; the first choices are served first."""
    indices = jnp.array([[0, 1], [0, 1], [0, 1], [1, 0]])
    routing = Routing(indices, jnp.full((4, 2), 0.5))
    x, weights = tokens(4), kernels(2)
    every = dense_ffn(x, routing, weights)
    ample = capacity_ffn(x, routing, weights, capacity_factor=1.0)
    np.testing.assert_allclose(ample, every, atol=1e-6)
    # 3 rows an expert: expert 0 has its three first choices, so token 3's second is dropped;
    # expert 1 has token 3's first and two of the three second choices.
    kept = routing.weights.at[3, 1].set(0).at[2, 1].set(0)
    reference = dense_ffn(x, Routing(indices, kept), weights)
    y = capacity_ffn(x, routing, weights, capacity_factor=0.75)
    np.testing.assert_allclose(y, reference, atol=1e-6)
    assert count_dropped(routing, 2, "capacity", 0.75) == 2
    assert count_dropped(routing, 2, "capacity", 1.0) == 0
    assert count_dropped(routing, 2, "blocked", 0.75) == 0


def test_dropped_choices_have_no_gradient():
    routing = Routing(jnp.zeros((8, 1), jnp.int32), jnp.full((8, 1), 0.5))

    def total(x, shares):
        y = expert_ffn(x, Routing(routing.indices, shares), kernels(2), "capacity", 1.0)
        return jnp.sum(y)

    d_x, d_shares = jax.jit(jax.grad(total, (0, 1)))(tokens(8), routing.weights)
    assert np.abs(d_x[:4]).min() > 0
    assert not d_x[4:].any()
    assert not d_shares[4:].any()


def test_the_config_offers_every_implementation():
    assert ("auto", *IMPLEMENTATIONS) == nn_experts.IMPLEMENTATIONS


def test_unknown_implementation():
    routing = Routing(jnp.zeros((3, 1), jnp.int32), jnp.ones((3, 1)))
    message = "must be auto, dense, blocked, grouped, capacity, but is 'sparse'"
    with pytest.raises(ValueError, match=message):
        expert_ffn(tokens(3), routing, kernels(2), "sparse")


@pytest.mark.parametrize(
    ("backend", "tokamax", "expected"),
    [
        ("cpu", True, "blocked"),
        ("gpu", True, "grouped"),
        ("gpu", False, "blocked"),
        ("tpu", False, "grouped"),
    ],
)
def test_auto_chooses_by_backend_and_says_so(backend, tokamax, expected, monkeypatch, caplog):
    monkeypatch.setattr(experts, "has_tokamax", lambda: tokamax)
    with caplog.at_level(logging.INFO):
        assert resolve("auto", backend) == expected
    assert f"expert implementation: {expected}, chosen for {backend}" in caplog.text


def test_grouped_on_a_gpu_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(expert_groups, "has_tokamax", lambda: False)
    with pytest.raises(ValueError, match=r"needs tokamax on a GPU.*: pip install tokamax"):
        expert_groups.product_library("gpu")
    assert expert_groups.product_library("tpu") == "xla"


@pytest.mark.parametrize("exchange", ["all_gather", "all_to_all"])
def test_segments_with_dropout_on_four_devices_as_on_one(exchange):
    """Twelve decisions of two tokens: value and gradients, with the draws that travel along."""
    x = tokens(24).reshape(4, 6, D)
    routing = routed(12, 2, 4)
    routing = routing._replace(seeds=jnp.arange(24, dtype=jnp.uint32).reshape(12, 2) * 77_777_777)
    weights = kernels(4)._replace(gate=None)
    options = Options("blocked", AMPLE, exchange, Inner("gelu", 0.2))

    def loss(x, shares, weights):
        y, dropped = apply_experts(x, routing._replace(weights=shares), weights, options)
        return jnp.sum(jnp.sin(y)), dropped

    run = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    expected = jax.jit(run)(x, routing.weights, weights)
    mesh = partitioning.make_mesh(MeshConfig(data=1, expert=4), jax.devices()[:4])
    with partitioning.use_mesh(mesh):
        found = jax.jit(lambda *a: run(*a))(x, routing.weights, weights)
    for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(1.0, float(np.abs(a).max())))
