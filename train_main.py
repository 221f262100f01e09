"""Trains a model from a config.

python train_main.py --config=configs/smoke.py --workdir=out/smoke

Any field can be overridden: --config.train.num_steps=500. Started again with the same command, a
run goes on from its newest checkpoint. On several hosts the same command is started on each of
them, with --distributed=auto or the three flags that say which process it is: docs/scaling.md.
"""

from timemoe_jax.cli.programs import config_main
from timemoe_jax.runtime import distributed
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig


def run(config: RunConfig, workdir: str, *processes: str | None) -> None:
    """One process of a run: `processes` are the values of `distributed.FLAGS`."""
    distributed.start(*processes)
    train.run(config, workdir)


if __name__ == "__main__":
    config_main(
        RunConfig,
        run,
        __doc__ or "",
        [("workdir", "Where the run writes, and resumes from.")],
        distributed.FLAGS,
        distributed.exit_now,
    )
