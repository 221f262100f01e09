"""Fine-tuning a joint model on covariates: what is read, what is scored, what is kept."""

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
from tiny_model import TRACKER, TUNABLE

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.checkpoints.load import save_model
from timemoe_jax.cli.main import main
from timemoe_jax.forecasting.fitting import Columns, source_of
from timemoe_jax.models.base import create_params
from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.windows import split_in_time, validation_windows

H = 4
APART = dataclasses.replace(
    TRACKER,
    mixing="none",
    num_hidden_layers=1,
    use_dense=True,
    router_bias=False,
    initializer_range=0.2,
)


@functools.cache
def start(config=APART):
    return Forecaster(config, create_params(config, 0), disk_cache=False)


def table(length=200, effect=3.0):
    """Promotions of single days at random, which raise the sales, and visitors beside them."""
    rng = np.random.default_rng(0)
    promotion = rng.integers(0, 2, length)
    sales = 10 + effect * promotion + rng.normal(scale=0.3, size=length)
    times = pd.date_range("2024-01-01", periods=length, freq="D")
    columns = {"ds": times, "sales": sales, "visitors": rng.normal(size=length)}
    return pd.DataFrame({**columns, "promotion": promotion.astype(float)})


FEW = {"context_length": 8, "num_steps": 100, "eval_every": 100, "learning_rate": 3e-2}
FEW |= {"batch_size": 32, "validation_windows": 16, "shares": (), "progress": False}


def test_a_promotion_that_is_known_ahead_is_learned_and_forecast():
    """More is sold where a promotion is planned, which nothing that came before tells."""
    frame = table(1200)
    covariates = {"target": "sales", "known_covariates": "promotion"}
    tuned = start().fit(frame, H, mixing="all", **covariates, **FEW)
    assert tuned.tuning.tuned.mse < 0.3 * tuned.tuning.zero_shot.mse
    times = pd.date_range(frame["ds"].iloc[-1], periods=H + 1, freq="D")[1:]
    plans = [pd.DataFrame({"ds": times, "promotion": planned}) for planned in (0.0, 1.0)]
    options = {"target": "sales", "context_length": 8}
    said = [tuned.predict_df(frame, H, future_df=plan, **options) for plan in plans]
    raised = said[1]["predictions"] - said[0]["predictions"]
    assert 2 < raised.mean() < 4


def test_the_start_is_kept_as_it_was_read_where_nothing_is_gained():
    few = FEW | {"num_steps": 2, "learning_rate": 1e-12}
    out = start().fit(table(), H, known_covariates=["visitors", "promotion"], mixing="all", **few)
    assert out.tuning.kept == 0
    assert (out.config.mixing, out.config.known_variates) == ("none", 0)


def test_held_out_forecasts_read_what_is_known_ahead_and_score_the_targets():
    values = np.arange(4 * 60.0).reshape(4, 60)
    values[3, :48] = 7.0  # constant in the first contexts
    config = FinetuneConfig(
        horizon=2, past_variates=1, known_variates=2, validation_points=12, validation_windows=3
    )
    split = split_in_time(source_of(values[None], None, Columns()), config, 16, joint=True)
    held = validation_windows(split, config, joint=True)
    assert held.x.shape == (3, 4, 18)
    assert held.mask[..., :16].all()
    np.testing.assert_array_equal(
        held.mask[..., 16:].any(axis=-1), [[False, False, True, True]] * 3
    )
    np.testing.assert_array_equal(
        np.isfinite(held.targets).any(axis=-1), [[True, *[False] * 3]] * 3
    )
    np.testing.assert_array_equal(held.targets[:, 0], [[48, 49], [53, 54], [58, 59]])
    ahead = held.location[..., None] + held.scale[..., None] * held.x[..., 16:]
    np.testing.assert_allclose(ahead[:, 2], values[2, held.targets[:, 0].astype(int)], rtol=1e-5)
    # Where a context is constant, its deviation is that of the whole series.
    jump = (values[3, 48:50] - 7) / values[3].std()
    np.testing.assert_allclose(held.x[0, 3, 16:], jump, rtol=1e-5)
    assert held.scale[0, 3] == 0


def test_the_covariates_of_an_id_come_after_its_targets():
    """Those that are known last; categories that an id never has are without values."""
    short = table(60).assign(weather=["sun", "rain"] * 30)
    other = table(50).assign(weather="sun", sales=np.arange(50.0))
    frame = pd.concat([short.assign(unique_id="a"), other.assign(unique_id="b")])
    columns = Columns(
        target=["sales", "visitors"], past_covariates="weather", known_covariates="promotion"
    )
    source = source_of(frame, None, columns)
    assert source.tuning == {"past_variates": 2, "known_variates": 1}
    assert source.groups().tolist() == [0] * 5 + [1] * 5
    assert source.lengths.tolist() == [60] * 5 + [50] * 5
    np.testing.assert_array_equal(source[4], short["promotion"])
    np.testing.assert_array_equal(source[2] + source[3], np.ones(60))
    np.testing.assert_array_equal(source[7], np.ones(50))
    assert np.isnan(source[8]).all()
    assert source.name(8) == "covariate weather=rain of b sales"


def test_what_is_wrong_with_covariates_is_said():
    frame = table(80)
    known = {"known_covariates": "promotion", "target": "sales", "progress": False}
    with pytest.raises(ConfigError, match=r"family 'time_moe' learns nothing of them; leave them"):
        start(TUNABLE).fit(frame, H, **known)
    with pytest.raises(ConfigError, match="mixing is 'none': no variate would read them; give"):
        start().fit(frame, H, **known)
    with pytest.raises(DataError, match="the covariate 'promotion' is named twice"):
        start().fit(frame, H, past_covariates="promotion", mixing="all", **known)
    with pytest.raises(DataError, match="an item has 3, which leaves none to forecast"):
        start().fit(np.zeros((1, 3, 90)), H, known_variates=3, mixing="all", progress=False)
    with pytest.raises(DataError, match="an item has 40, more than the 32 that are read together"):
        start().fit(np.zeros((1, 40, 90)), H, known_variates=3, mixing="all", progress=False)
    with pytest.raises(DataError, match="known_covariates is 'promotion', but"):
        start().fit("no_table.npy", H, mixing="all", **known)


def test_the_command_knows_covariates(tmp_path, capsys):
    table(80).to_csv(tmp_path / "sales.csv", index=False)
    save_model(tmp_path / "start", APART, create_params(APART, 0))
    command = ["finetune", tmp_path / "sales.csv", "--checkpoint", tmp_path / "start", "--target"]
    command += ["sales", "--mixing", "all", "--horizon", 4, "--context-length", 16, "--steps", 2]
    command += ["--learning-rate", 1e-4, "--batch-size", 16, "--out", tmp_path / "out"]
    command += ["--known-covariate", "promotion", "--past-covariate", "visitors"]
    main([str(each) for each in command])
    said = capsys.readouterr().out
    assert "fine-tuning: 3 series" in said
    assert "read beside the targets of each item: 1 covariates known ahead, 1 others" in said
