"""Fine-tuning beside zero-shot: mini on five benchmarks, and on ten sources of short series.

python study_main.py --config=configs/finetune_study.py --workdir=out/finetune_study \
    --config.data_dir=PATH_TO_ETT_AND_WEATHER --config.corpus=PATH_TO_CORPUS

Each benchmark at 96 and 336 points, each source at a few seasons; heads, LoRA and all parameters,
with three seeds; beside them zero-shot, the same architecture from scratch and a linear map. A part
of it: --config.datasets=ETTh1 --config.seeds=0 --config.modes=full. The same command goes on where
it was stopped, and leaves out what --config.known=RESULTS_CSV has. Of nano:
--config=configs/finetune_study.py:nano. Hardware and time: two CPU cores, a night. Expected result:
`results.md`, `results.csv` and a file for each run (docs/finetuning.md).
"""

import ml_collections

from timemoe_jax.config import as_config_dict
from timemoe_jax.evaluation.studies.config import FinetuneStudyConfig

# Many short series each, by the month, the week and the day. Those of mini are held out of its
# training; nano was trained on all of the corpus but ten sources of hours and minutes.
SOURCES = {
    "mini": (
        "multiple/m3_competition:18",
        "multiple/m1_competition:18",
        "finance_econ/aus_livestock_1m:18",
        "finance_econ/fred_md_qd:12",
        "healthcare/epidemics_weekly:13",
        "energy/eia_weekly:13",
        "transport/ansett_weekly:13",
        "sales/orange_juice_1w:13",
        "nature/india_air_quality_1d:28",
        "transport/chicago_cta_ridership_1d:28",
    ),
    "nano": (
        "multiple/m3_competition:18",
        "multiple/m1_competition:18",
        "multiple/m4_weekly:13",
        "multiple/nn3_nngc1_competition:18",
        "healthcare/pbs_medicine_1m:12",
        "healthcare/epidemics_weekly:13",
        "finance_econ/aus_livestock_1m:18",
        "finance_econ/fred_md_qd:12",
        "nature/trentino_daily_temperature:28",
        "energy/eia_weekly:13",
    ),
}


def get_config(model: str = "mini") -> ml_collections.ConfigDict:
    config = as_config_dict(FinetuneStudyConfig)
    with config.unlocked():
        config.checkpoint = model
        config.sources = ",".join(SOURCES[model])
        config.finetune.horizon = 96
    return config
