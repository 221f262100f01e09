"""What of a model is trained: its parameters in two parts, and put together again.

These are functions on the state of the parameters, by dotted paths, so that no model knows of them.
The gradient and the optimizer see the trained part alone.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from timemoe_jax.checkpoints.adapters import FACTORS, Adapter, adapted
from timemoe_jax.checkpoints.trees import flatten
from timemoe_jax.errors import ConfigError
from timemoe_jax.models.base import Family, ModelConfig, family_of
from timemoe_jax.models.decoding import horizon_plan
from timemoe_jax.runtime.partitioning import Rules
from timemoe_jax.training.finetuning.config import FinetuneConfig

Path = tuple[Any, ...]


class Parts(NamedTuple):
    """The parameters in two parts."""

    trained: nnx.State  # float32; for "lora" the factors: of the kernel NAME, NAME.a and NAME.b
    frozen: nnx.State  # float32; for "lora" all parameters of the model

    @property
    def num_trained(self) -> int:
        """How many numbers are trained."""
        return sum(value.size for value in jax.tree.leaves(self.trained))


def split(params: nnx.State, model: ModelConfig, config: FinetuneConfig) -> Parts:
    """The two parts, as the mode of the config says.

    Selection biases are never trained: they follow the load of all data, not of a few series. Nor
    are heads that no forecast of the horizon reads: they have no gradient.

    Raises:
      ConfigError: the model has no parameters of that kind.
    """
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    family, flat = family_of(model), dict(nnx.to_flat_state(params))
    bias = family.selection_bias(params)
    wanted, unread = _chosen(family, config.mode), _unread(family, model, config.horizon)
    chosen = {
        path: value
        for path, value in flat.items()
        if value is not bias and wanted(_name(path)) and not unread(_name(path))
    }
    if config.mode == "lora":
        return Parts(_factors(chosen, family, config), params)
    if not chosen:
        raise ConfigError(
            f"mode is {config.mode!r}, but no parameter of the family {family.name!r} is of that "
            "kind; use 'full'"
        )
    rest = {p: v for p, v in flat.items() if p not in chosen}
    return Parts(nnx.from_flat_state(chosen), nnx.from_flat_state(rest))


def _chosen(family: Family, mode: str) -> Callable[[str], bool]:
    """Whether a parameter of a dotted name is trained."""
    if mode == "heads":
        return lambda name: re.search(family.parts["heads"], name) is not None
    if mode == "no_router":
        return lambda name: re.search(family.parts["router"], name) is None
    return lambda name: True


def _unread(family: Family, model: ModelConfig, horizon: int) -> Callable[[str], bool]:
    """Whether a parameter of a dotted name is of a head that a forecast does not read."""
    lengths = model.horizon_lengths
    read = horizon_plan(horizon, lengths, model.forecast_plan)
    idle = "|".join(str(p) for p in lengths if p not in read)
    pattern = rf"{family.parts['heads']}({idle})\."
    return lambda name: bool(idle) and re.search(pattern, name) is not None


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def _factors(flat: dict[Path, Any], family: Family, config: FinetuneConfig) -> nnx.State:
    """New factors of the targeted kernels: `a` random, `b` zero, so that nothing changes at first.

    A kernel [*N, in, out] has factors [*N, in, R] and [*N, R, out].
    """
    parts = {"experts": family.experts, **family.parts}
    pattern = "|".join(parts[target] for target in config.lora_targets)
    factors: dict[Path, Any] = {}
    key = jax.random.key(config.seed)
    for i, (path, variable) in enumerate(sorted(flat.items(), key=lambda item: _name(item[0]))):
        names = {str(part) for part in path}
        vector = variable.ndim < 2 or bool(names & family.vectors)
        if vector or not re.search(pattern, _name(path)):
            continue
        *leading, d_in, d_out = variable.shape
        shape = (*leading, d_in, config.lora_rank)
        a = jax.random.normal(jax.random.fold_in(key, i), shape) / np.sqrt(d_in)
        factors[(*path, "a")] = nnx.Param(a)
        factors[(*path, "b")] = nnx.Param(jnp.zeros((*leading, config.lora_rank, d_out)))
    if not factors:
        raise ConfigError(
            f"lora_targets are {', '.join(config.lora_targets)}, but no kernel of the family "
            f"{family.name!r} is one of these; use mode 'full'"
        )
    return nnx.from_flat_state(factors)


def assemble(
    trained: nnx.State, frozen: nnx.State, config: FinetuneConfig, key: Array | None = None
) -> nnx.State:
    """The parameters of the model.

    The key draws which inputs of a kernel its factors do not see, of `lora_dropout`; without one
    they see all. The draw is of an update, the same for all points of its batch.
    """
    new = dict(nnx.to_flat_state(trained))
    if config.mode != "lora":
        return nnx.from_flat_state({**dict(nnx.to_flat_state(frozen)), **new})
    flat = dict(nnx.to_flat_state(frozen))
    scale = config.lora_alpha / config.lora_rank
    kernels = sorted({path[:-1] for path in new}, key=_name)
    for i, path in enumerate(kernels):
        a, b = (new[(*path, part)][...] for part in FACTORS)
        if key is not None and config.lora_dropout:
            kept = jax.random.bernoulli(
                jax.random.fold_in(key, i), 1 - config.lora_dropout, a.shape[:-1]
            )
            a = a * kept[..., None] / (1 - config.lora_dropout)
        flat[path] = flat[path].replace(adapted(flat[path][...], a, b, scale))
    return nnx.from_flat_state(flat)


def towards(
    start: nnx.State, trained: nnx.State, share: float, config: FinetuneConfig
) -> nnx.State:
    """The trained part a share of the way from the start (arXiv 2109.01903, section 3).

    Of "lora" the product of the factors is that share of what it was.
    """
    if config.mode != "lora":
        return jax.tree.map(lambda a, b: a + share * (b - a), start, trained)
    flat = dict(nnx.to_flat_state(trained))
    for path, value in flat.items():
        if path[-1] == "b":
            flat[path] = jax.tree.map(lambda b: share * b, value)
    return nnx.from_flat_state(flat)


def rules_of(family: Family) -> Rules:
    """The rules of a family, and before them those of factors: split as their kernels are.

    A factor's axis R is whole on every device.
    """
    of_factors = []
    for pattern, spec in family.rules():
        bare = pattern.removesuffix("$")
        axes = tuple(spec)
        if len(axes) < 2:
            of_factors += [(rf"{bare}\.[ab]$", P())]
            continue
        of_factors += [
            (rf"{bare}\.a$", P(*axes[:-1], None)),
            (rf"{bare}\.b$", P(*axes[:-2], None, axes[-1])),
        ]
    return (*of_factors, *family.rules())


def as_adapter(trained: nnx.State, config: FinetuneConfig, base: str, digest: str) -> Adapter:
    """The factors as an adapter of the model that they were trained on."""
    factors = {name: np.asarray(value) for name, value in flatten(trained).items()}
    return Adapter(factors, config.lora_alpha / config.lora_rank, base, digest)
