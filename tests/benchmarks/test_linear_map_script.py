"""The linear map that models are held against: its fit and its forecasts, by hand."""

import json

import numpy as np
import pytest
from processes import run_here

from benchmarks import linear_map
from timemoe_jax.errors import DataError
from timemoe_jax.forecasting.scoring.linear_map import least_squares, usable


def test_least_squares_find_the_map_that_made_the_data():
    rng = np.random.default_rng(0)
    x, true = rng.normal(size=(200, 6)), rng.normal(size=(6, 3))
    found = least_squares(x.T @ x, x.T @ (x @ true), ridge=1e-12)
    np.testing.assert_allclose(found, true, atol=1e-8)


def test_a_ridge_of_one_halves_what_an_even_spectrum_says():
    """X'X = 4 I, so that (4 + 4) W = X'Y."""
    found = least_squares(4 * np.eye(2), np.array([[8.0], [4.0]]), ridge=1.0)
    np.testing.assert_allclose(found, [[1.0], [0.5]])


def test_windows_are_scored_by_their_context_and_cut():
    windows = np.array(
        [
            [1.0, 3.0, 5.0, 99.0],  # mean 2, deviation 1
            [4.0, 4.0, 5.0, 6.0],  # flat
            [0.0, 1.0, np.nan, 2.0],
        ]
    )
    np.testing.assert_allclose(usable(windows, 2), [[-1.0, 1.0, 3.0, 10.0]])


def test_forecasts_follow_scale_and_level():
    rng = np.random.default_rng(0)
    forecaster = linear_map.LinearForecaster(rng.normal(size=(8, 5)))
    context = rng.normal(size=(3, 8))
    point = forecaster.forecast(context, 4).point
    assert point.shape == (3, 4)
    np.testing.assert_allclose(forecaster.forecast(5 * context - 7, 4).point, 5 * point - 7)
    scaled = (context - context.mean(1, keepdims=True)) / context.std(1, keepdims=True)
    by_hand = scaled @ forecaster.matrix[:, :4] * context.std(1, keepdims=True)
    np.testing.assert_allclose(point, by_hand + context.mean(1, keepdims=True))


def test_another_length_is_refused():
    forecaster = linear_map.LinearForecaster(np.zeros((8, 5)))
    assert forecaster.usable_context(8, 5) == 8
    for context, horizon in ((9, 5), (8, 6)):
        with pytest.raises(DataError, match="the map is of 8 points to 5"):
            forecaster.usable_context(context, horizon)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--horizons", "96,many"], "--horizons must be whole numbers, but is '96,many'"),
        (["--windows", "0"], "--windows must be positive, but is 0"),
        (["--horizons", "0,5"], "--horizons must be positive, but is 0"),
    ],
)
def test_flags_that_cannot_be(flags, message, capsys):
    with pytest.raises(SystemExit):
        linear_map.parse(flags)
    assert message in capsys.readouterr().err


def test_the_script_beats_the_last_value_on_generated_series(tmp_path):
    path = tmp_path / "rows.json"
    done = run_here("benchmarks/linear_map.py", "--quick", "--json", path)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    assert rows["last value MSE at 48"]["ratio"] > 1.2
    assert rows["last value MSE at 48"]["reference"] == "linear map"
    assert rows["linear map MSE at 24"]["value"] < rows["linear map MSE at 48"]["value"]
