"""Methods behind one protocol: what each gives, and what becomes of those that fail."""

import importlib.util
import sys
import time

import numpy as np
import pytest
from places import TESTS

from timemoe_jax.data.samples import load_sample
from timemoe_jax.errors import ConfigError, DataError, TimeMoeError
from timemoe_jax.evaluation.methods.imported import ImportedMethod
from timemoe_jax.evaluation.methods.registry import get_methods, method_names
from timemoe_jax.evaluation.methods.running import run_method, workers_of
from timemoe_jax.evaluation.methods.simple import SIMPLE, last_resort
from timemoe_jax.evaluation.methods.statistical import CLASSES
from timemoe_jax.forecasting.scoring import baselines

NAN = np.nan
LEVELS = (0.1, 0.5, 0.9)
ODD = {
    "one point": [5.0],
    "nothing": [NAN, NAN],
    "two points": [1.0, 2.0],
    "shorter than a season": [1.0, 2.0, 3.0, 2.0, 1.0],
    "a gap at the end": [*([1.0, 2.0, 3.0, 4.0] * 10), NAN, NAN, NAN],
    "a phase never observed": [1.0, NAN, 3.0, 4.0] * 10,
    "constant": [3.0] * 60,
    "huge": [1e300, 2e300] * 30,
}


@pytest.mark.parametrize("method", SIMPLE, ids=lambda method: method.name)
def test_a_simple_method_answers_any_context(method):
    contexts = [np.array(each) for each in ODD.values()]
    before = [each.copy() for each in contexts]
    out = method.predict(contexts, 9, 8, LEVELS)
    assert out.point.shape == (len(ODD), 9)
    assert out.quantiles.shape == (len(ODD), 9, 3)
    assert np.isfinite(out.point).all()
    assert np.isfinite(out.quantiles).all()
    assert (np.diff(out.quantiles, axis=2) >= 0).all()
    assert 1 in out.failures
    assert list(ODD).index("constant") not in out.failures
    for each, was in zip(contexts, before, strict=True):
        np.testing.assert_array_equal(each, was)
    alone = method.predict(contexts[4:5], 9, 8, LEVELS)
    np.testing.assert_array_equal(alone.quantiles[0], out.quantiles[4])


def test_simple_methods_forecast_as_their_functions_do():
    series = load_sample("greensboro_hourly").values[:600, 0]
    methods = {method.name: method.predict([series], 30, 24, LEVELS) for method in SIMPLE}
    assert not any(out.failures for out in methods.values())
    batch = series[None]
    for name, expected in {
        "naive": baselines.naive(batch, 30),
        "seasonal_naive": baselines.seasonal_naive(batch, 30, 24),
        "drift": baselines.drift(batch, 30),
        "window_average": baselines.window_average(batch, 30, 24),
        "parroting": baselines.context_parroting(batch, 30, 24),
    }.items():
        np.testing.assert_array_equal(methods[name].point, expected)


def test_the_last_resort_says_what_was_not_defined():
    assert last_resort(np.array([2.0, 4.0]), 3, 2, LEVELS)[2] == ""
    point, quantiles, why = last_resort(np.array([2.0, 4.0]), 3, 7, LEVELS)
    assert why == "the context is shorter than a season of 7"
    np.testing.assert_array_equal(point, [4, 4, 4])
    np.testing.assert_array_equal(quantiles[0], [6, 6, 6])  # the one change that there was


def test_methods_are_found_by_name():
    found = get_methods("naive, linear,naive")
    assert [method.name for method in found] == ["naive", "linear"]
    assert [m.name for m in get_methods([m.name for m in SIMPLE])] == method_names()[: len(SIMPLE)]
    with pytest.raises(ConfigError, match="no method 'lineal'; did you mean 'linear'"):
        get_methods("lineal")
    with pytest.raises(ConfigError, match="there is no module 'no_such_module'"):
        get_methods("no_such_module:function")


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TimeMoeError, match=r"'ets' needs statsforecast.*pip install 'statsfor"):
        get_methods("ets")


@pytest.fixture(scope="module")
def moody():
    """A run of two workers in which every way to fail occurs."""
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS / "evaluation"))
        method = importlib.import_module("methods_for_tests").Moody()
        contexts = [np.array([mood, 7.0, 8.0]) for mood in (0.0, 1.0, 2.0, 5.0, 3.0, 4.0, 0.0)]
        start = time.perf_counter()
        run = run_method(method, contexts, 4, 2, LEVELS, limit_s=0.5, processes=2)
        yield run, contexts, time.perf_counter() - start


def test_what_fails_counts_as_seasonal_naive(moody):
    run, contexts, wall = moody
    reasons = run.forecast.failures
    assert list(reasons) == [1, 2, 3, 4, 5]
    assert reasons[1] == reasons[3] == "it took over 0.5 s"  # one slept, one computed
    assert reasons[2] == "ValueError: no forecast today"
    assert reasons[4] == "the process of the method ended with status 3"
    assert reasons[5] == "the forecast is NaN or infinite somewhere"
    for i in (0, 6):
        np.testing.assert_array_equal(run.forecast.point[i], 108)
    for i in reasons:
        expected = baselines.seasonal_naive(contexts[i][None], 4, 2)[0]
        np.testing.assert_array_equal(run.forecast.point[i], expected)
    assert np.isfinite(run.forecast.quantiles).all()
    assert 0.5 < run.seconds <= wall < 60  # and not the 600 s that one would have slept


def test_workers_are_kept_from_task_to_task(monkeypatch):
    import importlib

    monkeypatch.syspath_prepend(str(TESTS / "evaluation"))
    method = importlib.import_module("methods_for_tests").Moody()
    with workers_of(method, 1) as workers:
        for _ in range(2):
            for horizon in (2, 5):
                out = run_method(
                    method, [np.array([0.0, horizon])], horizon, 1, LEVELS, workers=workers
                )
                np.testing.assert_array_equal(out.forecast.point, [[horizon + 100] * horizon])
        (worker,) = workers._idle
        assert worker.process.is_alive()
    assert worker.process.exitcode is not None


def test_workers_that_do_not_start_are_an_error(monkeypatch):
    import importlib

    monkeypatch.syspath_prepend(str(TESTS / "evaluation"))
    method = importlib.import_module("methods_for_tests").NeverStarts()
    with pytest.raises(TimeMoeError, match="'moody' does not start: ImportError: a package is"):
        run_method(method, [np.ones(4)], 2, 1, LEVELS)
    with pytest.raises(DataError, match="limit_s must be positive, or None, but is 0"):
        run_method(method, [np.ones(4)], 2, 1, LEVELS, limit_s=0)


def test_a_predictor_is_imported_by_its_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "evaluation"))
    (method,) = get_methods("methods_for_tests:Last")
    out = method.predict([np.arange(5.0), np.arange(9.0)], 3, 12, LEVELS, "ME")
    np.testing.assert_array_equal(out.point, [[4] * 3, [8] * 3])
    np.testing.assert_allclose(out.quantiles[1, 2], [7.6, 8, 8.4])
    (estimator, own) = get_methods("methods_for_tests:LastEstimator,methods_for_tests:Moody")
    out = estimator.predict([np.arange(5.0)], 3, 12, LEVELS, "h")
    np.testing.assert_array_equal(out.point, [[4] * 3])
    out = own.predict([np.array([0.0, 1.0])], 3, 12, LEVELS)  # a method of this library
    np.testing.assert_array_equal(out.point, [[101] * 3])
    with pytest.raises(ConfigError, match="gives a str, which has none of predict"):
        ImportedMethod("methods_for_tests:nothing").predict([np.ones(3)], 2, 1, LEVELS)
    with pytest.raises(ConfigError, match="has no 'absent'"):
        ImportedMethod("methods_for_tests:absent").predict([np.ones(3)], 2, 1, LEVELS)


def test_a_module_of_the_working_directory_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    source = TESTS / "evaluation/methods_for_tests.py"
    (tmp_path / "mine.py").write_text(source.read_text("utf-8"), "utf-8")
    (method,) = get_methods("mine:Last")
    run = run_method(method, [np.arange(5.0)], 3, 12, LEVELS, "MS", processes=1)
    np.testing.assert_array_equal(run.forecast.point, [[4] * 3])
    assert not run.forecast.failures


def test_the_methods_of_statsforecast():
    pytest.importorskip("statsforecast")
    t = np.arange(96)
    rng = np.random.default_rng(0)
    series = 10 + 0.05 * t + 2 * np.sin(2 * np.pi * t / 12) + 0.1 * rng.standard_normal(96)
    truth = series[72:]
    series[5] = NAN
    for method in get_methods(list(CLASSES)):
        out = method.predict([series[:72]], 24, 12, LEVELS, "MS")
        assert np.abs(out.point - truth).mean() < 0.5, method.name
        assert (np.diff(out.quantiles[0], axis=1) > 0).all()
        with pytest.raises(ValueError, match="the context has fewer than 3 points"):
            method.predict([np.array([NAN])], 24, 12, LEVELS)
    run = run_method(get_methods("theta")[0], [series[:72], np.array([1.0])], 24, 12, LEVELS)
    np.testing.assert_allclose(run.forecast.point[0], truth, atol=1)
    assert list(run.forecast.failures) == [1]


def test_predictors_of_gluonts():
    pytest.importorskip("gluonts")
    (method,) = get_methods("gluonts.model.seasonal_naive:SeasonalNaivePredictor")
    context = np.arange(20.0)
    out = method.predict([context], 5, 4, LEVELS, "h")
    np.testing.assert_array_equal(out.point, baselines.seasonal_naive(context[None], 5, 4))


def test_models_of_fev(monkeypatch):
    fev = pytest.importorskip("fev")
    datasets = pytest.importorskip("datasets")

    class Repeat(fev.ForecastingModel):
        def _fit_predict(self, task):
            out = []
            for window in task.iter_windows(num_proc=0):
                past, _ = window.get_input_data()
                last = [[row[-1]] * task.horizon for row in past["target"]]
                columns = {"predictions": last} | {str(q): last for q in task.quantile_levels}
                rows = datasets.Dataset.from_dict(columns, features=task.predictions_schema)
                out.append(datasets.DatasetDict({"target": rows}))
            return out

    monkeypatch.setattr(baselines, "Repeat", Repeat, raising=False)
    method = ImportedMethod("timemoe_jax.forecasting.scoring.baselines:Repeat")
    out = method.predict([np.arange(5.0), np.arange(9.0)], 3, 1, LEVELS, "h")
    np.testing.assert_array_equal(out.point, [[4] * 3, [8] * 3])
    np.testing.assert_array_equal(out.quantiles[1, 2], [8] * 3)
