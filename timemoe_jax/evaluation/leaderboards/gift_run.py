"""Evaluates methods on GIFT-Eval, and writes the leaderboard's own result files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from timemoe_jax.evaluation.leaderboards import scoring, tables
from timemoe_jax.evaluation.leaderboards.config import (
    NEVER_SEEN,
    TEST_SPLIT,
    TRAIN_SPLIT,
    GiftConfig,
)
from timemoe_jax.evaluation.leaderboards.derived import GIFT_EVAL
from timemoe_jax.evaluation.leaderboards.gift import (
    LONG_TERM,
    SHORT_TERM,
    TooFewPointsError,
    find_gift,
    gift_task,
    load_gift,
    terms_of,
)
from timemoe_jax.evaluation.leaderboards.reference import NormalSeasonalNaive
from timemoe_jax.evaluation.leaderboards.scoring import Outcome, Scored, Skipped
from timemoe_jax.evaluation.scores import seasonal_scales
from timemoe_jax.evaluation.tasks import Task
from timemoe_jax.files import write_text

# Of the data sets, by the first part of their names on the leaderboard.
DOMAINS = {
    "Econ/Fin": ("m4_yearly", "m4_quarterly", "m4_monthly", "m4_weekly", "m4_daily", "m4_hourly"),
    "Energy": ("electricity", "ett1", "ett2", "solar"),
    "Healthcare": ("hospital", "covid_deaths", "us_births"),
    "Nature": ("saugeen", "temperature_rain", "kdd_cup_2018", "jena_weather"),
    "Sales": ("car_parts", "restaurant", "hierarchical_sales"),
    "Transport": ("loop_seattle", "sz_taxi", "m_dense"),
    "Web/CloudOps": (
        *("bitbrains_fast_storage", "bitbrains_rnd", "bizitobs_application"),
        *("bizitobs_service", "bizitobs_l2c"),
    ),
}
_DOMAIN_OF = {name: domain for domain, names in DOMAINS.items() for name in names}
_MODEL_TYPES = {NEVER_SEEN: "zero-shot", TRAIN_SPLIT: "pretrained", TEST_SPLIT: "pretrained"}
_TAIL = 0.025  # the level of the lower end of the interval that MSIS scores
_TOLERANCE = 1e-8


def run(config: GiftConfig) -> dict[str, Any]:
    """Scores methods on data sets of GIFT-Eval; returns the manifest, which is written too.

    The output folder takes `results.md`, `manifest.json` and, for each method,
    `results/METHOD/all_results.csv` in the leaderboard's layout, with a `config.json` of the model.

    Raises:
      TimeMoeError: a data set, the checkpoint or a method cannot be used.
    """
    for name in config.datasets:
        find_gift(name, config.data_dir)
    compared = scoring.compared_methods(config, NormalSeasonalNaive())
    rows: dict[str, list[dict[str, Any]]] = {method.name: [] for method in compared.methods}
    variates: dict[str, int] = {}
    exposures: set[str] = set()

    def tasks() -> Iterator[Scored | Skipped]:
        for name in config.datasets:
            data = load_gift(name, config.data_dir)
            files = GIFT_EVAL[name].files if data.derived else ()
            exposures.add(scoring.exposure_to(config, files))
            for term in terms_of(name, config.terms):
                try:
                    task = gift_task(data, term)
                except TooFewPointsError as error:
                    if name in LONG_TERM or name in SHORT_TERM:
                        raise
                    # Nothing says which terms a data set has that is not on the leaderboard.
                    yield Skipped(f"{name}/{term}", str(error))
                    continue
                variates[task.name] = data.variates
                yield Scored(task, seasonal_scales(task), files)

    def keep(scored: Scored, outcomes: list[Outcome]) -> list[Outcome]:
        for outcome in outcomes:
            row = result_row(scored.task, outcome, variates[scored.task.name])
            rows[outcome.method].append(row)
            folder = Path(config.output_dir) / "results" / outcome.method
            write_text(folder / "all_results.csv", scoring.as_csv(rows[outcome.method]))
            if outcome.method == compared.model:
                described = _model_card(config, compared, exposures)
                write_text(folder / "config.json", json.dumps(described, indent=4) + "\n")
        return outcomes

    return scoring.evaluate_tasks(config, compared, tasks(), keep, tables.report)


def result_row(task: Task, outcome: Outcome, variates: int) -> dict[str, Any]:
    """The row of a task in `all_results.csv`, by its columns."""
    target, forecast = task.targets(), outcome.forecast
    observed = ~np.isnan(target)
    size = np.abs(target)
    error = np.where(observed, np.abs(target - forecast.point), 0.0)
    scores, sums = outcome.scores, outcome.windows
    mean_size = sums.target.sum() / max(scores.points, 1)
    metrics = {
        "MSE[mean]": scores.mse,
        "MSE[0.5]": scores.mse,
        "MAE[0.5]": scores.mae,
        "MASE[0.5]": scores.mase,
        "MAPE[0.5]": _mean_ratio(error, size, observed),
        "sMAPE[0.5]": _mean_ratio(2 * error, size + np.abs(forecast.point), observed),
        "MSIS": interval_score(task, outcome),
        "RMSE[mean]": float(np.sqrt(scores.mse)),
        "NRMSE[mean]": float(np.sqrt(scores.mse) / mean_size) if mean_size else float("nan"),
        "ND[0.5]": scores.mae / mean_size if mean_size else float("nan"),
        "mean_weighted_sum_quantile_loss": scores.crps,
    }
    return {
        "dataset": task.name,
        "model": outcome.method,
        **{f"eval_metrics/{name}": value for name, value in metrics.items()},
        "domain": _DOMAIN_OF.get(task.name.split("/")[0], ""),
        "num_variates": variates,
    }


def interval_score(task: Task, outcome: Outcome) -> float:
    """MSIS: the mean scaled score of the interval of 95 percent.

    The outermost quantiles are deciles; beyond them the tails are taken to be exponential, as
    GluonTS does.
    """
    target, levels = task.targets(), task.levels
    quantiles = outcome.forecast.quantiles
    lower = _tail(quantiles[..., 0], quantiles[..., 1], levels[0], levels[1])
    upper = _tail(quantiles[..., -1], quantiles[..., -2], 1 - levels[-1], 1 - levels[-2])
    below, above = np.maximum(lower - target, 0), np.maximum(target - upper, 0)
    score = upper - lower + (below + above) / _TAIL
    scale = np.broadcast_to(outcome.windows.scale[:, None], target.shape)
    return _mean_ratio(score, scale, ~np.isnan(target))


def _tail(
    outer: Float64[np.ndarray, "W H"],
    inner: Float64[np.ndarray, "W H"],
    outer_level: float,
    inner_level: float,
) -> Float64[np.ndarray, "W H"]:
    """The quantile of `_TAIL` on the line, in the logarithm of the level, through two others."""
    apart = np.log((inner_level + _TOLERANCE) / (outer_level + _TOLERANCE) + _TOLERANCE)
    ahead = np.log((_TAIL + _TOLERANCE) / (inner_level + _TOLERANCE) + _TOLERANCE)
    return inner + (inner - outer) / apart * ahead


def _mean_ratio(above: np.ndarray, below: np.ndarray, observed: np.ndarray) -> float:
    """The mean of quotients where the target is observed and what is below is not 0."""
    counted = observed & np.isfinite(below) & (below != 0)
    return float((above[counted] / below[counted]).mean()) if counted.any() else float("nan")


def _model_card(
    config: GiftConfig, compared: scoring.Compared, exposures: set[str]
) -> dict[str, Any]:
    """`config.json` of a submission; what is not known is said to be so."""
    assert compared.forecaster is not None
    known = len(exposures) == 1
    exposure = next(iter(exposures)) if known else "unknown"
    leaks = {NEVER_SEEN: "No", TRAIN_SPLIT: "No", TEST_SPLIT: "Yes"}.get(exposure, "unknown")
    return {
        "model": compared.model,
        "model_type": _MODEL_TYPES.get(exposure, "unknown"),
        "model_dtype": compared.forecaster.config.dtype,
        "testdata_leakage": leaks,
        "checkpoint_hash": compared.forecaster.digest,
        "normalize": config.normalize,
    }
