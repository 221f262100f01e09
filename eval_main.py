"""Evaluates a checkpoint on ETT, Weather or any CSV, beside naive forecasts.

python eval_main.py --config=configs/eval_ltsf.py --config.checkpoint=PATH --config.data_dir=DIR

A dataset is the name of a CSV under the data directory or a path: --config.datasets=ETTh1,my.csv
"""

from timemoe_jax.cli.programs import config_main
from timemoe_jax.evaluation import long_horizon
from timemoe_jax.evaluation.config import EvalConfig

if __name__ == "__main__":
    config_main(EvalConfig, long_horizon.run, __doc__ or "")
