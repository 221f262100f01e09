"""One update: schedule, decay, clipping, masks, accumulation, updates that are not finite."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_model import TINY

from timemoe_jax.data.config import DataConfig
from timemoe_jax.models.base import abstract_model
from timemoe_jax.nn.experts.parallel import Experts
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training import step as training_step
from timemoe_jax.training.config import LossConfig, OptimizerConfig, RunConfig, TrainConfig
from timemoe_jax.training.losses import Targets, forecast_losses
from timemoe_jax.training.objective import make_loss, read_at
from timemoe_jax.training.optimizer import learning_rate_schedule
from timemoe_jax.training.step import (
    batch_arrays,
    compile_train_step,
    make_train_step,
    make_validation,
)

MODEL = dataclasses.replace(
    TINY, intermediate_size=32, num_key_value_heads=2, initializer_range=0.2
)
CONFIG = RunConfig(
    model=MODEL,
    data=DataConfig(synthetic_sequences=1, length=24),
    optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
    train=TrainConfig(num_steps=20, batch_size=8),
)


# Compiled once for each configuration.
_initial_state = functools.cache(training_step.create_state)
_step = functools.cache(make_train_step)
_compiled_step = functools.cache(compile_train_step)
_validation = functools.cache(make_validation)


@functools.cache
def _loss(config):
    return jax.jit(make_loss(config))


@functools.cache
def _gradient(config):
    return jax.jit(jax.value_and_grad(lambda p, b: make_loss(config)(p, b)[0]))


def _with(section, **values):
    return dataclasses.replace(
        CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **values)}
    )


def create_state(config, params=None, mesh=None):
    """One of its own, since an update takes its state's buffers."""
    if params is not None:
        return training_step.create_state(config, params, mesh)
    # Its model, optimizer and seed are all that the state depends on.
    parts = {name: getattr(config, name) for name in ("model", "optimizer", "seed")}
    return jax.tree.map(jnp.copy, _initial_state(dataclasses.replace(CONFIG, **parts), mesh=mesh))


def _batch(seed=0, rows=8, length=24):
    rng = np.random.default_rng(seed)
    t = np.arange(length + 1)
    values = np.sin(t / 2 + rng.uniform(0, 6, (rows, 1))) + 0.1 * rng.normal(size=(rows, len(t)))
    return {"values": values.astype(np.float32), "mask": np.ones(values.shape, bool)}


def test_the_loss_falls():
    step, state = _step(CONFIG), create_state(CONFIG)
    losses = []
    for i in range(20):
        state, metrics = step(state, _batch(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert int(state.step) == 20
    assert int(state.skipped) == 0


@pytest.mark.parametrize("exclude", ["vectors", "none"])
def test_the_decay_mask(exclude):
    config = _with("optimizer", weight_decay=0.5, weight_decay_exclude=exclude, learning_rate=1e-9)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.1, eps=1e6)
    )
    state = create_state(config)
    params = jax.tree.map(lambda p: p + 1.0, state.params)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(params))
    # With so large an eps the gradient moves nothing, and the decay alone is left.
    after, _ = _step(config)(create_state(config, params), _batch())
    ratio = jax.tree.map(lambda a, b: a / b, nnx.to_pure_dict(after.params), before)
    decayed = 1 - 0.1 * 0.5
    np.testing.assert_allclose(ratio["embed"]["gate"], decayed, rtol=1e-4)
    np.testing.assert_allclose(ratio["blocks"]["ffn"]["experts"]["up"], decayed, rtol=1e-4)
    kept = decayed if exclude == "none" else 1.0
    np.testing.assert_allclose(ratio["blocks"]["attention"]["key"]["bias"], kept, rtol=1e-4)
    np.testing.assert_allclose(ratio["norm"]["scale"], kept, rtol=1e-4)


def test_padded_targets_never_count():
    loss, state = _loss(CONFIG), create_state(CONFIG)
    batch = _batch()
    batch["mask"][:, 15:] = False
    value, grads = _gradient(CONFIG)(state.params, batch)
    other = {**batch, "values": batch["values"].copy()}
    other["values"][:, 15:] = 1e3
    same, same_grads = _gradient(CONFIG)(state.params, other)
    assert float(value) == float(same)
    chex.assert_trees_all_equal(grads, same_grads)
    short = {name: a[:, :15] for name, a in batch.items()}
    for p, expected in loss(state.params, short)[1].horizons.items():
        np.testing.assert_allclose(loss(state.params, batch)[1].horizons[p], expected, rtol=1e-6)


def test_by_default_an_update_is_that_of_the_whole_windows():
    """As published: values as they come, every head at every observed point, nothing drawn."""
    state, batch = create_state(CONFIG), _batch()
    batch["mask"][1, 5:] = batch["mask"][3, 8:11] = False
    model = nnx.merge(abstract_model(MODEL)[0], state.params)

    @jax.jit
    def plain(values, mask):
        counted = mask.astype(jnp.float32)
        predictions = model(values[:, :-1], mask[:, :-1]).predictions
        targets = Targets(values[:, 1:], counted[:, 1:], counted[:, :-1])
        return forecast_losses(predictions, targets, delta=2.0)

    expected = plain(batch["values"], batch["mask"])
    for seed in (0, 7):
        config = dataclasses.replace(CONFIG, seed=seed)
        _, metrics = _step(config)(create_state(CONFIG), batch)
        for p, loss in expected.items():
            np.testing.assert_allclose(metrics[f"loss_{p}"], loss, rtol=1e-6)


def _strided(**horizons):
    model = dataclasses.replace(MODEL, use_dense=True, **horizons)
    config = dataclasses.replace(_with("data", future=3), model=model)
    return dataclasses.replace(config, loss=LossConfig(max_steps_per_position=2))


def test_where_heads_are_read():
    """Of 2 steps for each position: heads of 1 at all, of 4 at every second, of 7 at every 4th."""
    config = _strided(horizon_lengths=(1, 4, 7, 100))
    firsts = {p: [] for p in config.model.horizon_lengths}
    for seed in range(60):
        at = read_at(config, jax.random.key(seed))
        for p, stride, count in ((1, 1, 24), (4, 2, 12), (7, 4, 6), (100, 24, 1)):
            firsts[p].append(int(at[p][0]))
            np.testing.assert_array_equal(at[p], firsts[p][-1] + stride * np.arange(count))
            assert at[p][-1] < 24
    assert {p: set(found) for p, found in firsts.items() if p < 100} == {
        1: {0},
        4: {0, 1},
        7: {0, 1, 2, 3},
    }
    assert len(set(firsts[100])) > 15
    # Heads of the same update are read at places of their own.
    assert any(a != b for a, b in zip(firsts[4], firsts[7], strict=True))
    for p, own in read_at(config, None).items():
        np.testing.assert_array_equal(own, np.arange(24), err_msg=str(p))
    assert read_at(CONFIG, jax.random.key(0)) is None


def test_a_head_read_now_and_then_learns_the_same():
    """The gradient is, on average over the phases, that of the head read at every position."""
    config = _strided()
    params = create_state(config).params
    batch = _batch(length=26)
    gradient = jax.jit(jax.grad(lambda *arguments: make_loss(config)(*arguments)[0]))
    whole = gradient(params, batch, {p: jnp.arange(24) for p in (1, 4)})
    phases = [gradient(params, batch, {1: jnp.arange(24), 4: jnp.arange(k, 24, 2)}) for k in (0, 1)]
    # Targets past the end of the future do not count: weigh the phases by those that do.
    counts = np.array([sum(min(4, 26 - t) for t in range(k, 24, 2)) for k in (0, 1)])
    assert counts[0] != counts[1]
    shares = counts / counts.sum()
    heads = [g["heads"]["4"]["kernel"][...] for g in (whole, *phases)]
    mean = shares[0] * heads[1] + shares[1] * heads[2]
    np.testing.assert_allclose(mean, heads[0], rtol=1e-4, atol=1e-6)
    assert np.abs(heads[1] - heads[2]).max() > 1e-4


def test_each_update_reads_other_positions():
    """By its number: the same update twice is the same, the next one of the same batch is not."""
    config = dataclasses.replace(_strided(), optimizer=OptimizerConfig(learning_rate=1e-30))
    step, losses = make_train_step(config), []
    for _ in range(2):
        state, own = create_state(config), []
        for _ in range(8):
            state, metrics = step(state, _batch(length=26))
            own.append(float(metrics["loss_4"]))
        losses.append(own)
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 2  # one for each phase


def test_missing_points_are_neither_read_nor_aimed_at():
    loss, state = _loss(CONFIG), create_state(CONFIG)
    batch = _batch()
    batch["mask"][:, 7:10] = False
    other = {**batch, "values": np.where(batch["mask"], batch["values"], -50.0)}
    assert float(loss(state.params, batch)[0]) == float(loss(state.params, other)[0])


def test_a_batch_without_a_single_target_is_harmless():
    batch = _batch()
    batch["mask"][:] = False
    _, metrics = _step(CONFIG)(create_state(CONFIG), batch)
    assert bool(metrics["finite"])
    assert float(metrics["loss"]) == 0.0


def test_balancing_leaves_padding_out_unless_asked():
    batch = _batch()
    batch["mask"][:, 12:] = False
    published = _with("loss", balance_counts_padding=True)
    state = create_state(CONFIG)
    ours = _loss(CONFIG)(state.params, batch)[1].statistics
    theirs = _loss(published)(state.params, batch)[1].statistics
    np.testing.assert_array_equal(ours.tokens, [8 * 12])
    np.testing.assert_array_equal(theirs.tokens, [8 * 24])


def test_accumulation_gives_the_gradient_of_the_batch():
    # With a large eps an update is smooth in the gradient; with a small one it is its sign.
    no_balancing = dataclasses.replace(
        _with("optimizer", eps=1.0), model=dataclasses.replace(MODEL, apply_aux_loss=False)
    )
    config = _accumulating(no_balancing, 4)
    batch = _batch()
    batch["mask"][1, 5:] = False  # micro-batches of unequal weight
    batch["mask"][6, 9:] = False
    whole, one = _step(no_balancing)(create_state(no_balancing), batch)
    parts, many = _step(config)(create_state(config), batch)
    np.testing.assert_allclose(one["loss"], many["loss"], rtol=1e-6)
    np.testing.assert_allclose(one["gradient_norm"], many["gradient_norm"], rtol=1e-5)
    np.testing.assert_array_equal(one["expert_load"], many["expert_load"])
    chex.assert_trees_all_close(whole.params, parts.params, rtol=0, atol=1e-7)


def _temporaries(batch_size, micro_batches):
    """Planned bytes of an update beyond its arguments."""
    train = TrainConfig(num_steps=20, batch_size=batch_size, gradient_accumulation=micro_batches)
    config = dataclasses.replace(_with("data", length=200), train=train)
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    return compile_train_step(config, mesh).memory_analysis().temp_size_in_bytes


def test_accumulation_holds_the_activations_of_one_micro_batch():
    """Beside the gradient it adds up to, and the batch cut into parts."""
    one, four, whole = _temporaries(8, 1), _temporaries(32, 4), _temporaries(32, 1)
    params = sum(a.nbytes for a in jax.tree.leaves(create_state(CONFIG).params))
    batch = 32 * 201 * 5
    assert four < one + 2 * params + 4 * batch
    assert whole > 3 * one


def test_the_state_is_updated_in_place():
    """Its buffers are donated: what the update returns lies where its argument lay."""
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    plan = _compiled_step(CONFIG, mesh).memory_analysis()
    state = sum(a.nbytes for a in jax.tree.leaves(create_state(CONFIG)))
    assert plan.alias_size_in_bytes >= state
    before = create_state(CONFIG)
    _step(CONFIG)(before, _batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


def test_nothing_travels_between_host_and_device_in_an_update():
    """Under the guard of the loop: what lies on the device runs, a host's array is refused."""
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    step, state = _compiled_step(CONFIG, mesh), create_state(CONFIG, mesh=mesh)
    batch = jax.device_put(_batch(), partitioning.batch_sharding(mesh))
    with jax.transfer_guard("disallow"):
        state, _ = step(state, batch)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            step(state, _batch())


def _packed_batch(rows=8, length=24):
    batch = _batch(rows=rows, length=length)
    cuts = np.random.default_rng(0).integers(1, length, (rows, 3))
    numbers = 1 + np.sum(np.arange(length + 1) >= np.sort(cuts)[..., None], axis=1)
    numbers[:, -2:] = 0
    return {**batch, "mask": numbers > 0, "segments": numbers.astype(np.int32)}


def test_a_packed_batch_compiles_and_trains():
    """With segments where the policy packs, without them where it bleeds or does not pack."""
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    names = {}
    for bleeds in (False, True):
        config = _with("data", policy="packing", packing_bleeds=bleeds)
        names[bleeds] = set(batch_arrays(config))
        batch = {name: _packed_batch()[name] for name in names[bleeds]}
        batch = jax.device_put(batch, partitioning.batch_sharding(mesh))
        state = create_state(config, mesh=mesh)
        _, metrics = compile_train_step(config, mesh)(state, batch)
        assert bool(metrics["finite"])
    assert names == {False: {"values", "mask", "segments"}, True: {"values", "mask"}}
    assert set(batch_arrays(CONFIG)) == {"values", "mask"}


def test_micro_batches_of_packed_windows_add_up():
    """The forecast losses of the whole batch, with segments that differ from row to row."""
    batch = _packed_batch()
    whole, four = (
        _step(_with("train", gradient_accumulation=n))(create_state(CONFIG), batch)[1]
        for n in (1, 4)
    )
    for name in ("loss_1", "loss_4"):
        np.testing.assert_allclose(whole[name], four[name], rtol=1e-5)
    plain = {name: batch[name] for name in ("values", "mask")}
    other = _step(CONFIG)(create_state(CONFIG), plain)[1]
    assert abs(float(other["loss_4"]) - float(whole["loss_4"])) > 1e-4


def test_segments_on_a_mesh_change_nothing():
    """Each device attends within its own rows and heads, and their segments."""
    batch = _packed_batch()
    losses = []
    for sizes, devices in (({}, 1), ({"data": 2, "tensor": 2}, 4)):
        mesh = partitioning.make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
        config = _with("data", policy="packing")
        state = create_state(config, mesh=mesh)
        placed = jax.device_put(batch, partitioning.batch_sharding(mesh))
        _, metrics = compile_train_step(config, mesh)(state, placed)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_mixed_precision_trains_as_float32_does():
    """200 updates each way. bfloat16 has 8 bits: losses differ by parts in a hundred, no more."""
    train = TrainConfig(num_steps=200, batch_size=8)
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=10)
    base = dataclasses.replace(CONFIG, train=train, optimizer=optimizer)
    curves, states = {}, {}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(base, model=dataclasses.replace(MODEL, dtype=dtype))
        step, state, curve = _step(config), create_state(config), []
        for i in range(200):
            state, metrics = step(state, _batch(seed=i))
            curve.append(float(metrics["loss"]))
        curves[dtype], states[dtype] = np.array(curve), state
    floats = [
        a for a in jax.tree.leaves(states["bfloat16"]) if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    assert all(a.dtype == jnp.float32 for a in floats)
    single, mixed = curves["float32"], curves["bfloat16"]
    assert single[-20:].mean() < 0.2 * single[0]
    assert not np.array_equal(single, mixed)
    np.testing.assert_allclose(mixed[:5], single[:5], rtol=0.02)
    np.testing.assert_allclose(mixed[-20:].mean(), single[-20:].mean(), rtol=0.1)


def _equations(jaxpr):
    """Every equation of a program, those of the programs within it too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_what_is_float32_in_mixed_precision():
    """Router, softmax, norms and loss; every other product has bfloat16 operands."""
    model = dataclasses.replace(MODEL, dtype="bfloat16", num_experts=6, hidden_size=20)
    config = dataclasses.replace(CONFIG, model=model)
    params = jax.eval_shape(lambda: training_step.create_state(config).params)
    equations = list(_equations(jax.make_jaxpr(make_loss(config))(params, _batch()).jaxpr))
    # Exponentials are those of softmaxes, logarithms those of the router's, roots those of norms.
    for name in ("exp", "log", "rsqrt", "reduce_max"):
        found = [e for e in equations if e.primitive.name == name]
        assert found, name
        assert all(v.aval.dtype == jnp.float32 for e in found for v in e.invars), name
    products = [e for e in equations if e.primitive.name == "dot_general"]
    router = [e for e in products if {(20, 6)} & {v.aval.shape for v in e.invars}]
    assert router
    assert all(v.aval.dtype == jnp.float32 for e in router for v in e.invars)
    kernels = {(20, 20), (20, 16), (16, 20), (20, 32), (32, 20), (20, 1), (20, 4)}
    layers = [e for e in products if kernels & {v.aval.shape for v in e.invars}]
    assert len(layers) >= 4 + 3 + 3
    assert all(v.aval.dtype == jnp.bfloat16 for e in layers for v in e.invars)


def test_clipping_bounds_the_gradient():
    config = _with("optimizer", clip_norm=1e-3, b1=0.0, b2=0.0, eps=1.0, learning_rate=1.0)
    state = create_state(config)
    before = jax.tree.map(lambda p: np.array(p), state.params)
    after, metrics = _step(config)(state, _batch())
    assert float(metrics["gradient_norm"]) > 1e-2
    # g / (|g| + 1) is g for a gradient this small: the step is as long as the clipped gradient.
    moved = optax.global_norm(jax.tree.map(lambda a, b: a - b, after.params, before))
    np.testing.assert_allclose(float(moved), 1e-3, rtol=0.02)


def test_an_update_that_is_not_finite_changes_nothing():
    step, state = _step(CONFIG), create_state(CONFIG)
    state, _ = step(state, _batch(0))
    before = jax.tree.map(lambda a: np.array(a), state)
    bad = _batch(1)
    bad["values"][0, 3] = np.inf
    state, metrics = step(state, bad)
    assert not bool(metrics["finite"])
    chex.assert_trees_all_equal(state.params, before.params)
    chex.assert_trees_all_equal(state.opt_state, before.opt_state)
    assert (int(state.step), int(state.skipped)) == (2, 1)
    state, metrics = step(state, _batch(2))
    assert bool(metrics["finite"])
    # The schedule counts updates, not batches.
    np.testing.assert_allclose(
        metrics["learning_rate"], learning_rate_schedule(CONFIG.optimizer, 20)(1)
    )


def test_validation_sums_make_the_mean_over_batches():
    state = create_state(CONFIG)
    batch = _batch(rows=8)
    batch["mask"][2, 4:] = False
    validation, loss = _validation(CONFIG), _loss(CONFIG)
    halves = [{n: a[i : i + 4] for n, a in batch.items()} for i in (0, 4)]
    sums = [validation(state.params, half) for half in halves]
    expected = loss(state.params, batch)[1].horizons
    for p in MODEL.horizon_lengths:
        mean = sum(s[f"sum_{p}"] for s in sums) / sum(s[f"count_{p}"] for s in sums)
        np.testing.assert_allclose(mean, expected[p], rtol=1e-5)


def test_a_dense_model_trains():
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, use_dense=True))
    _, metrics = _step(config)(create_state(config), _batch())
    assert bool(metrics["finite"])
    assert not {"expert_load", "router_z_loss", "dropped_share", "dead_expert_share"} & set(metrics)


def test_huber_delta_is_used():
    narrow = dataclasses.replace(CONFIG, loss=LossConfig(huber_delta=0.1))
    state = create_state(CONFIG)
    wide = _loss(CONFIG)(state.params, _batch())[1].horizons[1]
    assert float(_loss(narrow)(state.params, _batch())[1].horizons[1]) < float(wide)


def _accumulating(config, micro_batches):
    train = dataclasses.replace(config.train, gradient_accumulation=micro_batches)
    return dataclasses.replace(config, train=train)


def _biased(**optimizer):
    """Of two blocks: each has a bias of its own."""
    model = dataclasses.replace(MODEL, router_bias=True, num_hidden_layers=2)
    return dataclasses.replace(_with("optimizer", router_bias_rate=0.05, **optimizer), model=model)


def _bias(state):
    return np.array(state.params["blocks"]["ffn"]["selection_bias"][...])


def test_what_the_step_says_about_the_routers():
    config = _biased()
    _, metrics = _step(config)(create_state(config), _batch())
    assert {n: metrics[n].shape for n in ("expert_load", "router_z_loss")} == {
        "expert_load": (2, 4),
        "router_z_loss": (),
    }
    for name in ("router_entropy", "dropped_share", "dead_expert_share"):
        assert metrics[name].shape == (2,)
    np.testing.assert_array_equal(metrics["dropped_share"], [0, 0])
    dead = (metrics["expert_load"] == 0).mean(axis=1)
    np.testing.assert_array_equal(metrics["dead_expert_share"], dead)


def test_the_z_loss_enters_by_its_factor_and_not_at_all_by_default():
    config, state = _with("loss", router_z_loss_factor=0.5), create_state(CONFIG)
    plain, parts = _loss(CONFIG)(state.params, _batch())
    with_it, same = _loss(config)(state.params, _batch())
    assert float(parts.router_z) == float(same.router_z) > 0.1
    np.testing.assert_allclose(with_it - plain, 0.5 * parts.router_z, rtol=1e-5)
    forecast = sum(parts.horizons.values()) / len(parts.horizons)
    balancing = MODEL.router_aux_loss_factor * parts.balancing
    np.testing.assert_allclose(plain, forecast + balancing, rtol=1e-6)
    routers = [_gradient(c)(state.params, _batch())[1]["blocks"]["ffn"] for c in (CONFIG, config)]
    assert np.abs(routers[0]["router"]["kernel"] - routers[1]["router"]["kernel"]).max() > 1e-3


def test_the_z_loss_of_micro_batches_is_their_mean():
    config = _with("loss", router_z_loss_factor=0.5)
    config = dataclasses.replace(config, model=dataclasses.replace(MODEL, apply_aux_loss=False))
    (_, one), (_, many) = (
        _step(c)(create_state(c), _batch()) for c in (config, _accumulating(config, 4))
    )
    for name in ("router_z_loss", "loss", "gradient_norm"):
        np.testing.assert_allclose(one[name], many[name], rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_bias_moves_by_the_load_of_the_whole_batch(micro_batches):
    config = _accumulating(_biased(), micro_batches)
    step, state = _step(config), create_state(config)
    expected = np.zeros((2, 4), np.float32)
    for i in range(3):
        np.testing.assert_allclose(_bias(state), expected, atol=1e-7)
        state, metrics = step(state, _batch(i))
        expected += 0.05 * np.sign(1 / 4 - metrics["expert_load"])
    assert np.abs(expected).max() > 0.1


def test_dead_experts_and_load_follow_the_biased_choice():
    """Biases that keep two of the four experts from every token, in each layer other ones."""
    config = _biased()
    params = create_state(config).params
    bias = np.array([[0, 0, -9, -9], [-9, 0, -9, 0]], np.float32)
    params["blocks"]["ffn"]["selection_bias"][...] = bias
    _, metrics = _step(config)(create_state(config, params), _batch())
    np.testing.assert_array_equal(metrics["expert_load"], (bias == 0) / 2)
    np.testing.assert_array_equal(metrics["dead_expert_share"], [0.5, 0.5])


@pytest.mark.parametrize("exclude", ["vectors", "none"])
def test_the_optimizer_leaves_the_bias_alone(exclude):
    """With an even rate of nearly nothing, a start away from 0, and a strong decay."""
    config = _biased(weight_decay=0.9, weight_decay_exclude=exclude, learning_rate=0.1)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, router_bias_rate=1e-9)
    )
    params = create_state(config).params
    start = np.array([[0.3, -0.2, 0.1, 0.0], [-0.1, 0.2, 0.0, 0.05]], np.float32)
    params["blocks"]["ffn"]["selection_bias"][...] = start
    _, gradient = _gradient(_biased())(params, _batch())
    assert not np.any(gradient["blocks"]["ffn"]["selection_bias"][...])
    state, step = create_state(config, params), _step(config)
    for i in range(3):
        state, _ = step(state, _batch(i))
    np.testing.assert_allclose(_bias(state), start, rtol=0, atol=1e-7)


def test_a_skipped_update_leaves_the_bias():
    config = _biased()
    step = _step(config)
    state, _ = step(create_state(config), _batch(0))
    before = _bias(state)
    assert np.abs(before).max() > 0.01
    bad = _batch(1)
    bad["values"][0, 3] = np.inf
    state, metrics = step(state, bad)
    assert not bool(metrics["finite"])
    np.testing.assert_array_equal(_bias(state), before)
    empty = _batch(2)
    empty["mask"][:] = False
    state, metrics = step(state, empty)
    assert bool(metrics["finite"])
    np.testing.assert_array_equal(_bias(state), before)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_dropped_pairs_add_up(monkeypatch, micro_batches):
    """Each forward pass of the first layer on loses 12 of what is 8 * 24 * 2 pairs in all."""
    compute = Experts.__call__

    def losing(self, *args):
        return compute(self, *args)[0], jnp.float32(12)

    monkeypatch.setattr(Experts, "__call__", losing)
    config = _accumulating(_with("model", num_hidden_layers=2), micro_batches)
    _, metrics = make_train_step(config)(create_state(config), _batch())
    share = micro_batches * 12 / (8 * 24 * 2)
    np.testing.assert_allclose(metrics["dropped_share"], [share, share], rtol=1e-6)
