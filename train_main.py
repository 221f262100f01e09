"""Trains a model from a config.

python train_main.py --config=configs/smoke.py --workdir=out/smoke

Any field can be overridden: --config.train.num_steps=500. Started again with the same command, a
run goes on from its newest checkpoint.
"""

from timemoe_jax import entry, train
from timemoe_jax.config import RunConfig

if __name__ == "__main__":
    entry.config_main(
        RunConfig,
        train.run,
        __doc__ or "",
        [("workdir", "Where the run writes, and resumes from.")],
    )
