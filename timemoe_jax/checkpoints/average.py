"""The mean of the parameters of several checkpoints of a run, or of several runs.

Weight averaging (arXiv 1803.05407, Section 3.2): the mean of points along a run lies nearer to the
middle of the flat region that the run has come to than any of them. Nothing else has to be fitted
anew, since the norms of a model keep no running statistics. So it is with runs that went on from
the same weights (arXiv 2203.05482).
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import LoadedModel, load_model
from timemoe_jax.checkpoints.step import as_path, list_steps
from timemoe_jax.checkpoints.store import CHECKPOINTS
from timemoe_jax.checkpoints.trees import flatten, unflatten
from timemoe_jax.errors import CheckpointError, ConfigError
from timemoe_jax.models.base import ModelConfig, family_of


class Averaged(NamedTuple):
    """The mean of the last checkpoints of a run."""

    model: LoadedModel  # its step is the last one's
    steps: tuple[int, ...]  # that were averaged, oldest first


def average_params(params: Iterable[nnx.State]) -> nnx.State:
    """The mean of the parameters of one model at several times, summed in float64, in float32.

    They are read one after the other, so that at most two are in memory. None at all, and
    parameters whose names or shapes differ, are a `CheckpointError`.
    """
    sums: dict[str, np.ndarray] = {}
    first: nnx.State | None = None
    count = 0
    for state in params:
        flat = flatten(state)
        if first is None:
            first, sums = state, {name: np.zeros(a.shape) for name, a in flat.items()}
        _check_shapes(count, sums, {name: a.shape for name, a in flat.items()})
        for name, array in flat.items():
            sums[name] += np.asarray(array).astype(np.float64)
        count += 1
    if first is None:
        raise CheckpointError("there are no parameters to average; give at least one set of them")
    means = iter([jnp.asarray((total / count).astype(np.float32)) for total in sums.values()])
    return jax.tree.map(lambda _: next(means), first)


def load_average(path: str | os.PathLike[str], last: int) -> Averaged:
    """Loads the mean of the `last` newest checkpoints of a run, or of its checkpoints folder.

    Raises:
      CheckpointError: there are fewer, one is damaged, or they are of different models.
      ConfigError: `last` is not positive.
    """
    if last < 1:
        raise ConfigError(f"the number of checkpoints to average must be positive, but is {last}")
    place = as_path(path)
    folder = place / CHECKPOINTS if (place / CHECKPOINTS).is_dir() else place
    steps = tuple(list_steps(folder))
    if len(steps) < last:
        held = f"steps {', '.join(map(str, steps))}" if steps else "none"
        raise CheckpointError(
            f"{folder}: the mean of {last} checkpoints was asked for, but it holds {held}; a run "
            "keeps as many as train.keep_checkpoints says"
        )
    steps = steps[-last:]
    models = (load_model(folder / str(step)) for step in steps)
    newest: list[LoadedModel] = []

    def states() -> Iterable[nnx.State]:
        for model in models:
            if newest:
                _check_same_model(newest[0], model)
            newest[:] = [model]
            yield model.params

    params = average_params(states())
    digest = weights_digest(params)
    return Averaged(dataclasses.replace(newest[0], params=params, digest=digest), steps)


def load_mean(paths: Sequence[str | os.PathLike[str]]) -> LoadedModel:
    """Loads the mean of several models, such as runs that went on from the same weights.

    The answer is the last one in all but its parameters. It may have parts that another one lacks
    (`Family.addable_fields`): where these say nothing if their parameters are 0, they count as 0
    (`Family.silent_fields`); of others the mean is that of the models that have them.

    Raises:
      CheckpointError: one cannot be loaded, or they are of different models.
    """
    models = [load_model(path) for path in paths]
    last = models[-1]
    for model in models:
        _check_same_model(model, last, _lacking(model.config, last.config))
    held = [flatten(model.params) for model in models]
    wanted = flatten(last.params)
    lacked = {
        name: _of_those_that_have(name, a.shape, held, models)
        for name, a in wanted.items()
        if not all(name in each for each in held)
    }

    def states() -> Iterable[nnx.State]:
        for each in held:
            filled = {name: each[name] if name in each else lacked[name] for name in wanted}
            yield unflatten(last.params, filled)

    params = average_params(states())
    names = ", ".join(model.source for model in models)
    digest = weights_digest(params)
    return dataclasses.replace(last, params=params, digest=digest, source=names, step=None)


def _lacking(config: ModelConfig, last: ModelConfig) -> tuple[str, ...]:
    """The parts that the last model has, and another one lacks."""
    parts = family_of(last).addable_fields
    return tuple(n for n in parts if getattr(last, n) and not getattr(config, n, False))


def _of_those_that_have(
    name: str,
    shape: tuple[int, ...],
    held: Sequence[Mapping[str, np.ndarray]],
    models: Sequence[LoadedModel],
) -> np.ndarray:
    """What a parameter counts as in a model that lacks it."""
    silent = family_of(models[-1].config).silent_fields
    if any(re.search(names, name) for names in silent.values()):
        return np.zeros(shape)
    having = [np.asarray(each[name], np.float64) for each in held if name in each]
    return np.sum(having, axis=0) / len(having)


def _check_shapes(
    index: int, sums: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> None:
    for name in itertools.chain(shapes, sums):
        held = sums[name].shape if name in sums else None
        if shapes.get(name) != held:
            raise CheckpointError(
                f"set {index} of the parameters to average is of another model: {name} is "
                f"{shapes.get(name, 'missing')} there and {held or 'missing'} in the first"
            )


def _check_same_model(one: LoadedModel, other: LoadedModel, but: Sequence[str] = ()) -> None:
    before, after = _architecture(one.config), _architecture(other.config)
    differing = [name for name in before if before[name] != after.get(name) and name not in but]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{other.source} and {one.source} are of different models, which have no mean: {name} "
            f"is {after.get(name)!r} and {before[name]!r}"
        )


def _architecture(config: ModelConfig) -> dict[str, object]:
    computed = family_of(config).compute_fields
    return {n: value for n, value in dataclasses.asdict(config).items() if n not in computed}
