"""Adapters: what other libraries make of a forecaster whose answers are known, and of a real one.

The libraries are no part of the pinned environment, so that most of this is skipped there; what
each of them needs beside the rest stands in pyproject.toml.
"""

import dataclasses
import importlib
import pickle
import sys
import tomllib
import warnings

import numpy as np
import pandas as pd
import pytest
from fake_forecaster import FakeForecaster
from flax import nnx
from places import ROOT
from tiny_model import TINY

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.checkpoints import bundled
from timemoe_jax.forecasting.adapters import loading, nixtla
from timemoe_jax.forecasting.intervals.plan import TooShortError
from timemoe_jax.models.time_moe.model import TimeMoe

PACKAGES = {"gluonts": "gluonts", "fev": "fev", "sktime": "sktime"}
STEPS = np.arange(1, 5)


@pytest.fixture
def fake():
    return FakeForecaster()


@pytest.fixture(scope="module")
def real():
    """A model with heads for quantiles."""
    config = dataclasses.replace(TINY, quantile_levels=(0.1, 0.5, 0.9))
    return Forecaster(config, nnx.state(TimeMoe(config, rngs=nnx.Rngs(0)), nnx.Param))


def adapter(name):
    pytest.importorskip(PACKAGES[name], reason=f"{name} is no part of the pinned environment")
    return importlib.import_module(f"timemoe_jax.forecasting.adapters.{name}")


def waves(count, length=60):
    rng = np.random.default_rng(0)
    return [np.sin(np.arange(length) / (i + 2)) + rng.normal(size=length) for i in range(count)]


class TestLoading:
    @pytest.mark.parametrize("name", PACKAGES)
    def test_an_absent_library_is_named_with_its_installation(self, monkeypatch, name):
        module = f"timemoe_jax.forecasting.adapters.{name}"
        package = PACKAGES[name]
        for known in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, known, None)
        monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(ImportError, match=rf"pip install .*'{package}>=") as error:
            importlib.import_module(module)
        assert isinstance(error.value, loading.MissingPackageError)

    def test_every_extra_that_is_named_exists(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for name, package in PACKAGES.items():
            extra = project["optional-dependencies"][name]
            assert any(line.startswith(package) for line in extra)
            assert tuple(extra) == loading.REQUIREMENTS[name]

    def test_a_path_is_loaded_once(self, golden, monkeypatch):
        loading._load.cache_clear()
        assert loading.forecaster_of(golden) is loading.forecaster_of(str(golden))
        assert loading.forecaster_of(golden).config.num_experts == 8

    def test_a_forecaster_is_itself(self, fake):
        assert loading.forecaster_of(fake) is fake

    @pytest.mark.parametrize("model", [None, 3, object()])
    def test_anything_else_is_an_error(self, model):
        with pytest.raises(ConfigError, match="model must be a Forecaster or the path"):
            loading.forecaster_of(model)


class TestNixtla:
    @pytest.fixture
    def df(self):
        hours = pd.date_range("2024-01-01", periods=6, freq="h")
        return pd.DataFrame(
            {
                "unique_id": ["b"] * 6 + ["a"] * 6,
                "ds": [*hours, *hours],
                "y": [*np.arange(6.0), 1, 2, np.nan, 4, 5, np.nan],
            }
        )

    def test_points_and_bounds_by_hand(self, fake, df):
        before = df.copy()
        out = nixtla.forecast(fake, df, 4, freq="h", level=[80, 95])
        assert list(out.columns) == [
            *("unique_id", "ds", "TimeMoE"),
            *("TimeMoE-lo-95", "TimeMoE-lo-80", "TimeMoE-hi-80", "TimeMoE-hi-95"),
        ]
        assert list(out["unique_id"]) == ["b"] * 4 + ["a"] * 4
        times = pd.date_range("2024-01-01 06:00", periods=4, freq="h")
        assert list(out["ds"]) == [*times, *times]
        # The last value of b is 5; that of a too, with a missing one behind it.
        np.testing.assert_allclose(out["TimeMoE"], [*(5 + STEPS), *(6 + STEPS)])
        for level, half in ((80, 4), (95, 4.75)):
            for side, sign in (("lo", -1), ("hi", 1)):
                width = out[f"TimeMoE-{side}-{level}"] - out["TimeMoE"]
                np.testing.assert_allclose(width, sign * half * np.tile(STEPS, 2))
        pd.testing.assert_frame_equal(df, before)

    def test_levels_in_any_order_and_none(self, fake, df):
        one = nixtla.forecast(fake, df, 2, level=[95, 80, 80])
        pd.testing.assert_frame_equal(one, nixtla.forecast(fake, df, 2, level=[80, 95]))
        assert list(nixtla.forecast(fake, df, 2).columns) == ["unique_id", "ds", "TimeMoE"]
        assert fake.calls[-1]["quantile_levels"] is None

    def test_a_level_that_is_no_whole_number(self, fake, df):
        out = nixtla.forecast(fake, df, 1, level=[99.9])
        assert fake.calls[-1]["quantile_levels"] == [0.0005, 0.9995]
        assert list(out.columns[3:]) == ["TimeMoE-lo-99.9", "TimeMoE-hi-99.9"]

    def test_other_names_and_step_numbers(self, fake):
        df = pd.DataFrame({"k": [7, 7, 7], "t": [2, 4, 6], "v": [0.0, 1.0, 9.0]})
        names = {"id_col": "k", "time_col": "t", "target_col": "v", "alias": "M"}
        out = nixtla.forecast(fake, df, 2, freq=2, level=[50], **names)
        expected = {"k": [7, 7], "t": [8, 10], "M": [10.0, 11.0]}
        bounds = {"M-lo-50": [7.5, 6.0], "M-hi-50": [12.5, 16.0]}
        pd.testing.assert_frame_equal(out, pd.DataFrame(expected | bounds))

    def test_future_covariates_go_through(self, fake, df):
        future = pd.DataFrame({"unique_id": ["a"]})
        nixtla.forecast(fake, df, 2, X_df=future)
        assert fake.calls[-1]["future_df"] is future

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"level": 80}, "level must be a list of percentages such as .* but is 80"),
            ({"level": []}, "level must be a list"),
            ({"level": [80, 100]}, "level must hold numbers between 0 and 100, but has 100"),
            ({"level": [0.8, True]}, "but has True"),
            ({"level": ["80"]}, "but has '80'"),
            ({"alias": "ds"}, "alias 'ds' is the name of another column"),
            ({"target_col": "x"}, "no column 'x'"),
        ],
    )
    def test_bad_arguments(self, fake, df, arguments, message):
        with pytest.raises(DataError, match=message):
            nixtla.forecast(fake, df, 2, **arguments)

    def test_utilsforecast_evaluates_it(self, fake, df):
        pytest.importorskip("utilsforecast", reason="utilsforecast is not installed")
        from utilsforecast.evaluation import evaluate
        from utilsforecast.losses import coverage, mae, quantile_loss

        out = nixtla.forecast(fake, df, 4, level=[80])
        # The bounds are 4, 8, 12 and 16 away: of truths that are 9 off, the last two are within.
        truth = out[["unique_id", "ds"]].assign(y=out["TimeMoE"] + 9)
        scores = evaluate(truth.merge(out), metrics=[mae, coverage], level=[80])
        values = scores.set_index(["metric", "unique_id"])["TimeMoE"]
        for name in ("a", "b"):
            assert values["mae", name] == pytest.approx(9)
            assert values["coverage_level80", name] == pytest.approx(0.5)
        loss = quantile_loss(truth.merge(out), {"TimeMoE": "TimeMoE-hi-80"}, q=0.9)
        # Of 9 - 4h: 5 and 1 above count 0.9 each, 3 and 7 below count 0.1 each.
        assert loss["TimeMoE"].to_numpy() == pytest.approx((0.9 * 6 + 0.1 * 10) / 4)

    def test_options_go_through(self, fake, df):
        nixtla.forecast(fake, df, 2, context_length=3, intervals="conformal")
        assert (fake.calls[-1]["context_length"], fake.calls[-1]["intervals"]) == (3, "conformal")

    def test_a_real_model(self, real):
        series = waves(2)
        days = pd.date_range("2024-01-01", periods=60, freq="D")
        frames = [pd.DataFrame({"unique_id": i, "ds": days, "y": s}) for i, s in enumerate(series)]
        out = nixtla.forecast(real, pd.concat(frames), 4, level=[80])
        expected = real.forecast(series, 4, quantile_levels=[0.1, 0.9])
        np.testing.assert_array_equal(out["TimeMoE"], expected.point.reshape(-1))
        for column, values in zip(
            ("lo", "hi"), np.moveaxis(expected.quantiles, -1, 0), strict=True
        ):
            np.testing.assert_array_equal(out[f"TimeMoE-{column}-80"], values.reshape(-1))


class TestGluonts:
    @pytest.fixture
    def module(self):
        return adapter("gluonts")

    @pytest.fixture
    def dataset(self):
        start = pd.Period("2024-01-30", "D")
        long = {"item_id": "long", "start": start, "target": np.arange(9.0)}
        gap = {"item_id": "gap", "start": start, "target": [1.0, 2.0, np.nan], "info": {"k": 1}}
        return [long, gap]

    def test_forecasts_by_hand(self, module, dataset, fake):
        predictor = module.TimeMoePredictor(fake, 4, quantile_levels=[0.1, 0.5, 0.9])
        one, two = predictor.predict(dataset)
        assert (one.item_id, two.item_id, two.info) == ("long", "gap", {"k": 1})
        assert one.start_date == pd.Period("2024-02-08", "D")
        assert two.start_date == pd.Period("2024-02-02", "D")
        assert one.forecast_keys == ["mean", "0.1", "0.5", "0.9"]
        np.testing.assert_array_equal(one.mean, 8 + STEPS)
        np.testing.assert_array_equal(two.mean, 3 + STEPS)
        np.testing.assert_allclose(one.quantile(0.9), 8 + STEPS + 4 * STEPS)
        np.testing.assert_allclose(one.quantile("p10"), 8 + STEPS - 4 * STEPS)
        assert list(one.index) == list(pd.period_range("2024-02-08", periods=4, freq="D"))

    def test_a_lead_time_is_left_out(self, module, dataset, fake):
        (plain, _) = module.TimeMoePredictor(fake, 6, quantile_levels=[0.9]).predict(dataset)
        late = module.TimeMoePredictor(fake, 4, lead_time=2, quantile_levels=[0.9])
        (one, _) = late.predict(dataset)
        assert one.start_date == plain.start_date + 2
        np.testing.assert_array_equal(one.forecast_array, plain.forecast_array[:, 2:])

    def test_entries_are_read_in_parts(self, module, dataset, fake, monkeypatch):
        monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 3)
        read = []

        def entries():
            for i in range(7):
                read.append(i)
                yield dataset[0] | {"item_id": i}

        forecasts = module.TimeMoePredictor(fake, 2, batch_size=5).predict(entries())
        assert next(forecasts).item_id == 0
        assert read == [0, 1, 2]
        assert [f.item_id for f in forecasts] == [1, 2, 3, 4, 5, 6]
        assert [call["series"] for call in fake.calls] == [3, 3, 1]
        assert {call["batch_size"] for call in fake.calls} == {5}

    def test_an_empty_dataset(self, module, fake):
        assert list(module.TimeMoePredictor(fake, 2).predict([])) == []

    def test_datasets_of_gluonts(self, module, fake):
        from gluonts.dataset.common import ListDataset
        from gluonts.dataset.pandas import PandasDataset

        hours = pd.date_range("2024-01-01", periods=5, freq="h")
        frame = pd.DataFrame({"target": [0, 1, 2, 3, 7.0], "item": "x"}, index=hours)
        pandas_dataset = PandasDataset.from_long_dataframe(frame, item_id="item", freq="h")
        listed = ListDataset([{"start": "2024-01-01", "target": frame["target"].to_numpy()}], "h")
        for dataset, item in ((pandas_dataset, "x"), (listed, None)):
            (out,) = module.TimeMoePredictor(fake, 2).predict(dataset)
            assert out.start_date == pd.Period("2024-01-01 05:00", "h")
            assert out.item_id == item
            np.testing.assert_array_equal(out.mean, [8, 9])

    def test_evaluate_model(self, module, fake):
        """The truth is 2 above the forecast, whose 0.9 quantile is 4 h above it."""
        from gluonts.dataset.split import split
        from gluonts.ev.metrics import MAE, MASE, MSE, MeanWeightedSumQuantileLoss
        from gluonts.model import evaluate_model

        target = np.arange(12.0)
        target[-4:] += 2
        entry = {"item_id": "a", "start": pd.Period("2024-01-01", "D"), "target": target}
        _, template = split([entry, entry], offset=-4)
        levels = [0.1, 0.5, 0.9]
        metrics = [MAE(), MSE(), MASE(), MeanWeightedSumQuantileLoss(quantile_levels=levels)]
        scores = evaluate_model(
            module.TimeMoePredictor(fake, 4, quantile_levels=levels),
            test_data=template.generate_instances(prediction_length=4),
            metrics=metrics,
            seasonality=1,
        ).iloc[0]
        assert scores["MAE[0.5]"] == pytest.approx(2)
        assert scores["MSE[mean]"] == pytest.approx(4)
        assert scores["MASE[0.5]"] == pytest.approx(2)  # the naive forecast is 1 off
        # Twice the pinball losses: 0.1 above and below by 2 + 4h and 4h - 2, and 0.5 by 2.
        losses = [2 * 0.1 * (2 + 4 * STEPS), 2 * 0.5 * np.full(4, 2), 2 * 0.1 * (4 * STEPS - 2)]
        expected = np.sum(losses) / 3 / target[-4:].sum()
        assert scores["mean_weighted_sum_quantile_loss"] == pytest.approx(expected)

    def test_the_older_evaluator(self, module, fake):
        from gluonts.evaluation import Evaluator, make_evaluation_predictions

        entry = {"item_id": "a", "start": pd.Period("2024-01-01", "D"), "target": np.arange(20.0)}
        predictor = module.TimeMoePredictor(fake, 4, quantile_levels=[0.1, 0.5, 0.9])
        forecasts, series = make_evaluation_predictions([entry], predictor, num_samples=10)
        scores, _ = Evaluator(quantiles=[0.1, 0.9], num_workers=0)(series, forecasts)
        assert scores["MSE"] == 0
        assert (scores["Coverage[0.1]"], scores["Coverage[0.9]"]) == (0, 1)

    def test_without_quantiles_only_points_are_scored(self, module, fake):
        from gluonts.dataset.split import split
        from gluonts.ev.metrics import MAE, MeanWeightedSumQuantileLoss
        from gluonts.model import evaluate_model

        entry = {"start": pd.Period("2024-01-01", "D"), "target": np.arange(12.0)}
        data = split([entry], offset=-4)[1].generate_instances(prediction_length=4)
        predictor = module.TimeMoePredictor(fake, 4)
        assert evaluate_model(predictor, test_data=data, metrics=[MAE()]).iloc[0, 0] == 0
        loss = MeanWeightedSumQuantileLoss(quantile_levels=[0.1, 0.9])
        with pytest.raises(ValueError, match="Forecast contains NaN"):
            evaluate_model(predictor, test_data=data, metrics=[loss])

    def test_a_real_model(self, module, real):
        start = pd.Period("2024-01-01", "h")
        dataset = [{"start": start, "target": s.astype(np.float32)} for s in waves(3)]
        options = {"quantile_levels": [0.2, 0.8], "context_length": 40}
        expected = real.forecast([entry["target"] for entry in dataset], 5, **options)
        predictor = module.TimeMoePredictor(real, 5, **options)
        out = np.stack([forecast.forecast_array for forecast in predictor.predict(dataset)])
        np.testing.assert_array_equal(out[:, 0], expected.point)
        np.testing.assert_array_equal(out[:, 1:], np.moveaxis(expected.quantiles, -1, 1))

    def test_a_predictor_of_a_path_is_written_and_read(self, module, golden, tmp_path):
        from gluonts.model import Predictor

        dataset = [{"start": pd.Period("2024-01-01", "h"), "target": waves(1)[0]}]
        predictor = module.TimeMoePredictor(golden, 4, lead_time=1, context_length=40)
        predictor.serialize(tmp_path)
        again = Predictor.deserialize(tmp_path)
        assert type(again) is module.TimeMoePredictor
        assert (again.prediction_length, again.lead_time) == (4, 1)
        (one,), (two,) = predictor.predict(dataset), again.predict(dataset)
        np.testing.assert_array_equal(one.forecast_array, two.forecast_array)
        assert one.start_date == two.start_date

    def test_a_predictor_of_an_object_cannot_be_written(self, module, fake, tmp_path):
        with pytest.raises(ConfigError, match="only be written if its model is the path"):
            module.TimeMoePredictor(fake, 2).serialize(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_an_option_that_is_no_text_cannot_be_written(self, module, golden, tmp_path):
        predictor = module.TimeMoePredictor(golden, 2, calibration=np.ones(3))
        with pytest.raises(ConfigError, match="option of the predictor cannot be written"):
            predictor.serialize(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_covariates_that_are_left_out_are_named(self, module, dataset, fake):
        entry = dataset[0] | {"feat_dynamic_real": np.ones((1, 11))}
        with pytest.warns(UserWarning, match="are not used: feat_dynamic_real"):
            list(module.TimeMoePredictor(fake, 2).predict([entry]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"target": np.ones((2, 5))}, r"entry 1 \(item_id 'gap'\) .* shape \(2, 5\)"),
            ({"target": np.full(3, np.nan)}, r"entry 1 \(item_id 'gap'\) has no observed value"),
            ({"start": pd.Timestamp("2024-01-01")}, "must have a pandas Period as its 'start'"),
        ],
    )
    def test_bad_entries(self, module, fake, dataset, change, message):
        with pytest.raises(DataError, match=message):
            list(module.TimeMoePredictor(fake, 2).predict([dataset[0], dataset[1] | change]))

    def test_an_entry_without_a_target(self, module, fake):
        with pytest.raises(DataError, match="entry 0 has no 'target'; it has 'start'"):
            list(module.TimeMoePredictor(fake, 2).predict([{"start": pd.Period("2024", "Y")}]))

    @pytest.mark.parametrize("lengths", [(0, 0), (True, 0), (2.0, 0), (2, -1)])
    def test_bad_lengths(self, module, fake, lengths):
        with pytest.raises(ConfigError, match="must be an integer of at least"):
            module.TimeMoePredictor(fake, *lengths)


class TestFev:
    @pytest.fixture
    def module(self, monkeypatch, tmp_path):
        module = adapter("fev")
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        return module

    @pytest.fixture
    def task(self, module, tmp_path):
        """Two series of 20 days: one window of 4 that continues them, one that is 3 above."""

        def make(**arguments):
            import fev

            days = pd.date_range("2024-01-01", periods=20, freq="D")
            up = np.arange(20.0)
            up[-4:] += 3
            frames = [
                pd.DataFrame({"id": name, "timestamp": days, "target": up + level, "price": 1.0})
                for name, level in (("x", 0.0), ("y", 50.0))
            ]
            frame = pd.concat(frames).assign(other=lambda df: 2 * df["target"])
            frame.to_parquet(tmp_path / "data.parquet")
            defaults = {"horizon": 4, "num_windows": 2, "eval_metric": "MASE", "seasonality": 1}
            return fev.Task(dataset_path=str(tmp_path / "data.parquet"), **(defaults | arguments))

        return make

    def test_a_task_is_scored(self, module, task, fake):
        levels = [0.1, 0.5, 0.9]
        made = task(quantile_levels=levels, extra_metrics=["MAE", "SQL"])
        model = module.TimeMoeModel(fake)
        predictions = model.fit_predict(made)
        summary = made.evaluation_summary(
            predictions, model_name="time-moe", inference_time_s=model.inference_time
        )
        # The first window is forecast exactly, the second is 3 below; a naive forecast is 1 off.
        assert summary["MAE"] == pytest.approx((0 + 3) / 2)
        assert summary["MASE"] == summary["test_error"] == pytest.approx((0 + 3) / 2)
        # Twice the pinball losses of 0.1, 0.5 and 0.9, whose forecasts are 4h below, 0, 4h above.
        exact = 2 * (0.1 * 4 * STEPS + 0 + 0.1 * 4 * STEPS) / 3
        high = np.where(4 * STEPS > 3, 0.1 * (4 * STEPS - 3), 0.9 * (3 - 4 * STEPS))
        off = 2 * (0.1 * (4 * STEPS + 3) + 0.5 * 3 + high) / 3
        assert summary["SQL"] == pytest.approx((exact.mean() + off.mean()) / 2)
        assert model.inference_time > 0
        assert set(predictions[0]["target"].column_names) == {"predictions", "0.1", "0.5", "0.9"}

    def test_several_targets_keep_apart(self, module, task, fake):
        made = task(target=["target", "other"], num_windows=1)
        (predictions,) = module.TimeMoeModel(fake, context_length=7).fit_predict(made)
        # y is 50 above x; `other` is twice as much, and all of them end on day 15.
        expected = {"target": [15 + STEPS, 65 + STEPS], "other": [30 + STEPS, 130 + STEPS]}
        for name, values in expected.items():
            np.testing.assert_array_equal(predictions[name]["predictions"], values)
        assert made.evaluation_summary([predictions], model_name="m")["test_error"] > 0
        (call,) = fake.calls
        assert (call["series"], call["context_length"]) == (4, 7)

    def test_covariates_that_are_left_out_are_named(self, module, task, fake):
        with pytest.warns(UserWarning, match="covariates of the task .* are not used: price"):
            module.TimeMoeModel(fake).fit_predict(task(known_dynamic_columns=["price"]))

    def test_without_covariates_there_is_no_warning(self, module, task, fake):
        made = task()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            module.TimeMoeModel(fake).fit_predict(made)

    def test_fev_knows_the_model(self, module, fake):
        import fev

        assert fev.ForecastingModel.get_model_cls("time-moe") is module.TimeMoeModel
        leaked = module.TimeMoeModel(fake, trained_on_datasets=["m4_hourly"])
        assert leaked.trained_on_datasets == ["m4_hourly"]
        assert module.TimeMoeModel(fake).trained_on_datasets == []

    def test_a_real_model(self, module, task, real):
        made = task(quantile_levels=[0.9, 0.1])
        predictions = module.TimeMoeModel(real).fit_predict(made)
        for i, found in enumerate(predictions):
            past, _ = made.get_window(i, num_proc=0).get_input_data()
            expected = real.forecast(list(past["target"]), 4, quantile_levels=[0.1, 0.9])
            np.testing.assert_array_equal(found["target"]["predictions"], expected.point)
            for k, key in enumerate(("0.1", "0.9")):
                np.testing.assert_array_equal(found["target"][key], expected.quantiles[:, :, k])


class TestSktime:
    @pytest.fixture
    def module(self):
        return adapter("sktime")

    @pytest.fixture
    def y(self):
        days = pd.period_range("2024-01-01", periods=9, freq="D")
        return pd.Series(np.arange(9.0), days, name="sales")

    def test_sktime_checks_it(self, module):
        """sktime's own tests of a forecaster; one that fails is named by the error."""
        from checked_by_sktime import CheckedForecaster
        from sktime.utils.estimator_checks import check_estimator

        # It wants a second set of parameters, which would double the time.
        left_out = ["test_get_test_params_coverage"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = check_estimator(CheckedForecaster, tests_to_exclude=left_out, verbose=False)
        assert len(results) > 300
        assert not {name: result for name, result in results.items() if result != "PASSED"}

    def test_forecasts_by_hand(self, module, y, fake):
        forecaster = module.TimeMoeForecaster(fake).fit(y)
        point = forecaster.predict(fh=[1, 3])
        assert point.name == "sales"
        assert list(point.index) == [pd.Period("2024-01-10", "D"), pd.Period("2024-01-12", "D")]
        np.testing.assert_array_equal(point, [9, 11])
        quantiles = forecaster.predict_quantiles(fh=[1, 3], alpha=[0.9, 0.1])
        assert list(quantiles.columns) == [("sales", 0.9), ("sales", 0.1)]
        np.testing.assert_allclose(quantiles, [[13, 5], [23, -1]])
        interval = forecaster.predict_interval(fh=[1], coverage=0.8)
        np.testing.assert_allclose(interval, [[5, 13]])

    def test_the_bundled_model_is_the_default_and_what_sktime_tests(self, module):
        assert module.TimeMoeForecaster().model == bundled.DEFAULT
        every = module.TimeMoeForecaster.get_test_params()
        assert [params.get("model", bundled.DEFAULT) for params in every] == [bundled.DEFAULT] * 2

    def test_a_series_too_short_for_earlier_errors_has_the_intervals_of_a_random_walk(
        self, module, y
    ):
        class Short(FakeForecaster):
            def forecast(self, *args, quantile_levels=None, **options):
                if quantile_levels:
                    raise TooShortError("too few points")
                return super().forecast(*args, quantile_levels=None, **options)

        forecaster = module.TimeMoeForecaster(Short()).fit(2 * y)
        with pytest.warns(UserWarning, match="column 'sales': too short for the errors"):
            interval = forecaster.predict_interval(fh=[1, 4], coverage=0.9)
        # Steps of 2; 1.645 of them after one day, twice that after four.
        point, width = np.array([17, 20]), 2 * 1.6448536 * np.array([1, 2])
        np.testing.assert_allclose(interval, np.stack([point - width, point + width], axis=1))

    def test_dates_and_columns(self, module, fake):
        days = pd.date_range("2024-01-01", periods=5, freq="D")
        y = pd.DataFrame({"a": np.arange(5.0), "b": 10 * np.arange(5.0)}, index=days)
        fh = pd.DatetimeIndex(["2024-01-07", "2024-01-08"])
        forecaster = module.TimeMoeForecaster(fake).fit(y, fh=fh)
        np.testing.assert_array_equal(forecaster.predict(), [[6, 42], [7, 43]])
        quantiles = forecaster.predict_quantiles(alpha=[0.4, 0.6])
        assert list(quantiles.columns) == [("a", 0.4), ("a", 0.6), ("b", 0.4), ("b", 0.6)]
        np.testing.assert_allclose(quantiles, [[4, 8, 40, 44], [4, 10, 40, 46]])

    @pytest.fixture
    def panel(self):
        """Three series in two groups, of which one ends a day early, in no order of their names."""
        days = pd.period_range("2024-01-01", periods=4, freq="D")
        rows = [("z", "s", day, float(i)) for i, day in enumerate(days)]
        rows += [("a", "t", day, 100.0 + i) for i, day in enumerate(days[:3])]
        rows += [("a", "s", day, 50.0 + i) for i, day in enumerate(days)]
        frame = pd.DataFrame(rows, columns=["group", "shop", "day", "y"])
        return frame.set_index(["group", "shop", "day"]).sort_index()

    def test_a_hierarchy_in_one_call(self, module, panel, fake):
        forecaster = module.TimeMoeForecaster(fake).fit(panel)
        point = forecaster.predict(fh=[1, 2])
        assert [call["series"] for call in fake.calls] == [3]
        for key, values in {
            ("a", "s"): [54, 55],
            ("a", "t"): [104, 105],
            ("z", "s"): [4, 5],
        }.items():
            np.testing.assert_array_equal(point.loc[key]["y"], values)
        days = point.index.get_level_values(-1).unique()
        assert list(days) == list(pd.period_range("2024-01-05", periods=2, freq="D"))
        quantiles = forecaster.predict_quantiles(fh=[2], alpha=[0.9])
        np.testing.assert_allclose(quantiles[("y", 0.9)], [63, 113, 13])

    def test_a_series_without_values_is_named(self, module, panel, fake):
        empty = panel.assign(y=panel["y"].mask(panel["y"] >= 100))
        with pytest.raises(DataError, match="column 'y' of a, t has no observed value"):
            module.TimeMoeForecaster(fake).fit(empty).predict(fh=[1])

    def test_a_panel_is_what_its_series_are(self, module, panel, real):
        flat = panel.loc["a"]
        together = module.TimeMoeForecaster(real).fit(flat).predict(fh=[1, 2, 3])
        # A day without a row at the end of a series counts as missing.
        values = flat["y"].unstack(0).to_numpy().T
        np.testing.assert_array_equal(together["y"], real.forecast(values, 3).point.reshape(-1))

    def test_a_time_without_a_row_is_missing(self, module, y, real):
        forecaster = module.TimeMoeForecaster(real).fit(y.drop(y.index[[3, 4]]))
        holed = y.to_numpy().copy()
        holed[3:5] = np.nan
        point = forecaster.predict(fh=range(1, 6))
        expected = real.forecast(holed, 5, quantile_levels=[0.1, 0.5])
        np.testing.assert_array_equal(point, expected.point[0])
        quantiles = forecaster.predict_quantiles(fh=range(1, 6), alpha=[0.5, 0.1])
        np.testing.assert_array_equal(quantiles, expected.quantiles[0, :, ::-1])

    def test_dates_that_are_absent_and_dates_off_the_grid(self, module, real):
        from sktime.forecasting.base import ForecastingHorizon

        days = pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-04", "2024-01-07"])
        forecaster = module.TimeMoeForecaster(real).fit(pd.Series([0.0, 1.0, 3.0, 9.0], days))
        point = forecaster.predict(ForecastingHorizon([1, 2], freq="D"))
        gaps = [0, 1, np.nan, 3, np.nan, np.nan, 9]
        np.testing.assert_array_equal(point, real.forecast(gaps, 2).point[0])
        with pytest.raises(DataError, match=r"the time 2024-01-02 .* is not on the grid"):
            forecaster.predict(ForecastingHorizon([1], freq="2D"))

    @pytest.mark.parametrize("update_params", [True, False])
    def test_an_update_is_more_context(self, module, y, real, update_params):
        forecaster = module.TimeMoeForecaster(real, context_length=8).fit(y[:5])
        forecaster.update(y[5:], update_params=update_params)
        expected = real.forecast(y.to_numpy(), 3, context_length=8).point[0]
        np.testing.assert_array_equal(forecaster.predict(fh=[1, 2, 3]), expected)

    def test_a_fitted_forecaster_is_pickled_without_its_model(self, module, y, golden):
        forecaster = module.TimeMoeForecaster(str(golden)).fit(y, fh=[1, 2])
        stored = pickle.dumps(forecaster)
        assert len(stored) < 50_000
        np.testing.assert_array_equal(pickle.loads(stored).predict(), forecaster.predict())

    def test_a_missing_model_is_an_error_of_fit(self, module, y):
        with pytest.raises(ConfigError, match="model must be a Forecaster or the path"):
            module.TimeMoeForecaster().fit(y)
