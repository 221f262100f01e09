"""Runs a study: a scaling study, or the paper's ablations, of any training config.

python study_main.py --config=configs/scaling.py --workdir=out/scaling
python study_main.py --config=configs/ablations.py --workdir=out/ablations

The config to vary is one of `train_main.py`, named behind a colon, and any field can be overridden:
--config=configs/scaling.py:configs/smoke.py --config.base.train.batch_size=8. Started again with
the same command, a study goes on where it was: docs/studies.md.
"""

from timemoe_jax.cli.programs import config_main
from timemoe_jax.evaluation.studies.config import StudyConfig
from timemoe_jax.evaluation.studies.reports import run_study

if __name__ == "__main__":
    workdir = ("workdir", "Where the study writes, and goes on from.")
    config_main(StudyConfig, run_study, __doc__ or "", [workdir])
