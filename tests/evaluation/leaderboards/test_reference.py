"""The seasonal naive of the leaderboards by hand, and what relative scores stand on."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from timemoe_jax.evaluation.leaderboards import published, scoring
from timemoe_jax.evaluation.leaderboards.config import FevConfig, GiftConfig
from timemoe_jax.evaluation.leaderboards.reference import NormalSeasonalNaive


def test_a_normal_seasonal_naive():
    context = np.array([0.0, 1, 4, 3, 5, 9])
    found = NormalSeasonalNaive().predict([context], 5, 2, (0.1, 0.5, 0.9))
    np.testing.assert_array_equal(found.point[0], [5, 9, 5, 9, 5])
    # Changes over two points: 4, 2, 1, 6.
    deviation = np.sqrt((16 + 4 + 1 + 36) / 4) * np.sqrt([1, 1, 2, 2, 3])
    np.testing.assert_allclose(found.quantiles[0, :, 2], found.point[0] + deviation * norm.ppf(0.9))
    np.testing.assert_allclose(found.quantiles[0, :, 1], found.point[0])


def test_contexts_with_little_in_them():
    gap, short, empty = np.array([np.nan, 1, np.nan, 3]), np.array([2.0, 5]), np.full(3, np.nan)
    found = NormalSeasonalNaive().predict([gap, short, empty], 3, 3, (0.5,))
    np.testing.assert_array_equal(found.point, [[1, 1, 3], [2, 2, 5], [0, 0, 0]])
    assert np.isfinite(found.quantiles).all()


def test_at_most_so_many_points_are_read():
    context = np.arange(10.0)
    found = NormalSeasonalNaive(4).predict([context, context], 2, 3, (0.5, 0.9))
    np.testing.assert_array_equal(found.point[0], [7, 8])
    longer = NormalSeasonalNaive(4).predict([context], 2, 5, (0.5,))  # then there is no season
    np.testing.assert_array_equal(longer.point[0], [9, 9])


@pytest.mark.parametrize(
    ("benchmark", "model", "metric", "value"),
    [
        ("gift", "TiRex-2", "mase", 0.794),
        ("gift", "TiRex-2", "crps", 0.448),
        ("gift", "goia-nano", "mase", 0.825),
        ("gift", "Super-Linear", "mase", 0.899),
        ("gift", "AutoARIMA", "mase", 1.104),
        ("fev", "seasonal naive", "sql", 1.0),
    ],
)
def test_published_scores_relative_to_seasonal_naive(benchmark, model, metric, value):
    table = published.published(benchmark)
    tasks = list(dict.fromkeys(task for task, _ in table["seasonal naive"]))
    found = published.relative(benchmark, model, tasks, metric)
    assert found == pytest.approx(value, abs=1e-3)


def test_a_model_without_every_task_has_no_mean():
    assert math.isnan(published.relative("fev", "AutoARIMA", ["ETT_15T", "ETT_1H"], "sql"))
    assert published.relative("fev", "AutoARIMA", ["ETT_1H"], "sql") < 1


def test_exposure():
    assert published.exposure_of("gift", "Chronos-Bolt base") == "test split"
    assert published.exposure_of("gift", "Chronos-2") == "train split"
    assert published.exposure_of("fev", "Chronos-2") == "never seen"
    assert published.exposure_of("gift", "AutoARIMA") == "none"
    nano = GiftConfig(checkpoint="nano")
    assert scoring.exposure_to(nano, ("ETTm1",)) == "never seen"
    assert scoring.exposure_to(nano, ()) == "unknown"
    assert scoring.exposure_to(GiftConfig(checkpoint="out/run"), ("ETTm1",)) == "unknown"
    said = FevConfig(checkpoint="out/run", exposure="test split")
    assert scoring.exposure_to(said, ("ETTm1",)) == "test split"
