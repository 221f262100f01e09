"""A forecaster and a forecast as objects: in other processes, as text, as a table."""

import os
import pickle

import jax
import numpy as np
import pytest

from timemoe_jax import Forecaster
from timemoe_jax.errors import DataError, ForkError, TimeMoeError
from timemoe_jax.forecasting.result import Forecast
from timemoe_jax.runtime import forks

SERIES = np.sin(np.arange(60.0))


@pytest.fixture(scope="module")
def forecaster(golden):
    return Forecaster.from_pretrained(golden)


def test_loading_compiles_nothing():
    compiled = []

    def listen(name, seconds, **_):
        if name.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    forecaster = Forecaster.from_pretrained("nano")
    assert compiled == []
    assert {p.dtype for p in jax.tree.leaves(forecaster.engine.params)} == {np.dtype("float32")}


def test_a_forecaster_pickles(forecaster):
    copy = pickle.loads(pickle.dumps(forecaster))
    assert copy.config == forecaster.config
    assert copy.digest == forecaster.digest
    for one, other in zip(
        jax.tree.leaves(copy.engine.params), jax.tree.leaves(forecaster.engine.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    copy.engine._decode = forecaster.engine._decode
    np.testing.assert_array_equal(
        copy.forecast(SERIES, 4).point, forecaster.forecast(SERIES, 4).point
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_a_fork_says_so_instead_of_waiting_for_ever(forecaster):
    forecaster.forecast(SERIES, 4)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            forecaster.forecast(SERIES, 4)
            text = "no error"
        except ForkError as error:
            text = str(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert "forked after JAX was used" in os.read(reader, 1000).decode()
    forecaster.forecast(SERIES, 4)  # the parent goes on


def test_a_fork_before_the_first_use_is_none(monkeypatch):
    monkeypatch.setattr(forks, "_used", False)
    forks._after_fork()
    forks.check()
    monkeypatch.setattr(forks, "_forked", True)
    with pytest.raises(TimeMoeError, match="spawn"):
        forks.check()


def test_methods_of_other_libraries_are_answered_with_ours(forecaster):
    with pytest.raises(AttributeError, match=r"use forecast\(series, horizon=\.\.\.\)"):
        forecaster.predict(SERIES, 4)
    with pytest.raises(AttributeError, match=r"quantile_levels"):
        forecaster.predict_quantiles  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        forecaster.nonsense  # noqa: B018
    assert not hasattr(forecaster, "predict")  # so that nobody takes it for an estimator
    with pytest.raises(AttributeError, match="__deepcopy__"):
        forecaster.__deepcopy__  # noqa: B018
    assert not hasattr(type(forecaster).__new__(type(forecaster)), "engine")


def test_repr(forecaster):
    text = repr(forecaster)
    assert text.startswith("<Forecaster: time_moe, 19,584 parameters in float32")
    assert "4096 points, heads of 1, 8, 32, 64 points" in text


def test_a_forecast_as_a_table():
    point = np.arange(4.0).reshape(1, 2, 2)
    quantiles = np.stack([point - 1, point + 1], axis=-1)
    names = ("shop channel 0", "shop channel 1")
    out = Forecast(point, 8, np.zeros(2), quantiles, (0.1, 0.9), "heads", True, names)
    frame = out.to_frame()
    assert list(frame.columns) == ["unique_id", "step", "predictions", "0.1", "0.9"]
    assert frame.unique_id.tolist() == [names[0]] * 2 + [names[1]] * 2
    assert frame.step.tolist() == [1, 2, 1, 2]
    np.testing.assert_array_equal(frame.predictions, [0, 1, 2, 3])
    np.testing.assert_array_equal(frame["0.9"] - frame["0.1"], 2)
    plain = Forecast(np.zeros((2, 3)), 8, np.zeros(2)).to_frame()
    assert plain.unique_id.unique().tolist() == ["series 0", "series 1"]


def test_a_forecast_knows_the_names_of_its_series(forecaster):
    assert forecaster.forecast([SERIES], 4, names=["load"]).to_frame().unique_id[0] == "load"


def test_values_that_cannot_be_negative(forecaster):
    options = {"context_length": 16, "batch_size": 64}
    plain = forecaster.forecast(SERIES, 4, quantile_levels=[0.1, 0.9], **options)
    out = forecaster.forecast(SERIES, 4, quantile_levels=[0.1, 0.9], non_negative=True, **options)
    assert plain.quantiles.min() < 0
    np.testing.assert_array_equal(out.point, np.maximum(plain.point, 0))
    np.testing.assert_array_equal(out.quantiles, np.maximum(plain.quantiles, 0))
    paths = forecaster.sample(SERIES, 4, num_samples=5, non_negative=True, **options)
    assert paths.min() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "seed must be an integer of at least 0, but is None"),
        ({"seed": -1}, "seed must be an integer of at least 0, but is -1"),
        ({"num_samples": 3.0}, "num_samples must be an integer of at least 1, but is 3.0"),
    ],
)
def test_arguments_of_the_wrong_kind(forecaster, options, message):
    with pytest.raises(DataError, match=message):
        forecaster.sample(SERIES, 2, **options)
