"""The paper's ablations (arXiv 2409.16040), each with three seeds.

python study_main.py --config=configs/ablations.py --workdir=out/ablations \
    --config.base.data.path=PATH_TO_CORPUS

They vary the recipe of nano at half its width, with the published loss alone to balance the
experts. Run some of them by --config.ablations.variants=full,mse_loss,dense; name another config to
ablate behind a colon: --config=configs/ablations.py:configs/smoke.py. The same command goes on
where a study was stopped. Expected result: `results.md`, `results.json` and `ablations.png` in the
workdir (docs/studies.md).
"""

import ml_collections

from configs import time_moe_nano
from timemoe_jax.cli.config_files import load_config
from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.studies.config import AblationsConfig, ScoreConfig


def small_nano() -> ml_collections.ConfigDict:
    """Three dozen runs of it take two cores an hour."""
    config = time_moe_nano.get_config()
    config.model.hidden_size = 64
    config.model.intermediate_size = 128
    config.model.num_hidden_layers = 3
    config.model.router_bias = False
    return config


def get_config(base: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "ablations"
    config.base = load_config(base) if base else small_nano()
    config.ablations = as_config_dict(AblationsConfig)
    config.ablations.points = 1_000_000
    config.score = as_config_dict(ScoreConfig)
    config.lock()
    return config
