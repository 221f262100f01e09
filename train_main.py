"""Trains a model from a config: `timemoe train`, from a clone.

python train_main.py --config=configs/smoke.py --workdir=out/smoke
"""

from timemoe_jax.cli.config_commands import train

if __name__ == "__main__":
    train()
