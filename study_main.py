"""Runs a study: a scaling study, or the paper's ablations, of any training config.

python study_main.py --config=configs/scaling.py --workdir=out/scaling
python study_main.py --config=configs/ablations.py --workdir=out/ablations

What the variants are variants of is a config of `train_main.py`, named behind a colon; any field
can be overridden: --config=configs/scaling.py:configs/smoke.py --config.base.train.batch_size=8.
Started again with the same command, a study goes on where it was: docs/studies.md.
"""

from timemoe_jax.cli import programs as entry
from timemoe_jax.evaluation.studies.config import StudyConfig
from timemoe_jax.evaluation.studies.reports import run_study

if __name__ == "__main__":
    entry.config_main(
        StudyConfig,
        run_study,
        __doc__ or "",
        [("workdir", "Where the study writes, and goes on from.")],
    )
