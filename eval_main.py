"""Evaluates a checkpoint on ETT, Weather or any CSV, beside naive forecasts.

python eval_main.py --config=configs/eval_ltsf.py --config.checkpoint=PATH --config.data_dir=DIR

A dataset is the name of a CSV under the data directory or a path: --config.datasets=ETTh1,my.csv
"""

from timemoe_jax.cli import programs as entry
from timemoe_jax.evaluation import long_horizon as evaluate
from timemoe_jax.evaluation.config import EvalConfig

if __name__ == "__main__":
    entry.config_main(EvalConfig, evaluate.run, __doc__ or "")
