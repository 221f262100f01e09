"""Runs a scaling study or the paper's ablations: `timemoe study`, from a clone.

python study_main.py --config=configs/scaling.py --workdir=out/scaling
"""

from timemoe_jax.cli.config_commands import study

if __name__ == "__main__":
    study()
