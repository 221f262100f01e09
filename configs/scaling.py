"""A scaling study: four sizes x three numbers of points, sparse and dense, and the law they follow.

python study_main.py --config=configs/scaling.py --workdir=out/scaling \
    --config.base.data.path=PATH_TO_CORPUS

Name another config to scale behind a colon: --config=configs/scaling.py:configs/smoke.py. The same
command goes on where a study was stopped. Expected result: `results.md`, `results.json` and
`scaling.png` in the workdir (docs/studies.md).
"""

import importlib.util
from pathlib import Path

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.studies.config import ScalingConfig, ScoreConfig

BASE = "configs/time_moe_nano.py"


def base_config(path: str) -> ml_collections.ConfigDict:
    """The `get_config()` of a file."""
    if not Path(path).is_file():
        raise FileNotFoundError(2, "no such config to study", path)
    spec = importlib.util.spec_from_file_location("studied", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def get_config(base: str = BASE) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "scaling"
    config.base = base_config(base)
    config.scaling = as_config_dict(ScalingConfig)
    config.score = as_config_dict(ScoreConfig)
    config.lock()
    return config
