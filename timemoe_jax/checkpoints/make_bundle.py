"""A trained run as the folder of a model that comes with the library."""

import os

import jax

from timemoe_jax.checkpoints.average import load_average, load_mean
from timemoe_jax.checkpoints.bundle import write_bundle
from timemoe_jax.checkpoints.load import load_model
from timemoe_jax.errors import ConfigError


def make_bundle(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    average: int = 1,
    dtype: str = "bfloat16",
) -> str:
    """Writes the newest checkpoint of a run, or the mean of its last ones, as a bundle.

    The run is anything that `load_model` reads, or several with commas, of which it is the mean;
    with `average` above 1 it is the folder of one run. The folder and the dtype are those of
    `write_bundle`. The answer has a line for each file with its size, and one for all of them;
    errors are those of `load_average`, `load_mean` and `write_bundle`.
    """
    runs = os.fspath(run).split(",")
    if len(runs) > 1 and average > 1:
        raise ConfigError(f"average is {average}, but there are {len(runs)} runs; give one of them")
    if average == 1:
        model = load_model(run) if len(runs) == 1 else load_mean(runs)
        steps: tuple[int, ...] = () if model.step is None else (model.step,)
    else:
        model, steps = load_average(run, average)
    sizes = write_bundle(folder, model.config, model.params, dtype, steps, model.optimizer)
    count = sum(p.size for p in jax.tree.leaves(model.params))
    lines = [f"{size:>12,} bytes  {name}" for name, size in sizes.items()]
    mean_of = f"steps {', '.join(map(str, steps))}" if average > 1 else model.source
    of = f"the mean of {mean_of}" if average > 1 or len(runs) > 1 else mean_of
    total = f"{count:,} parameters in {dtype} of {of}"
    return "\n".join([*lines, f"{sum(sizes.values()):>12,} bytes  {folder}: {total}"])
