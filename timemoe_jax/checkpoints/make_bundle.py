"""A trained run as the folder of a model that comes with the library."""

import os

import jax

from timemoe_jax.checkpoints.average import load_average
from timemoe_jax.checkpoints.bundle import write_bundle
from timemoe_jax.checkpoints.load import load_model


def make_bundle(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    average: int = 1,
    dtype: str = "bfloat16",
) -> str:
    """Writes the newest checkpoint of a run, or the mean of its last ones, as a bundle.

    The run is anything that `load_model` reads or, with `average` above 1, the folder of a run. The
    folder and the dtype are those of `write_bundle`. The answer has a line for each file with its
    size, and one for all of them; errors are those of `load_average` and `write_bundle`.
    """
    if average == 1:
        model = load_model(run)
        steps: tuple[int, ...] = () if model.step is None else (model.step,)
    else:
        model, steps = load_average(run, average)
    sizes = write_bundle(folder, model.config, model.params, dtype, steps, model.optimizer)
    count = sum(p.size for p in jax.tree.leaves(model.params))
    lines = [f"{size:>12,} bytes  {name}" for name, size in sizes.items()]
    of = f"the mean of steps {', '.join(map(str, steps))}" if average > 1 else model.source
    total = f"{count:,} parameters in {dtype} of {of}"
    return "\n".join([*lines, f"{sum(sizes.values()):>12,} bytes  {folder}: {total}"])
