"""Training, evaluation and studies: the commands that a config drives.

`train_main.py`, `eval_main.py` and `study_main.py` are doors to the same code.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from timemoe_jax.cli.config_program import Program, start

if TYPE_CHECKING:
    from timemoe_jax.training.config import RunConfig

TRAIN = """Trains a model from a config.

timemoe train --config=smoke --workdir=out/smoke

A config is one that comes along, by its name, or a file. Any field can be overridden:
--config.train.num_steps=500. Run the same command again to resume from the newest checkpoint. On
several hosts the same command is started on each of them, with --distributed=auto or the three
flags that say which process it is: docs/scaling.md. In a clone, train_main.py is the same program.
"""
EVALUATE = """Evaluates a checkpoint on a benchmark, beside other methods.

timemoe evaluate --config=eval_ltsf --config.checkpoint=PATH --config.data_dir=DIR
timemoe evaluate --config=eval_gift --config.checkpoint=PATH --config.data_dir=DIR
timemoe evaluate --config=eval_frame --config.path=sales.csv

eval_ltsf scores long horizons on ETT, Weather or any CSV, eval_gift and eval_fev the tasks of
GIFT-Eval and fev-bench, and eval_chaos chaotic systems: docs/benchmarks.md. A dataset is the name
of a CSV under the data directory or a path: --config.datasets=ETTh1,my.csv
eval_frame compares methods on the series of your own files: docs/compare_methods.md.
In a clone, eval_main.py is the same program.
"""
STUDY = """Runs a study: a scaling study, or the paper's ablations, of any training config.

timemoe study --config=scaling --workdir=out/scaling
timemoe study --config=ablations --workdir=out/ablations

The config to vary is one for training, named behind a colon, and any field can be overridden:
--config=scaling:smoke --config.base.train.batch_size=8. Run the same command again to resume:
docs/studies.md. In a clone, study_main.py is the same program.
"""


def train(argv: Sequence[str] | None = None) -> None:
    """Trains a model; by default with the arguments of the process."""
    from timemoe_jax.runtime import distributed
    from timemoe_jax.training import run as training
    from timemoe_jax.training.config import RunConfig

    def run(config: "RunConfig", workdir: str, *processes: str | None) -> None:
        distributed.start(*processes)
        training.run(config, workdir)

    workdir = ("workdir", "Where the run writes, and resumes from.")
    flags = distributed.FLAGS
    start(Program(RunConfig, run, TRAIN, [workdir], flags, distributed.exit_now), argv)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Evaluates a model on benchmarks; by default with the arguments of the process."""
    from timemoe_jax.evaluation.run import AnyEvalConfig, run

    start(Program(AnyEvalConfig, run, EVALUATE), argv)


def study(argv: Sequence[str] | None = None) -> None:
    """Runs a study; by default with the arguments of the process."""
    from timemoe_jax.evaluation.studies.config import StudyConfig
    from timemoe_jax.evaluation.studies.reports import run_study

    workdir = ("workdir", "Where the study writes, and resumes from.")
    start(Program(StudyConfig, run_study, STUDY, [workdir]), argv)


# The commands by their names, with the lines of help.
PROGRAMS = {
    "train": ("train a model, or fine-tune one", train),
    "evaluate": ("evaluate a model on benchmarks, or on any CSV", evaluate),
    "study": ("run a scaling study, or the paper's ablations", study),
}
