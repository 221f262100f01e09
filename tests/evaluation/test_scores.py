"""Scores of windows: small cases by hand, and the same numbers as GluonTS and fev."""

import dataclasses
import importlib.util
import math

import numpy as np
import pytest
from evaluation_tasks import SIMPLE, forecast_of

from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.methods.base import MethodForecast
from timemoe_jax.evaluation.scores import (
    geometric_mean,
    score_windows,
    seasonal_scales,
    summarize,
)
from timemoe_jax.evaluation.tasks import DECILES, Task

NAN = np.nan


def test_scores_by_hand():
    """Windows [3, 6] after 0, 1; [10, 15] after 6; [NaN, 8] after 2, 2, 4, 4."""
    scores = score_windows(SIMPLE, forecast_of(SIMPLE, width=10.0))
    np.testing.assert_array_equal(scores.points, [2, 2, 1])
    np.testing.assert_allclose(scores.absolute, [2 + 5, 4 + 9, 4])
    np.testing.assert_allclose(scores.squared, [4 + 25, 16 + 81, 16])
    np.testing.assert_allclose(scores.scale, [1, (1 + 2 + 3) / 3, 2 / 3])
    np.testing.assert_allclose(scores.mase, [3.5, 6.5 / 2, 4 / (2 / 3)])
    np.testing.assert_allclose(scores.target, [9, 25, 8])
    # Quantiles 4 below, at and 4 above the point: 2 tau times what is above them.
    of_first = [0.2 * (6 + 9), 1.0 * (2 + 5), 1.8 * 1 + 0.2 * 2]
    np.testing.assert_allclose(scores.quantile_loss[0], of_first)
    np.testing.assert_allclose(scores.sql[0], np.mean(of_first) / 2 / 1)
    # Within 4 of the last value, the ends included.
    np.testing.assert_array_equal(scores.covered, [1, 1, 1])
    whole = summarize(scores)
    assert whole.mase == pytest.approx((7 / 1 + 13 / 2 + 4 / (2 / 3)) / 5)
    assert whole.crps == pytest.approx(np.mean(scores.quantile_loss.sum(axis=0) / 42))
    assert whole.coverage == pytest.approx(3 / 5)
    assert (whole.points, whole.windows, whole.without_scale) == (5, 3, 0)
    assert (whole.mae, whole.mse) == pytest.approx((24 / 5, 142 / 5))
    by_window = summarize(scores, np.array([4, 7, 4]))
    assert by_window.mase == pytest.approx(((7 + 6) / 3 + 6.5 / 2) / 2)


def test_windows_without_a_scale_do_not_count():
    flat = Task("flat", (np.array([1.0, 1, 1, 1, 3]), np.arange(5.0)), ("a", "b"), (), 1, 1)
    flat = dataclasses.replace(flat, origins=(np.array([4]), np.array([4])))
    scores = score_windows(flat, forecast_of(flat))
    assert math.isnan(scores.mase[0])
    whole = summarize(scores)
    assert (whole.mase, whole.windows, whole.without_scale) == (1.0, 1, 1)
    assert whole.mae == pytest.approx(1.5)
    assert math.isnan(summarize(scores, np.arange(2)).mase)  # a group of nothing


def test_a_past_shorter_than_a_season():
    task = dataclasses.replace(SIMPLE, season=3)
    np.testing.assert_allclose(seasonal_scales(task), [1, 6, 2])
    np.testing.assert_allclose(seasonal_scales(task, one_where_short=False), [NAN, 6, 2])
    as_long = dataclasses.replace(SIMPLE, season=2)
    assert math.isnan(seasonal_scales(as_long)[0])
    own = dataclasses.replace(SIMPLE, season=3, scale_season=1)
    np.testing.assert_allclose(seasonal_scales(own), seasonal_scales(SIMPLE))


def test_forecasts_that_cannot_be_scored():
    good = forecast_of(SIMPLE)
    with pytest.raises(DataError, match=r"simple has point of the shape \(3, 1\), but must"):
        score_windows(SIMPLE, dataclasses.replace(good, point=good.point[:, :1]))
    with pytest.raises(DataError, match=r"quantiles of the shape .*steps, levels"):
        score_windows(SIMPLE, dataclasses.replace(good, quantiles=good.quantiles[..., :1]))
    point = good.point.copy()
    point[2, 0] = NAN  # where nothing was observed
    score_windows(SIMPLE, dataclasses.replace(good, point=point))
    point[2, 1] = NAN
    with pytest.raises(DataError, match="1 of the 5 values of the point forecasts are NaN"):
        score_windows(SIMPLE, dataclasses.replace(good, point=point))


def test_geometric_mean():
    assert geometric_mean([1, 4, 2]) == pytest.approx(2)
    assert math.isnan(geometric_mean([]))
    assert math.isnan(geometric_mean([1.0, NAN]))


def hard_task() -> Task:
    """Series of several lengths with gaps, a flat one, and one shorter than a season."""
    rng = np.random.default_rng(0)
    series = [10 * rng.normal(size=n).cumsum() for n in (60, 41, 23, 50)]
    series[0][[7, 30, 55]] = NAN
    series[1][39:] = NAN  # a window without a single observation
    series[3][:] = 4.0
    origins = [np.array([len(s) - 12, len(s) - 6, len(s) - 2]) - 0 for s in series]
    origins[2] = np.array([5, 17, 21])
    return Task("hard", tuple(series), ("a", "b", "c", "d"), tuple(origins), 2, 7, "D")


def random_forecast(task: Task) -> MethodForecast:
    rng = np.random.default_rng(1)
    quantiles = np.sort(10 * rng.normal(size=(len(task), task.horizon, len(task.levels))), axis=-1)
    return MethodForecast(quantiles[..., len(task.levels) // 2], quantiles)


@pytest.mark.skipif(not importlib.util.find_spec("gluonts"), reason="gluonts is not installed")
def test_the_scores_are_those_of_gluonts():
    import pandas as pd
    from gluonts.ev import metrics
    from gluonts.model.evaluation import evaluate_forecasts
    from gluonts.model.forecast import QuantileForecast

    class Data:
        """What GluonTS scores: inputs and labels."""

        start = pd.Period("2020-01-01", "D")
        input: list
        label: list

    task, data = hard_task(), Data()
    forecast = random_forecast(task)
    data.input = [{"target": context, "start": data.start} for context in task.contexts()]
    data.label = [{"target": target, "start": data.start} for target in task.targets()]
    keys = [str(level) for level in DECILES]
    theirs = evaluate_forecasts(
        [QuantileForecast(q.T, data.start, keys) for q in forecast.quantiles],
        test_data=data,
        metrics=[
            metrics.MASE(),
            metrics.MeanWeightedSumQuantileLoss(quantile_levels=DECILES),
            metrics.MAE(),
            metrics.MSE(forecast_type=0.5),
            *(metrics.MeanScaledQuantileLoss(q) for q in DECILES),
        ],
        seasonality=task.season,
        batch_size=5,
    ).iloc[0]
    ours = summarize(score_windows(task, forecast))
    assert ours.without_scale > 0
    assert ours.mase == pytest.approx(theirs["MASE[0.5]"], rel=1e-12)
    assert ours.crps == pytest.approx(theirs["mean_weighted_sum_quantile_loss"], rel=1e-12)
    assert ours.mae == pytest.approx(theirs["MAE[0.5]"], rel=1e-12)
    assert ours.mse == pytest.approx(theirs["MSE[0.5]"], rel=1e-12)
    sql = np.mean([theirs[f"mean_scaled_quantile_loss[{q}]"] for q in DECILES])
    assert ours.sql == pytest.approx(sql, rel=1e-12)


@pytest.mark.skipif(not importlib.util.find_spec("fev"), reason="fev is not installed")
def test_the_scores_are_those_of_fev():
    """Two target columns of two items, in three windows; a score of each, averaged."""
    from fev.metrics import MASE, SQL, WQL

    task = hard_task()
    columns = np.array([0, 1, 0, 1])  # of each series; items are (0, 1) and (2, 3)
    lengths = [41, 41, 50, 50]
    series = [np.resize(task.series[i], n) for i, n in enumerate(lengths)]
    series[3] = np.arange(50.0) ** 1.5
    origins = tuple(np.array([n - 40, n - 9, n - 2]) for n in lengths)
    task = dataclasses.replace(task, series=tuple(series), origins=origins)
    forecast = random_forecast(task)
    contexts, targets = task.contexts(), task.targets()
    theirs = {MASE: [], SQL: [], WQL: []}
    for number in range(3):
        at = np.array([[number, 3 + number], [6 + number, 9 + number]])  # [N, D]
        for metric, found in theirs.items():
            score = metric().compute(
                y_true=targets[at].swapaxes(1, 2),
                y_pred=forecast.point[at].swapaxes(1, 2),
                q_pred=forecast.quantiles[at].swapaxes(1, 2),
                y_past=np.concatenate([np.stack([contexts[i] for i in row], 1) for row in at]),
                y_past_lengths=np.array([len(contexts[row[0]]) for row in at]),
                seasonality=task.season,
                quantile_levels=list(DECILES),
            )
            found.append(score)
    groups = np.concatenate([3 * column + np.arange(3) for column in columns])
    scales = seasonal_scales(task, one_where_short=False)
    ours = summarize(score_windows(task, forecast, scales), groups)
    assert np.isnan(scales).any()
    assert ours.mase == pytest.approx(np.mean(theirs[MASE]), rel=1e-12)
    assert ours.sql == pytest.approx(np.mean(theirs[SQL]), rel=1e-12)
    assert ours.crps == pytest.approx(np.mean(theirs[WQL]), rel=1e-12)
