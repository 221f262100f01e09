"""The scores that others have published on the tasks that can be run from ETT and Weather.

They are from the result files in the repositories of GIFT-Eval and fev-bench, August 2026.
"""

import csv
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from timemoe_jax.evaluation.leaderboards.config import NEVER_SEEN, TEST_SPLIT, TRAIN_SPLIT
from timemoe_jax.evaluation.scores import geometric_mean

FILES = {"gift": "gift_eval.csv", "fev": "fev_bench.csv"}
REFERENCE = "seasonal naive"  # the column that relative scores divide by
# As the models' authors state it on GIFT-Eval: pretrained on data that the benchmark allows to be
# trained on, or leaking of what is scored. All others state that they have seen nothing of it; on
# fev-bench all here do.
_GIFT_EXPOSURE = {
    **dict.fromkeys(("Timer-S1", "Toto-2 2.5B", "Chronos-2", "Toto-2 4M"), TRAIN_SPLIT),
    "Moirai-2": TRAIN_SPLIT,
    **dict.fromkeys(("Chronos-Bolt base", "Super-Linear"), TEST_SPLIT),
}
# Trained on what comes before the windows of each task, and fitted to the context alone.
_TRAINED = ("PatchTST", "DLinear")
_FITTED = ("naive", "AutoARIMA", "AutoETS")

Table = Mapping[str, Mapping[tuple[str, str], float]]


@functools.cache
def published(benchmark: str) -> Table:
    """{model: {(task, metric): score}}, models in the order of the file; metrics as in `Scores`."""
    path = Path(__file__).with_name(FILES[benchmark])
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    models = [name for name in rows[0] if name not in ("task", "metric")]
    return {
        model: {(row["task"], row["metric"]): float(row[model]) for row in rows if row[model]}
        for model in models
    }


def exposure_of(benchmark: str, model: str) -> str:
    """What the authors of a published model say that it has seen of the benchmark."""
    if model in _FITTED:
        return "none"
    if model in _TRAINED:
        return TRAIN_SPLIT
    return _GIFT_EXPOSURE.get(model, NEVER_SEEN) if benchmark == "gift" else NEVER_SEEN


def relative(benchmark: str, model: str, tasks: Sequence[str], metric: str) -> float:
    """The geometric mean over tasks of a model's score over seasonal naive's; NaN if one lacks."""
    table = published(benchmark)
    ratios = [
        table[model].get((task, metric), math.nan) / table[REFERENCE].get((task, metric), math.nan)
        for task in tasks
    ]
    return geometric_mean(ratios)
