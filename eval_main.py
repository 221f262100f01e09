"""Evaluates a checkpoint beside naive forecasts: `timemoe evaluate`, from a clone.

python eval_main.py --config=configs/eval_ltsf.py --config.checkpoint=PATH --config.data_dir=DIR
"""

from timemoe_jax.cli.config_commands import evaluate

if __name__ == "__main__":
    evaluate()
