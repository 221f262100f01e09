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

    Args:
      run: anything that `checkpoint.load_model` reads; to average, the folder of a run.
      folder: to write; it must be empty or new.
      average: how many of the newest checkpoints to average.
      dtype: to store all parameters in, "bfloat16" or "float32".

    Returns:
      what was written: a line for each file with its size, and one for all of them.

    Raises:
      CheckpointError: the run cannot be loaded or holds fewer checkpoints, the folder holds
        something, or a file would be too large.
      ConfigError: `average` is not positive, or the dtype is another.
    """
    if average == 1:
        model = load_model(run)
        steps: tuple[int, ...] = () if model.step is None else (model.step,)
    else:
        model, steps = load_average(run, average)
    sizes = write_bundle(folder, model.config, model.params, dtype, steps)
    count = sum(p.size for p in jax.tree.leaves(model.params))
    lines = [f"{size:>12,} bytes  {name}" for name, size in sizes.items()]
    of = f"the mean of steps {', '.join(map(str, steps))}" if average > 1 else model.source
    total = f"{count:,} parameters in {dtype} of {of}"
    return "\n".join([*lines, f"{sum(sizes.values()):>12,} bytes  {folder}: {total}"])
