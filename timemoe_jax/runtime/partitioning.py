"""The device mesh: its axes, which parameter is split along which of them, and what fits.

    data     replicas: each takes a part of the batch
    fsdp     parts of the batch too, and of every large parameter, gathered when it is used
    expert   parts of the batch too, and of the experts, to which tokens travel
    tensor   parts of the heads and of the hidden widths, with all of the batch

Modules know nothing of the mesh. Rules over the paths of parameters say how each is split. Code
that must split other arrays calls `constrain` or `per_device`, which do nothing without a mesh and
never ask for the platform: what runs on a pod is what runs on emulated devices.
"""

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from timemoe_jax.errors import ConfigError
from timemoe_jax.runtime.config import MeshConfig

AXES = ("data", "fsdp", "expert", "tensor")
BATCH = ("data", "fsdp", "expert")  # the axes along which the batch is split

# Patterns of parameters' paths, and how such a parameter is split. The first pattern found in a
# path decides. The paths of the optimizer's moments end in those of the parameters.
Rules = tuple[tuple[str, P], ...]
# Counters and constants of a training state.
_STATE_RULES: Rules = ((r"(^|\.)(count|step|skipped|ns_coeffs)$", P()),)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over some devices, by default all devices of all processes.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    given = math.prod(size for size in sizes.values() if size > 0)
    if len(devices) % given or (-1 not in sizes.values() and given != len(devices)):
        shown = ", ".join(f"mesh.{axis} {size}" for axis, size in sizes.items())
        raise ConfigError(
            f"{shown}: the product must be the number of devices, {len(devices)}; -1 takes what "
            "is left"
        )
    shape = tuple(size if size > 0 else len(devices) // given for size in sizes.values())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def use_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Traces under a mesh; a mesh of one device is ignored."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def current_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh in use; None where there is none, or where each device is on its own."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes else mesh


def path_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf of a tree of parameters or of an optimizer's state."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def spec_of(name: str, rules: Rules) -> P:
    """How the rules of a family split the parameter of a dotted path; one of them must match."""
    for pattern, spec in (*rules, *_STATE_RULES):
        if re.search(pattern, name):
            return spec
    raise ValueError(f"no rule says how to split the parameter {name}; add one to its family's")


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of every leaf of a tree of parameters, or of a training state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, spec_of(path_name(path), rules)), tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose axis 0 is the batch."""
    return NamedSharding(mesh, P(BATCH))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of each batch this process feeds to its devices, and of how many parts.

    Processes whose devices differ only along `tensor` feed the same part.
    """
    parts = batch_parts(mesh)
    index = batch_sharding(mesh).addressable_devices_indices_map((parts,))
    rows = sorted({part.indices(parts)[0] for (part,) in filter(None, index.values())})
    if parts % len(rows) or rows[0] % len(rows) or rows[-1] - rows[0] != len(rows) - 1:
        raise ConfigError(
            f"mesh: this process would feed parts {rows} of the {parts} parts of a batch, which "
            "are no whole share; make mesh.tensor divide the devices of a process"
        )
    return rows[0] // len(rows), parts // len(rows)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Splits each axis of an array along mesh axes; returns it as it is without a mesh."""
    if current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def gather_fsdp(params: Any, rules: Rules, prefix: str = "") -> Any:
    """Whole parameters from the parts along `fsdp`; the other axes stay split.

    `params` are those of one layer, so that no more than that is ever whole, without the leading
    axis; `prefix`, such as "blocks.", then precedes their paths. The kernels of the experts are
    left to `nn.expert_parallel`, which gathers them in their own dtype.
    """
    if current_mesh() is None:
        return params

    def gather(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = prefix + path_name(path)
        if ".experts." in name:
            return x
        spec = spec_of(name, rules)[1:] if prefix else spec_of(name, rules)
        kept = (None if axis == "fsdp" else axis for axis in spec)
        return jax.lax.with_sharding_constraint(x, P(*kept))

    return jax.tree_util.tree_map_with_path(gather, params)


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Applies `function` to the part of each device (`jax.shard_map`); itself without a mesh.

    `check_vma` is off, since kernels do not know along which axes their operands differ. So
    `out_specs` must name all axes along which an output differs.
    """
    if current_mesh() is None:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def vary_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Marks an array as differing between devices along every mesh axis along which `like` does.

    `jax.shard_map` with `check_vma` needs such marks in loops and custom gradients; elsewhere this
    is the identity.
    """
    missing = _varying(like) - _varying(x)
    return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def _varying(x: jax.Array) -> frozenset[str]:
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return frozenset() if kind is None else frozenset(kind.varying)
