"""Studies: several variants of one config, trained one after the other, and what came of each.

Every variant is a normal run in a folder of its own. Killed and started again with the same
command, a study goes on where it was: what is finished is not run again.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from timemoe_jax import train
from timemoe_jax.config import ModelConfig, RunConfig
from timemoe_jax.data.folder_lock import claimed
from timemoe_jax.data.held_out_windows import choose_windows, open_held_out
from timemoe_jax.data.training_data import open_training_data
from timemoe_jax.errors import ConfigError
from timemoe_jax.forecast import Forecaster
from timemoe_jax.held_out import HeldOutScores, score
from timemoe_jax.logs import read_metrics
from timemoe_jax.models.time_moe import count_parameters
from timemoe_jax.run_config import (
    require,
    require_choice,
    require_not_negative,
    require_positive,
)
from timemoe_jax.train_loop import say

STUDIES = ("scaling", "ablations")
KINDS = ("sparse", "dense")
MEASURES = ("validation_loss", "held_out_mse")

_RESULT = "result.json"  # of a variant, in its folder
_POLL_SECONDS = 5.0  # while other processes are at all that is left

# Beyond any error of a z-scored value, so that Huber is half the square everywhere.
_QUADRATIC = 1e6

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """Model sizes, numbers of points, and what is fitted: one entry of each tuple per size."""

    hidden_sizes: tuple[int, ...] = (48, 64, 96, 128)
    num_layers: tuple[int, ...] = (2, 3, 3, 4)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    learning_rates: tuple[float, ...] = ()  # empty: the base's for all
    points: tuple[int, ...] = (1_000_000, 2_000_000, 4_000_000)
    measure: str = "validation_loss"  # the loss that the law is fitted to
    num_resamples: int = 200
    confidence: float = 0.9

    def __post_init__(self) -> None:
        require_choice(self, "measure", MEASURES)
        require_positive(self, "num_resamples")
        sizes = len(self.hidden_sizes)
        for name in ("num_layers", "num_heads", "learning_rates"):
            values = getattr(self, name)
            require(
                len(values) == sizes or (name == "learning_rates" and not values),
                f"{name} has {len(values)} entries for {sizes} hidden_sizes; give one each",
            )
        require(sizes > 0, "hidden_sizes is empty; name at least one")
        require(len(self.points) > 0, "points is empty; name at least one number")
        for name in ("hidden_sizes", "num_layers", "num_heads", "learning_rates", "points"):
            values = getattr(self, name)
            require(all(v > 0 for v in values), f"{name} must be positive, but are {values}")
        require(0 < self.confidence < 1, f"confidence must be in (0, 1), but is {self.confidence}")


@dataclasses.dataclass(frozen=True)
class AblationsConfig:
    """Which variants, how often, and how long each is trained."""

    variants: tuple[str, ...] = ()  # of ABLATIONS; empty: all that differ from the base
    seeds: tuple[int, ...] = (0, 1, 2)
    points: int = 0  # that each reads, as in a scaling study; 0: as many as the base

    def __post_init__(self) -> None:
        for name in self.variants:
            require(name in ABLATIONS, f"variants names {name!r}; known: {', '.join(ABLATIONS)}")
        require(len(self.seeds) > 0, "seeds is empty; name at least one")
        require_not_negative(self, "points")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """How every variant is scored on what its data hold out (`held_out.score`)."""

    horizons: tuple[int, ...] = (24, 96)
    context_length: int | None = None  # None: data.length, or what the positions have room for
    max_windows: int = 200  # of each source

    def __post_init__(self) -> None:
        require_positive(self, "max_windows")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study: the run that its variants are variants of, and which they are."""

    base: RunConfig
    study: str
    scaling: ScalingConfig = dataclasses.field(default_factory=ScalingConfig)
    ablations: AblationsConfig = dataclasses.field(default_factory=AblationsConfig)
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        require_choice(self, "study", STUDIES)
        data = self.base.data
        require(
            bool(data.validation_path or data.validation_sources or data.validation_fraction),
            "base.data holds nothing out, so that nothing could be compared; set "
            "base.data.validation_sources, validation_path or validation_fraction",
        )


class Variant(NamedTuple):
    """One run of a study.

    Attributes:
      name: of its folder.
      config: of the run.
      labels: what tells it from the others.
    """

    name: str
    config: RunConfig
    labels: dict[str, Any]


def _model(**fields: Any) -> Any:
    return lambda run: dataclasses.replace(run, model=dataclasses.replace(run.model, **fields))


def _squared(run: RunConfig) -> RunConfig:
    return dataclasses.replace(run, loss=dataclasses.replace(run.loss, huber_delta=_QUADRATIC))


# What each changes of the base.
ABLATIONS: Mapping[str, Any] = {
    "full": lambda run: run,
    "mse_loss": _squared,
    "no_balancing_loss": _model(apply_aux_loss=False),
    "router_bias": _model(router_bias=True),
    "heads_1": _model(horizon_lengths=(1,)),
    "heads_1_8": _model(horizon_lengths=(1, 8)),
    "heads_1_8_32": _model(horizon_lengths=(1, 8, 32)),
    "heads_1_8_32_64": _model(horizon_lengths=(1, 8, 32, 64)),
    "head_32": _model(horizon_lengths=(32,)),
    "top_1": _model(num_experts_per_tok=1),
    "top_2": _model(num_experts_per_tok=2),
    "top_4": _model(num_experts_per_tok=4),
    "no_shared_expert": _model(shared_expert=False),
    "dense": lambda run: dataclasses.replace(run, model=equally_activated_dense(run.model)),
}


def equally_activated_dense(model: ModelConfig) -> ModelConfig:
    """The dense model with as nearly as possible the parameters that a sparse one activates.

    Only the width of its feed-forward layers differs; `count_parameters` says how near it is.

    Args:
      model: the sparse one.
    """

    def dense(width: int) -> ModelConfig:
        return dataclasses.replace(
            model, use_dense=True, router_bias=False, shared_expert=True, intermediate_size=width
        )

    # Parameters are linear in the width, so two counts give all of them.
    one, two = (count_parameters(dense(width))[1] for width in (1, 2))
    wanted = count_parameters(model)[1]
    return dense(max(1, round(1 + (wanted - one) / (two - one))))


def scaling_variants(config: StudyConfig) -> list[Variant]:
    """Every size with every number of points, sparse and dense, in the order of their cost.

    Widths of feed-forward layers are to the hidden size as in the base. Warm-up and decay are the
    same share of each run. A number of points becomes whole updates.
    """
    base, scaling = config.base, config.scaling
    rates = scaling.learning_rates or (base.optimizer.learning_rate,) * len(scaling.hidden_sizes)
    sizes = zip(scaling.hidden_sizes, scaling.num_layers, scaling.num_heads, rates, strict=True)
    variants = []
    for hidden, layers, heads, rate in sizes:
        top = base.model.num_experts_per_tok
        width = top * max(
            1, round(hidden * base.model.intermediate_size / base.model.hidden_size / top)
        )
        sparse = dataclasses.replace(
            base.model,
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            use_dense=False,
        )
        models = {"sparse": sparse, "dense": equally_activated_dense(sparse)}
        for points in scaling.points:
            for kind in KINDS:
                run = _for_points(dataclasses.replace(base, model=models[kind]), points, rate)
                labels = {"kind": kind, "hidden_size": hidden, "layers": layers, "asked": points}
                variants.append(Variant(f"{kind}_{hidden}x{layers}_{points}", run, labels))
    return variants


def _for_points(run: RunConfig, points: int, rate: float) -> RunConfig:
    steps = max(1, round(points / (run.train.batch_size * run.data.length)))
    optimizer, share = run.optimizer, steps / run.train.num_steps
    floor = optimizer.end_learning_rate * rate / optimizer.learning_rate
    return dataclasses.replace(
        run,
        optimizer=dataclasses.replace(
            optimizer,
            learning_rate=rate,
            end_learning_rate=floor,
            warmup_steps=int(optimizer.warmup_steps * share),
            decay_steps=int(optimizer.decay_steps * share),
        ),
        train=dataclasses.replace(run.train, num_steps=steps, eval_every=0, keep_checkpoints=1),
    )


def ablation_variants(config: StudyConfig) -> list[Variant]:
    """Every ablation with every seed, seed by seed, so that a first table comes early.

    Where none is named, those that change nothing of the base are left out: they are "full".

    Raises:
      ConfigError: an ablation cannot be applied to the base.
    """
    ablations, base = config.ablations, config.base
    if ablations.points:
        base = _for_points(base, ablations.points, base.optimizer.learning_rate)
    train_ = dataclasses.replace(base.train, eval_every=0, keep_checkpoints=1)
    base = dataclasses.replace(base, train=train_)
    variants = []
    for seed in ablations.seeds:
        full = dataclasses.replace(base, seed=seed)
        for name in ablations.variants or tuple(ABLATIONS):
            try:
                run = ABLATIONS[name](full)
            except ConfigError as error:
                raise ConfigError(f"ablation {name!r} does not fit the base: {error}") from None
            if ablations.variants or name == "full" or run != full:
                variants.append(Variant(f"{name}_seed{seed}", run, {"variant": name, "seed": seed}))
    return variants


def run_variants(
    variants: Sequence[Variant], workdir: str | os.PathLike[str], scoring: ScoreConfig
) -> tuple[list[Result], bool]:
    """Trains and scores what is not finished yet; writes `results.json` after every variant.

    Several processes may do so in the same workdir: each takes what no other is at, and all return
    when everything is there.

    Args:
      variants: one after the other, each in the folder of its name.
      workdir: of the study.
      scoring: how each is scored.

    Returns:
      the results, and whether all are there: a signal ends a study early.

    Raises:
      ConfigError: a folder holds a run of another config.
      ConfigError, DataError, CheckpointError, TrainingError: as `train.run` does.
    """
    workdir = Path(workdir)
    for variant in variants:  # before the first is trained
        _check_same(variant, scoring, workdir / variant.name)
    pending = list(enumerate(variants, start=1))
    while pending:
        elsewhere = []
        for number, variant in pending:
            with claimed(workdir / variant.name) as mine:
                if not mine:
                    elsewhere.append((number, variant))
                    continue
                title = f"variant {number} of {len(variants)}: {variant.name}"
                if not _finish(variant, workdir / variant.name, scoring, title):
                    return _finished(variants, workdir), False
            _write_json(workdir / "results.json", {"variants": _finished(variants, workdir)})
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
    _write_json(folder / _RESULT, _result(variant, folder, scoring))
    # A study compiles much that is never used again.
    jax.clear_caches()
    return True


def _finished(variants: Sequence[Variant], workdir: Path) -> list[Result]:
    files = (workdir / variant.name / _RESULT for variant in variants)
    return [json.loads(file.read_text()) for file in files if file.exists()]


def _result(variant: Variant, folder: Path, scoring: ScoreConfig) -> Result:
    config = variant.config
    total, activated = count_parameters(config.model)
    records = [r for r in read_metrics(folder / "metrics.jsonl") if "validation_loss" in r]
    validation = {k: v for k, v in records[-1].items() if k.startswith("validation_loss")}
    scores = score_run(folder, config, scoring)
    return {
        "name": variant.name,
        **variant.labels,
        "total_parameters": total,
        "activated_parameters": activated,
        "intermediate_size": config.model.intermediate_size,
        "steps": config.train.num_steps,
        "points": count_points(config),
        "validation": validation,
        "held_out": scores.as_dict(),
        "scoring": dataclasses.asdict(scoring),
    }


def score_run(
    folder: str | os.PathLike[str], config: RunConfig, scoring: ScoreConfig
) -> HeldOutScores:
    """Scores the newest checkpoint of a run on what its data hold out.

    Args:
      folder: of the run.
      config: of the run.
      scoring: at which horizons, and on how many windows.

    Raises:
      DataError: nothing is held out, or no series is long enough.
    """
    source, parts = open_held_out(config.data, config.seed)
    room = config.model.max_position_embeddings - max(scoring.horizons)
    context = scoring.context_length or min(config.data.length, room)
    windows = choose_windows(source, parts, context, scoring.horizons, scoring.max_windows)
    return score(Forecaster.from_pretrained(folder), windows)


def measured(result: Result, measure: str) -> float:
    """The loss of a variant that a law is fitted to.

    Args:
      result: of one variant.
      measure: "validation_loss", the mean over the heads; or "held_out_mse", the mean over the
        horizons of the mean over sources.
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
    then = _flat(json.loads(stored.read_text()))
    now = _flat(json.loads(json.dumps(dataclasses.asdict(variant.config))))
    finished = folder / _RESULT
    if finished.exists():
        then |= _flat({"score": json.loads(finished.read_text())["scoring"]})
        now |= _flat({"score": json.loads(json.dumps(dataclasses.asdict(scoring)))})
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if names:
        shown = [f"{name} {then.get(name)} but {now.get(name)} now" for name in names[:5]]
        raise ConfigError(
            f"{folder} is of another config; it has {', '.join(shown)}: give another workdir"
        )


def _flat(section: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def _write_json(path: Path, value: Any) -> None:
    """Whole or not at all, also where the program is killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
