"""Studies: several variants of one config, trained one after the other, and the result of each.

Every variant is a normal run in its own folder. A study that was killed goes on when the same
command is started again: what is finished is not run again.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timemoe_jax.checkpoints.trees import json_copy
from timemoe_jax.data.corpus.staging import claimed
from timemoe_jax.data.pipeline.training_data import open_training_data
from timemoe_jax.errors import ConfigError, listed
from timemoe_jax.evaluation.held_out.scoring import score
from timemoe_jax.evaluation.held_out.windows import choose_windows, open_held_out
from timemoe_jax.evaluation.studies.config import ScoreConfig
from timemoe_jax.evaluation.studies.variants import Variant
from timemoe_jax.files import write_json
from timemoe_jax.forecasting.forecaster import Forecaster
from timemoe_jax.models.base import count_parameters
from timemoe_jax.runtime import compilation_cache
from timemoe_jax.runtime.progress import say
from timemoe_jax.training import run as train
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.metrics_log import read_metrics

_RESULT = "result.json"  # of a variant, in its folder
_POLL_SECONDS = 5.0  # while other processes work on everything that is left
Result = dict[str, Any]


def run_variants(
    variants: Sequence[Variant], workdir: str | os.PathLike[str], scoring: ScoreConfig
) -> tuple[list[Result], bool]:
    """Trains and scores what is not finished yet; writes `results.json` after every variant.

    Several processes may share a workdir: each takes variants that no other is working on, and all
    return when everything is finished. Returns the results, and whether all are there, since a
    signal ends a study early. A folder that holds a run of another config is a ConfigError.
    """
    workdir = Path(workdir)
    compilation_cache.use_by_default()  # the seeds of a variant share its programs
    for variant in variants:  # before the first is trained
        _check_same(variant, scoring, workdir / variant.name)
    pending = list(enumerate(variants, start=1))
    while pending:
        elsewhere = []
        for number, variant in pending:
            with claimed(workdir / variant.name) as is_ours:
                if not is_ours:
                    elsewhere.append((number, variant))
                    continue
                title = f"variant {number} of {len(variants)}: {variant.name}"
                if not _finish(variant, workdir / variant.name, scoring, title):
                    return _finished(variants, workdir), False
            write_json(workdir / "results.json", {"variants": _finished(variants, workdir)})
        if len(elsewhere) == len(pending):
            time.sleep(_POLL_SECONDS)
        pending = elsewhere
    return _finished(variants, workdir), True


def _finish(variant: Variant, folder: Path, scoring: ScoreConfig, title: str) -> bool:
    """Trains and scores a variant that is not finished; False if a signal ended that early."""
    import jax

    if (folder / _RESULT).exists():
        return True
    say(f"\n{title}")
    if train.run(variant.config, folder).stopped:
        return False
    write_json(folder / _RESULT, _result(variant, folder, scoring))
    # A study compiles much that is never used again.
    jax.clear_caches()
    return True


def _finished(variants: Sequence[Variant], workdir: Path) -> list[Result]:
    files = (workdir / variant.name / _RESULT for variant in variants)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def _result(variant: Variant, folder: Path, scoring: ScoreConfig) -> Result:
    config = variant.config
    total, activated = count_parameters(config.model)
    records = [r for r in read_metrics(folder / "metrics.jsonl") if "validation_loss" in r]
    validation = {k: v for k, v in records[-1].items() if k.startswith("validation_loss")}
    source, parts = open_held_out(config.data, config.seed)
    room = config.model.max_position_embeddings - max(scoring.horizons)
    context = scoring.context_length or min(config.data.length, room)
    windows = choose_windows(source, parts, context, scoring.horizons, scoring.max_windows)
    scores = score(Forecaster.from_pretrained(folder), windows)
    return {
        "name": variant.name,
        **variant.labels,
        "total_parameters": total,
        "activated_parameters": activated,
        "intermediate_size": dataclasses.asdict(config.model).get("intermediate_size"),
        "steps": config.train.num_steps,
        "points": count_points(config),
        "validation": validation,
        "held_out": scores.as_dict(),
        "scoring": dataclasses.asdict(scoring),
    }


def measured(result: Result, measure: str) -> float:
    """The loss of a variant that a law is fitted to.

    "validation_loss" is the mean over the heads, "held_out_mse" the mean over horizons and sources.
    """
    if measure == "validation_loss":
        return result["validation"]["validation_loss"]
    return float(np.mean([at["model"]["mse"] for at in result["held_out"]["average"].values()]))


def count_points(config: RunConfig) -> int:
    """How many observed points a run reads: all inputs of its windows but padding, on average."""
    data = open_training_data(
        config.data,
        seed=config.seed,
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
    )
    observed = np.sum(data.mixture.epochs() * [extent.points for extent in data.mixture.extents])
    inputs = config.data.length / (config.data.length + config.data.future)
    return round(float(observed) * inputs)


def _check_same(variant: Variant, scoring: ScoreConfig, folder: Path) -> None:
    """Refuses a folder that holds a run of another config."""
    stored = folder / "config.json"
    if not stored.exists():
        return
    then = _flat(json.loads(stored.read_text(encoding="utf-8")))
    now = _flat(json_copy(dataclasses.asdict(variant.config)))
    finished = folder / _RESULT
    if finished.exists():
        then |= _flat({"score": json.loads(finished.read_text(encoding="utf-8"))["scoring"]})
        now |= _flat({"score": json_copy(dataclasses.asdict(scoring))})
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if names:
        differences = [f"{name} {then.get(name)} but {now.get(name)} now" for name in names]
        raise ConfigError(
            f"{folder} is of another config; it has {listed(differences, 5)}: give another workdir"
        )


def _flat(section: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in section.items():
        inner = isinstance(value, dict)
        fields |= _flat(value, f"{above}{name}.") if inner else {above + name: value}
    return fields
