"""The paper's ablations (arXiv 2409.16040), each with three seeds.

python study_main.py --config=configs/ablations.py --workdir=out/ablations \
    --config.base.data.path=PATH_TO_CORPUS

Some of them: --config.ablations.variants=full,mse_loss,dense. Another config to ablate stands
behind a colon: --config=configs/ablations.py:configs/smoke.py. The same command goes on where a
study was stopped. Expected result: `results.md`, `results.json` and `ablations.png` in the workdir
(docs/studies.md).
"""

import ml_collections

from configs import scaling


def get_config(base: str = scaling.BASE) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "ablations"
    config.base = scaling.base_config(base)
    config.ablations = {"variants": "", "seeds": (0, 1, 2), "points": 1_000_000}
    config.score = {"horizons": (24, 96), "max_windows": 200}
    config.lock()
    return config
