"""The mesh: its rules against golden files, what does not fit, and four devices against one."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from places import GOLDEN
from tiny_model import TINY

from configs import time_moe_base, time_moe_ultra
from timemoe_jax.config import from_mapping
from timemoe_jax.data.config import DataConfig
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import abstract_model
from timemoe_jax.models.time_moe.config import TimeMoeConfig
from timemoe_jax.models.time_moe.sharding import RULES
from timemoe_jax.nn.experts.capacity import capacity
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training.config import LossConfig, RunConfig, TrainConfig
from timemoe_jax.training.losses import dropped_share
from timemoe_jax.training.objective import make_loss
from timemoe_jax.training.start import check_fits
from timemoe_jax.training.step import create_state, make_train_step

SPLITS = GOLDEN / "partitioning.json"

# Heads, experts and widths that every mesh of four devices divides.
MODEL = dataclasses.replace(
    TINY, num_attention_heads=4, num_key_value_heads=4, intermediate_size=32
)
CONFIG = RunConfig(
    model=MODEL,
    data=DataConfig(path="unused", length=24),
    train=TrainConfig(batch_size=8, num_steps=10),
)
MESHES = [
    {"data": 4},
    {"fsdp": 4},
    {"expert": 4},
    {"tensor": 4},
    {"fsdp": 2, "tensor": 2},
    {"expert": 2, "tensor": 2},
    {"expert": 2, "fsdp": 2},
]


def named(mesh: dict) -> str:
    return "-".join(f"{axis}{size}" for axis, size in mesh.items())


def mesh_of(devices: int = 4, **sizes: int) -> jax.sharding.Mesh:
    return partitioning.make_mesh(MeshConfig(**sizes), jax.devices()[:devices])


# The rules


def specs_of(model: TimeMoeConfig) -> dict[str, list]:
    """{path: [shape, spec]} of every parameter."""
    _, params = abstract_model(model)
    return {
        (name := partitioning.path_name(path)): [
            "x".join(map(str, leaf.shape)),
            str(partitioning.spec_of(name, RULES)),
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_every_parameter_of_base_and_ultra_is_split_as_written_down():
    """The file changes with the rules, on purpose: delete it, and this test writes a new one."""
    found = {
        name: specs_of(from_mapping(TimeMoeConfig, dict(module.get_config().model)))
        for name, module in (("base", time_moe_base), ("ultra", time_moe_ultra))
    }
    if not SPLITS.exists():
        SPLITS.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{SPLITS} was absent; it is written now, look at it")
    assert found == json.loads(SPLITS.read_text())


def test_large_parameters_are_all_split():
    """Ultra: what every device holds whole is less than a hundredth of it."""
    model = from_mapping(TimeMoeConfig, dict(time_moe_ultra.get_config().model))
    _, params = abstract_model(model)
    whole = total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total += leaf.size
        if not {"fsdp", "expert"} & set(partitioning.spec_of(partitioning.path_name(path), RULES)):
            whole += leaf.size
    assert whole < total / 100


def test_moments_are_split_as_their_parameters():
    state = jax.eval_shape(lambda: create_state(CONFIG))
    shardings = partitioning.shardings(state, mesh_of(), RULES)
    found = {
        partitioning.path_name(path): s.spec
        for path, s in jax.tree_util.tree_leaves_with_path(shardings)
    }
    gates = [name for name in found if name.endswith("experts.gate")]
    assert len(gates) == 3  # the parameter, and two moments of it
    assert {found[name] for name in gates} == {P(None, "expert", "fsdp", "tensor")}


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"how to split the parameter blocks\.ffn\.novelty"):
        partitioning.spec_of("blocks.ffn.novelty", RULES)


# What fits


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}, {"data": 1, "fsdp": 2}, {"tensor": 8}])
def test_sizes_that_are_not_the_devices(sizes):
    with pytest.raises(ConfigError, match=r"mesh\.data .* must be the number of devices, 4"):
        mesh_of(**sizes)


def test_one_axis_takes_what_is_left():
    assert dict(mesh_of(fsdp=2).shape) == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 1}
    sizes = dict(mesh_of(data=1, tensor=-1).shape)
    assert sizes == {"data": 1, "fsdp": 1, "expert": 1, "tensor": 4}
    with pytest.raises(ConfigError, match="only one axis may be -1, but data and fsdp are"):
        MeshConfig(fsdp=-1)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"num_experts": 6}, {"expert": 4}, r"num_experts \(6\) is not a multiple of mesh.expert"),
        ({"num_key_value_heads": 2}, {"tensor": 4}, r"num_key_value_heads \(2\)"),
        ({"hidden_size": 18, "num_attention_heads": 3}, {"fsdp": 4}, r"hidden_size \(18\)"),
        ({"intermediate_size": 36}, {"tensor": 4}, r"width of an expert.* \(18\) is not a"),
        ({"use_dense": True}, {"expert": 4}, "mesh.expert is 4, but model.use_dense has no exp"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_says_which_dimension(changes, sizes, message):
    if "num_attention_heads" in changes:
        changes = {**changes, "num_key_value_heads": changes["num_attention_heads"]}
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, **changes))
    with pytest.raises(ConfigError, match=message):
        check_fits(config, mesh_of(**sizes))


def test_a_mesh_that_does_not_divide_the_batch():
    train = dataclasses.replace(CONFIG.train, batch_size=12, gradient_accumulation=2)
    message = r"batch_size / train.gradient_accumulation \(6\) is not a multiple of mesh.data x"
    with pytest.raises(ConfigError, match=message):
        check_fits(dataclasses.replace(CONFIG, train=train), mesh_of())


def test_without_a_mesh_nothing_is_said():
    x = jnp.ones((4, 2))
    assert partitioning.constrain(x, "data") is x
    assert partitioning.per_device(np.sin, P("data"), P("data")) is np.sin
    assert partitioning.gather_fsdp({"x": x}, RULES)["x"] is x
    with partitioning.use_mesh(mesh_of(1)):
        assert partitioning.current_mesh() is None


# Four devices against one


@functools.cache
def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (CONFIG.train.batch_size, CONFIG.data.length + 1)
    return [
        {
            "values": rng.normal(size=shape).astype(np.float32),
            "mask": rng.uniform(size=shape) > 0.1,
        }
        for _ in range(5)
    ]


def place(batch, mesh):
    return jax.tree.map(lambda a: jax.device_put(a, partitioning.batch_sharding(mesh)), batch)


@functools.cache
def first_state(model: TimeMoeConfig):
    return jax.device_get(create_state(dataclasses.replace(CONFIG, model=model)))


def start(config: RunConfig, mesh: jax.sharding.Mesh):
    """The first state on a mesh; that it is the same on each has a test of its own."""
    state = first_state(config.model)
    return jax.device_put(state, partitioning.shardings(state, mesh, RULES))


def gradient(config: RunConfig, mesh: jax.sharding.Mesh):
    """Loss, its parts and gradients of the first batch."""
    with partitioning.use_mesh(mesh):
        state = start(config, mesh)
        compute = jax.jit(jax.value_and_grad(make_loss(config), has_aux=True))
        (loss, parts), gradients = compute(state.params, place(batches()[0], mesh))
    return float(loss), parts, jax.device_get(gradients)


def update(config: RunConfig, mesh: jax.sharding.Mesh):
    """The metrics of five updates, and the state after them."""
    with partitioning.use_mesh(mesh):
        state, step, metrics = start(config, mesh), make_train_step(config, mesh), []
        for batch in batches():
            state, each = step(state, place(batch, mesh))
            metrics.append(jax.device_get(each))
    return metrics, state


@functools.cache
def one_device():
    return gradient(CONFIG, mesh_of(1)), update(CONFIG, mesh_of(1))


def assert_close(reference, other) -> None:
    for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", MESHES, ids=named)
def test_four_devices_equal_one(sizes):
    (loss, _, gradients), (metrics, state) = one_device()
    other_loss, _, others = gradient(CONFIG, mesh_of(**sizes))
    assert other_loss == pytest.approx(loss, abs=1e-5)
    assert_close(gradients, others)
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradients)) > 1e-2
    other_metrics, other_state = update(CONFIG, mesh_of(**sizes))
    assert_close(metrics, other_metrics)
    assert_close(state.params, other_state.params)
    for (path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(other_state.params),
        jax.tree.leaves(partitioning.shardings(other_state.params, mesh_of(**sizes), RULES)),
        strict=True,
    ):
        assert leaf.sharding.is_equivalent_to(spec, leaf.ndim), path


def changed(section: str, **fields) -> RunConfig:
    values = dataclasses.replace(getattr(CONFIG, section), **fields)
    return dataclasses.replace(CONFIG, **{section: values})


MIXED = {"expert": 2, "fsdp": 2}
OPTIONS = {
    "all_to_all": {"expert_exchange": "all_to_all", "expert_capacity_factor": 8.0},
    "grouped": {"expert_implementation": "grouped"},
    "recomputed": {"remat": "full"},
    "chunked": {"attention_implementation": "chunked"},
}


@pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS)
def test_the_gradient_of_an_option_on_a_mixed_mesh(fields):
    config = changed("model", **fields)
    loss, _, gradients = gradient(config, mesh_of(1))
    other_loss, _, others = gradient(config, mesh_of(**MIXED))
    assert other_loss == pytest.approx(loss, abs=1e-5)
    assert_close(gradients, others)


def test_updates_of_a_biased_router_on_a_mixed_mesh():
    config = dataclasses.replace(
        changed("model", router_bias=True), loss=LossConfig(router_z_loss_factor=0.01)
    )
    (metrics, one), (others, four) = (
        update(config, mesh_of(n, **m)) for n, m in ((1, {}), (4, MIXED))
    )
    assert_close(metrics, others)
    assert_close(one.params, four.params)


def test_accumulated_updates_on_a_mixed_mesh():
    config = changed("train", gradient_accumulation=2)
    _, one = update(config, mesh_of(1))
    _, four = update(config, mesh_of(**MIXED))
    # Micro-batches hold other series on a mesh, and the balancing loss is a mean over them.
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-3)


def dropped(config: RunConfig, mesh: jax.sharding.Mesh) -> np.ndarray:
    """The share of each layer's choices that are dropped in the first batch."""
    with partitioning.use_mesh(mesh):
        params = start(config, mesh).params
        parts = jax.jit(make_loss(config))(params, place(batches()[0], mesh))[1]
    return np.array(dropped_share(parts.statistics))


def test_dropped_choices_are_counted_once_whatever_the_mesh():
    """A capacity of half an even share: at least half of all is dropped, of the same tokens."""
    config = changed("model", expert_implementation="capacity", expert_capacity_factor=0.5)
    one, tensor, expert = (
        dropped(config, mesh)
        for mesh in (mesh_of(1), mesh_of(data=1, tensor=4), mesh_of(data=1, expert=4))
    )
    assert (one >= 0.5).all()
    np.testing.assert_array_equal(tensor, one)
    # Four devices that each hold an expert count the tokens of all.
    np.testing.assert_array_equal(expert, one)


def test_an_exchange_with_too_little_room_says_what_it_dropped():
    config = changed("model", expert_exchange="all_to_all", expert_capacity_factor=0.5)
    share = dropped(config, mesh_of(expert=4, data=1))
    assert (share >= 0.5).all()
    assert (share < 1).all()


def test_initial_parameters_do_not_depend_on_the_mesh():
    states = [create_state(CONFIG, mesh=mesh) for mesh in (mesh_of(1), mesh_of(fsdp=2, tensor=2))]
    for a, b in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_device_holds_its_part():
    mesh = mesh_of(data=1, expert=2, fsdp=2)
    gate = create_state(CONFIG, mesh=mesh).params["blocks"]["ffn"]["experts"]["gate"][...]
    layers, experts, d, f = gate.shape
    for shard in gate.addressable_shards:
        assert shard.data.shape == (layers, experts // 2, d // 2, f)


# What moves


def collectives(function, *arguments) -> dict[str, int]:
    """{kind: bytes of the results on each device} of a compiled program's collectives."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all"
    found: dict[str, int] = {}
    for shapes, kind, groups in re.findall(
        rf"= (.*?) ({kinds})(?:-start)?\(.*?replica_groups=(\S*)", text
    ):
        if groups.startswith("{{0},"):  # every device on its own: nothing moves
            continue
        for dtype, dims in re.findall(r"(f32|s32|bf16)\[([\d,]*)\]", shapes):
            size = int(np.prod([int(d) for d in dims.split(",") if d]))
            found[kind] = found.get(kind, 0) + size * (2 if dtype == "bf16" else 4)
    return found


@pytest.mark.parametrize("exchange", ["all_gather", "all_to_all"])
def test_the_volume_of_an_exchange_is_that_of_its_formula(exchange):
    """Forward, four devices: what `nn.experts.parallel` documents, against the compiled program."""
    model = dataclasses.replace(MODEL, expert_exchange=exchange, expert_capacity_factor=1.0)
    mesh = mesh_of(data=1, expert=4)
    graph, params = abstract_model(model)
    batch, length = 8, 24
    x = jnp.zeros((batch, length, model.hidden_size))

    def layer(params, x):
        block = jax.tree.map(lambda w: w[0], params["blocks"])
        model_of = nnx.merge(graph, params).blocks
        ffn = nnx.merge(nnx.split(model_of)[0], block).ffn
        return ffn(x)[0]

    with partitioning.use_mesh(mesh):
        params = create_state(CONFIG, mesh=mesh).params
        found = collectives(layer, params, place(x, mesh))
    tokens, n = batch * length // 4, 4
    choices, row = model.num_experts_per_tok, 4 * model.hidden_size  # a token in bytes
    room = capacity(tokens * choices, n, 1.0)
    expected = {
        "all_gather": {
            "all-gather": (n - 1) * tokens * (row + 8 * choices),
            "reduce-scatter": (n - 1) * tokens * row,
        },
        "all_to_all": {"all-to-all": (n - 1) * room * (2 * row + 4)},
    }[exchange]
    # A result counts its own part, which does not move: (n - 1) / n of a gathered array does, and
    # n - 1 times a scattered one.
    moved = {
        "all-gather": found.get("all-gather", 0) * (n - 1) // n,
        "reduce-scatter": found.get("reduce-scatter", 0) * (n - 1),
        "all-to-all": found.get("all-to-all", 0) * (n - 1) // n,
    }
    assert {kind: size for kind, size in moved.items() if size} == expected
