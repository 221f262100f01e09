"""A scaling study: four sizes x three numbers of points, sparse and dense, and the law they follow.

python study_main.py --config=configs/scaling.py --workdir=out/scaling \
    --config.base.data.path=PATH_TO_CORPUS

Name another config to scale behind a colon: --config=configs/scaling.py:configs/smoke.py. The same
command goes on where a study was stopped. Expected result: `results.md`, `results.json` and
`scaling.png` in the workdir (docs/studies.md).
"""

import ml_collections

from timemoe_jax.cli.config_files import load_config
from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.studies.config import ScalingConfig, ScoreConfig

BASE = "time_moe_nano"


def get_config(base: str = BASE) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "scaling"
    config.base = load_config(base)
    config.scaling = as_config_dict(ScalingConfig)
    config.score = as_config_dict(ScoreConfig)
    config.lock()
    return config
