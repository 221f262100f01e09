"""Fine-tuning: what is trained, what is kept, what a bad day does, and how a run goes on."""

import dataclasses
import functools
import os
import signal
import warnings
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_model import TUNABLE as MODEL

from timemoe_jax import ConfigError, DataError, Forecaster
from timemoe_jax.checkpoints.adapters import merge, read_adapter
from timemoe_jax.checkpoints.checksums import weights_digest
from timemoe_jax.checkpoints.load import load_model, save_model
from timemoe_jax.checkpoints.trees import flatten
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import CheckpointError
from timemoe_jax.models.base import create_params, family_of
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training.finetuning import loop, tune
from timemoe_jax.training.finetuning.config import FinetuneConfig
from timemoe_jax.training.finetuning.loop import History
from timemoe_jax.training.finetuning.search import lower_rate, search_rate
from timemoe_jax.training.finetuning.start import Start
from timemoe_jax.training.finetuning.step import compile_update, rate_at
from timemoe_jax.training.finetuning.trainable import assemble, rules_of, split
from timemoe_jax.training.finetuning.tune import fine_tune
from timemoe_jax.training.finetuning.validation import (
    Errors,
    Validator,
    changes_of,
    doubt_of,
    standard_error,
)
from timemoe_jax.training.finetuning.windows import split_in_time, validation_windows
from timemoe_jax.training.step import TrainState

HORIZON = 4
CONFIG = FinetuneConfig(
    horizon=HORIZON, learning_rate=3e-2, num_steps=20, batch_size=8, validation_windows=16
)


@functools.cache
def start():
    params = create_params(MODEL, 0)
    return Start(MODEL, params, weights_digest(params), "")


LORA = dataclasses.replace(
    CONFIG, mode="lora", lora_rank=2, lora_targets=("attention", "experts", "heads")
)


def waves(count=3, length=160, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(length)
    phases = rng.uniform(0, 6, (count, 1))
    return 5 + np.sin(t / 2 + phases) + 0.1 * rng.normal(size=(count, length))


def source(values):
    return ArraySource([np.asarray(v, float) for v in values])


# The program of an update and that of a validation do not depend on the data, and are compiled
# once for all tests of one config, whatever its learning rate.
_compiled, _compiled_decodes = {}, {}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    free = {"learning_rate": 0.0, "num_steps": 1, "patience": 1, "search_rates": (1.0,)}
    free |= {"search_steps": 1, "eval_every": 1, "validation_windows": 1}
    free |= {"validation_points": 0, "max_nonfinite_in_row": 1}

    class CompiledOnce(Validator):
        def __init__(self, model, config, windows, mesh, start):
            super().__init__(model, config, windows, mesh, start)
            key = (dataclasses.replace(config, **free), model, mesh)
            self._decode = _compiled_decodes.setdefault(key, self._decode)
            self._decode_start = self._decode

    def compile_once(run, config, parts, mesh):
        key = (dataclasses.replace(config, **free), run.data, mesh)
        if key not in _compiled:
            _compiled[key] = compile_update(run, config, parts, mesh)
        held = _compiled[key]
        places = jax.tree.map(lambda a: a.sharding, held.frozen)
        return held._replace(
            frozen=jax.device_put(parts.frozen, places),
            trained=jax.device_put(parts.trained, held.shardings.params),
        )

    monkeypatch.setattr(tune, "compile_update", compile_once)
    monkeypatch.setattr(tune, "Validator", CompiledOnce)


def tuned(values, config=CONFIG, **options):
    return fine_tune(start(), source(values), config, quiet=True, **options)


@pytest.fixture(scope="module")
def once():
    """One run of all defaults but the size."""
    return fine_tune(start(), source(waves()), CONFIG, quiet=True)


def test_it_learns_and_says_so(once):
    report = once.report
    assert report.tuned.mse < 0.7 * report.zero_shot.mse
    assert report.kept > 0
    assert [step for step, _ in report.history][:3] == [0, 4, 8]
    # The bias of the router stays, and the head of a single point is not read.
    assert report.plan.trained == report.plan.parameters - 4 - MODEL.hidden_size
    assert "zero-shot: MSE" in str(report)
    assert "3 series, 384 points" in str(report.plan)
    assert report.as_dict()["plan"]["windows"] == report.plan.windows


def test_the_start_is_intact_and_the_result_another(once):
    before = flatten(create_params(MODEL, 0))
    for name, value in flatten(start().params).items():
        np.testing.assert_array_equal(value, before[name])
    after = flatten(once.params)
    np.testing.assert_array_equal(
        after["blocks.ffn.selection_bias"], before["blocks.ffn.selection_bias"]
    )
    assert not np.array_equal(
        after["blocks.attention.query.kernel"], before["blocks.attention.query.kernel"]
    )


def test_the_report_is_of_the_forecasts_themselves(once):
    """The errors are those of `Forecaster.forecast` from the same origins."""
    values = waves()
    data = split_in_time(source(values), CONFIG, 32, False)
    held = validation_windows(data, CONFIG, False)
    assert len(held) == 15  # five of each series
    for params, errors in (
        (start().params, once.report.zero_shot),
        (once.params, once.report.tuned),
    ):
        forecaster = Forecaster(MODEL, params, disk_cache=False)
        found = []
        for i, series in enumerate(values):
            head = int(data.heads[i])
            for origin in np.linspace(head, 160 - HORIZON, 5).round().astype(int):
                point = forecaster.forecast(series[:origin], HORIZON).point[0]
                unit = series.std()
                found.append((point - series[origin : origin + HORIZON]) / unit)
        np.testing.assert_allclose(np.mean(np.square(found)), errors.mse, rtol=1e-4)
        np.testing.assert_allclose(np.mean(np.abs(found)), errors.mae, rtol=1e-4)
    begins = 160 - HORIZON - np.linspace(160 - HORIZON, 128, 5).round().astype(int)
    np.testing.assert_array_equal(np.sort(held.period[held.series == 0]), begins // HORIZON)
    # Nothing that is held out is trained on.
    assert data.windows.index.locate(np.arange(len(data.windows)))[1].max() + 32 + HORIZON == 128


def test_the_best_update_is_that_of_the_most_gain_and_ends_the_run_in_time():
    def errors(mse, change):
        return Errors(mse, 1.0, None, change, 0.01)

    history = History([(0, Errors(1.0, 1.0)), (1, errors(1.1, -0.1)), (2, errors(0.9, -0.05))], 2)
    assert history.best == history.gaining == 1
    assert history.ended == ""
    history.every.append((3, errors(0.9, -0.02)))
    assert history.ended == "no better"
    history.every.append((4, errors(float("nan"), -0.5)))
    assert history.best == 1
    assert history.ended == "diverged"


def test_only_what_is_safely_better_is_kept():
    start = Errors(1.0, 1.0)
    assert Errors(0.9, 0.9, None, -0.1, 0.05).safely_better_than(start)
    assert not Errors(0.9, 0.9, None, -0.1, 0.06).safely_better_than(start)  # it may do harm
    assert Errors(0.999, 0.999, None, -0.001, 0.0029).safely_better_than(start)  # but hardly any
    assert not Errors(0.999, 0.999, None, 0.001, 0.0015).safely_better_than(start)
    assert not Errors(1.01, 0.9, None, -0.1, 0.05).safely_better_than(start)
    assert not Errors(0.9, float("nan"), None, -0.1, 0.05).safely_better_than(start)


def test_forecasts_count_the_same_but_for_those_that_hardly_err():
    """By hand: the median error of the start is 2."""
    start_errors = np.array([2.0, 4, 0.01, 2, 1])
    errors = np.array([1.0, 8, 0.03, 2, np.nan])
    found = changes_of(errors, start_errors)
    np.testing.assert_allclose(found, [-1 / 2, 4 / 6, 0.02 / 2, 0, 2], rtol=1e-12)


def test_what_few_times_say_of_others_is_in_doubt():
    """By hand: a standard error of 1 and a mean square of 8, at 8 times and at one."""
    changes, series = np.array([-2.0, -1, -3, 1, -5]), np.arange(5)
    assert standard_error(changes, series) == pytest.approx(1)
    assert doubt_of(changes, series, series * 0, 8.0) == pytest.approx(np.sqrt(1 + 0.1))
    assert doubt_of(changes, series, series * 0, 1.0) == pytest.approx(np.sqrt(1 + 0.8))
    assert doubt_of(changes, series, series, 8.0) == pytest.approx(np.sqrt(1 + 1))  # as seen


def test_forecasts_that_have_something_in_common_leave_more_doubt():
    """By hand: sums of deviations of -4, -2, 0, 2 and 4 in five pairs."""
    values = np.repeat(np.arange(1.0, 6.0), 2)
    alone, pairs = np.arange(10), np.arange(10) // 2
    assert standard_error(values, alone) == pytest.approx(values.std(ddof=1) / np.sqrt(10))
    assert standard_error(values, pairs) == pytest.approx(np.sqrt(40 * 5 / 4) / 10)
    assert standard_error(values, 7 * pairs[::-1]) == pytest.approx(np.sqrt(40 * 5 / 4) / 10)
    assert standard_error(values, alone // 4) == 0  # of three groups


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_part_of_the_way_is_kept_where_the_whole_of_it_is_worse(mode):
    """Errors that are least at a half of the way, and at the end are those of the start."""
    config = dataclasses.replace(LORA if mode == "lora" else CONFIG, num_steps=1, eval_every=1)
    base, weights = start(), []

    def validate(self, trained, frozen):
        flat = flatten(assemble(trained, frozen, config))
        weights.append(np.concatenate([np.ravel(flat[name]) for name in sorted(flat)]))
        way, whole = weights[-1] - weights[0], weights[min(1, len(weights) - 1)] - weights[0]
        share = way @ whole / max(whole @ whole, 1e-30)
        loss = 1 + (share - 0.5) ** 2
        return Errors(loss, loss, None, loss - 1.25 - 0.01 * (share > 0), 0.0)

    with mock.patch.object(Validator, "__call__", validate):
        out = tuned(waves(), config)
    assert (out.report.kept, out.report.share) == (1, 0.5)
    np.testing.assert_allclose(weights[3], (weights[0] + weights[1]) / 2, rtol=0, atol=1e-6)
    now = flatten(out.params)
    assert now.keys() == flatten(base.params).keys()
    kept = np.concatenate([np.ravel(now[name]) for name in sorted(now)])
    np.testing.assert_allclose(kept, weights[3], rtol=0, atol=1e-6)
    assert "50% of the way to update 1" in str(out.report)


def kept_share(changes, doubts):
    """What is kept of a single update, by the validations of it and of the parts of the way."""
    found = iter([(0.0, 0.0), *zip(changes, doubts, strict=True)])
    shares = (0.75, 0.5, 0.25)

    def errors(self, trained, frozen):
        change, doubt = next(found)
        return Errors(1 + change, 1 + change, None, change, doubt)

    config = dataclasses.replace(CONFIG, num_steps=1, eval_every=1, shares=shares)
    with mock.patch.object(Validator, "__call__", errors):
        return tuned(waves(), config).report.share


def test_of_what_gains_as_much_but_for_doubt_the_nearest_to_the_start_is_kept():
    gains = (-0.10, -0.10, -0.20, -0.15)  # of the update, three quarters, a half, a quarter of it
    assert kept_share(gains, (0.04,) * 4) == 0.5
    assert kept_share(gains, (0.04, 0.04, 0.06, 0.04)) == 0.25


def test_a_part_of_the_way_to_an_update_that_loses_may_gain():
    assert kept_share((0.02, 0.01, -0.01, -0.02), (0.01,) * 4) == 0.25
    assert kept_share((0.04, 0.03, 0.02, 0.01), (0.01,) * 4) == 0


def test_of_what_may_gain_by_chance_a_part_without_harm_is_kept():
    assert kept_share((-0.04, -0.03, -0.02, -0.01), (0.0275, 0.02, 0.013, 0.0065)) == 0.25
    assert kept_share((-0.04, -0.03, -0.02, -0.01), (0.023, 0.017, 0.0115, 0.0055)) == 0.75
    assert kept_share((-0.04, -0.03, -0.02, -0.01), (0.05, 0.05, 0.05, 0.05)) == 0


def test_a_learning_rate_of_ten_ends_with_a_message_and_the_start():
    with pytest.warns(
        UserWarning, match=r"diverged.*the start is kept: give a lower learning_rate"
    ):
        out = tuned(waves(), dataclasses.replace(CONFIG, learning_rate=10.0))
    assert out.report.kept == 0
    assert out.report.ended == "diverged"
    assert out.params is start().params


def test_a_validation_that_is_no_number_keeps_the_start():
    nan = Errors(float("nan"), float("nan"))
    real = Validator.__call__
    calls = []

    def validate(self, trained, frozen):
        calls.append(1)
        return real(self, trained, frozen) if len(calls) == 1 else nan

    with mock.patch.object(Validator, "__call__", validate), pytest.warns(UserWarning, match="div"):
        out = tuned(waves())
    assert (out.report.kept, out.report.updates) == (0, 4)


def test_updates_that_are_not_finite_end_the_run_with_the_start():
    """As NaN gradients do."""
    config = dataclasses.replace(CONFIG, max_nonfinite_in_row=2, eval_every=10)
    broken = mock.patch.object(tune._Session, "_begin", _begin_with_nan)
    with broken, pytest.warns(UserWarning, match="diverged"):
        out = tuned(waves(), config)
    assert out.report.kept == 0


_real_begin = tune._Session._begin


def _begin_with_nan(self, *args):
    state, best, history = _real_begin(self, *args)
    nan = jax.tree.map(lambda a: a * np.nan, state.params)
    return state._replace(params=nan), best, history


def test_constant_and_empty_columns_are_left_out_and_counted():
    values = waves(4)
    values[1] = 7.0
    values[2] = np.nan
    values[3, 40:60] = np.nan
    out = tuned(values)
    assert out.report.plan.series == 2
    assert out.report.plan.skipped == {"without two values": 1, "constant": 1}
    assert out.report.tuned.mse < out.report.zero_shot.mse
    with pytest.raises(DataError, match="no series can be learned from: 2 constant"):
        tuned(np.ones((2, 100)))


def test_one_long_and_many_short_series_have_their_share():
    values = [waves(1, 1000)[0], *waves(30, 60, seed=1)]
    data = split_in_time(source(values), CONFIG, 32, False)
    sequences, _ = data.windows.index.locate(np.arange(len(data.windows)))
    share = np.mean(sequences == 0)
    assert 0.1 < share < 0.5  # 43% of the windows are of the long one, by their root 11%
    out = tuned(values)
    assert out.report.tuned.mse <= out.report.zero_shot.mse


def test_sixty_points_in_all_are_enough_and_fewer_are_refused():
    values = waves(1, 60)
    out = tuned(values)
    assert out.report.plan.windows >= 20
    assert not out.report.tuned.worse_than(out.report.zero_shot)
    with pytest.raises(DataError, match=r"there are \d+ windows .* fewer than 20"):
        tuned(values[:, :30])
    with pytest.raises(DataError, match="contexts of 16 points are shorter than the horizon of 20"):
        tuned(values, dataclasses.replace(CONFIG, horizon=20, context_length=16))
    with pytest.raises(DataError, match="the longest series has 20 points"):
        tuned(values[:, :20], dataclasses.replace(CONFIG, horizon=10))


def test_what_the_model_has_learned_already_stays_as_good(once):
    """Data identical to those that it was trained on."""
    again = Start(MODEL, once.params, weights_digest(once.params), "")
    out = fine_tune(again, source(waves()), CONFIG, quiet=True)
    assert not out.report.tuned.worse_than(out.report.zero_shot)
    assert out.report.zero_shot.values == once.report.tuned.values


@pytest.mark.parametrize("mode", ["heads", "no_router", "lora"])
def test_only_what_the_mode_says_is_trained(mode):
    config = dataclasses.replace(LORA if mode == "lora" else CONFIG, mode=mode, num_steps=4)
    parts = split(start().params, MODEL, config)
    names = set(flatten(parts.trained))
    out = tuned(waves(), config)
    assert out.report.plan.trained == parts.num_trained == out.report.plan.trained
    before, after = flatten(start().params), flatten(out.params)
    moved = {n for n in before if not np.array_equal(np.asarray(before[n]), np.asarray(after[n]))}
    if mode == "heads":
        assert names == {"heads.4.kernel"}  # a forecast of 4 points does not read that of 1
        assert moved <= names
    elif mode == "no_router":
        assert not [n for n in moved if "router" in n or "selection_bias" in n]
        assert len(names) == len(before) - 3
    else:
        shapes = {n: v.shape for n, v in flatten(parts.trained).items()}
        assert shapes["blocks.ffn.experts.down.a"] == (1, 4, 12, 2)  # stacked as the kernel is
        assert shapes["blocks.ffn.experts.down.b"] == (1, 4, 2, 16)
        assert not [n for n in names if "shared" in n or "router" in n or "norm" in n]
        assert moved <= {n.removesuffix(".a").removesuffix(".b") for n in names}
    state = compile_state(config, parts)
    moments = sum(a.size for a in jax.tree.leaves(state.opt_state) if a.ndim)
    assert moments <= 2 * parts.num_trained


def compile_state(config, parts):
    held = next(u for (c, *_), u in _compiled.items() if c.mode == config.mode)
    return held.initial()


def test_an_adapter_is_saved_by_itself_and_belongs_to_one_model(tmp_path):
    base = tmp_path / "base"
    save_model(base, MODEL, start().params)
    config = {"mode": "lora", "lora_rank": 2, "num_steps": 20, "batch_size": 8}
    config |= {"validation_windows": 16, "learning_rate": 3e-2, "progress": False}
    config |= {"lora_targets": ("attention", "experts", "heads")}
    forecaster = Forecaster.from_pretrained(base, disk_cache=False)
    out = forecaster.fit(waves(), HORIZON, **config)
    assert out.tuning.kept > 0
    out.save(tmp_path / "adapter")
    files = {f.name for f in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter.json", "adapter.safetensors"}
    expected = out.forecast(waves(), HORIZON).point
    loaded = Forecaster.from_pretrained(tmp_path / "adapter", disk_cache=False)
    np.testing.assert_array_equal(loaded.forecast(waves(), HORIZON).point, expected)
    assert loaded.digest == out.digest != forecaster.digest
    onto = forecaster.adapted(tmp_path / "adapter")
    np.testing.assert_array_equal(onto.forecast(waves(), HORIZON).point, expected)
    # Merged, it is a plain model that computes the same.
    out.merge(tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    adapter = read_adapter(tmp_path / "adapter")
    factors = nnx.from_flat_state(
        {tuple(n.split(".")): nnx.Param(v) for n, v in adapter.factors.items()}
    )
    lora = FinetuneConfig(horizon=HORIZON, mode="lora", lora_rank=2)
    frozen = jax.tree.map(jax.numpy.asarray, start().params)
    computed = flatten(assemble(factors, frozen, lora))
    for name, value in flatten(merged.params).items():
        np.testing.assert_allclose(value, computed[name], atol=1e-5)
    other = Forecaster(MODEL, create_params(MODEL, 1), disk_cache=False)
    with pytest.raises(CheckpointError, match=r"the adapter belongs to .* but this model has"):
        other.adapted(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        read_adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="the model lacks"):
        merge(nnx.State({}), adapter)


def test_dropout_leaves_out_inputs_and_keeps_the_mean():
    config = FinetuneConfig(horizon=1, mode="lora", lora_dropout=0.5, lora_targets=("attention",))
    parts = split(start().params, MODEL, config)
    ones = jax.tree.map(lambda a: a * 0 + 1, parts.trained)
    whole = flatten(assemble(ones, parts.frozen, config))
    some = [flatten(assemble(ones, parts.frozen, config, jax.random.key(i))) for i in range(40)]
    name = "blocks.attention.query.kernel"
    base = np.asarray(flatten(parts.frozen)[name])
    steps = np.stack([np.asarray(each[name]) - base for each in some])
    # A row of a kernel is an input: it is wholly left out, or counts twice.
    np.testing.assert_allclose(np.unique(steps.round(3)), [0.0, 32.0])
    np.testing.assert_allclose(steps.mean(0), np.asarray(whole[name]) - base, atol=8)


def test_factors_are_split_as_their_kernels_are():
    family = family_of(MODEL)
    spec = functools.partial(partitioning.spec_of, rules=rules_of(family))
    assert spec("blocks.ffn.experts.up.a") == jax.P(None, "expert", "fsdp", None)
    assert spec("blocks.ffn.experts.up.b") == jax.P(None, "expert", None, "tensor")
    assert spec("opt.mu.blocks.attention.out.kernel.b") == jax.P(None, None, "fsdp")
    assert spec("blocks.attention.key.kernel") == jax.P(None, "fsdp", "tensor")


def test_a_mesh_changes_nothing_but_the_rounding():
    config = dataclasses.replace(LORA, num_steps=4, eval_every=4)
    mesh = partitioning.make_mesh(MeshConfig(fsdp=2, expert=2))
    alone, spread = tuned(waves(), config), tuned(waves(), config, mesh=mesh)
    np.testing.assert_allclose(
        [e.mse for _, e in spread.report.history],
        [e.mse for _, e in alone.report.history],
        rtol=1e-4,
    )


def test_the_search_takes_the_largest_rate_that_does_no_harm():
    config = dataclasses.replace(CONFIG, search_rates=(1e-4, 1e-3, 1e-2, 1.0), search_steps=2)
    seen = []

    class Fake:
        def initial(self):
            return TrainState(0, [], (), 0)

        def __call__(self, state, batch, rate):
            state.params.append(rate)
            return state, {}

    def score(limit):
        return lambda state: 0.01 if max(state.params) < limit else float("inf")

    def search(limit):
        return search_rate(
            config, Fake(), lambda: range(99), score(limit), lambda *a: seen.append(a)
        )

    rate, scores = search(5e-3)
    assert rate == 1e-3
    assert scores == {1.0: float("inf"), 1e-2: float("inf"), 1e-3: 0.01}
    assert seen == list(scores.items())
    assert search(0)[0] == 1e-4  # all do harm: the run itself will tell
    assert lower_rate(config, 1e-2) == 1e-3
    assert lower_rate(config, 1e-4) is None


def test_the_rate_rises_and_falls():
    rates = [rate_at(i, 20, 1.0, 0.1) for i in range(20)]
    np.testing.assert_allclose(rates[:3], [1 / 3, 2 / 3, 1.0])
    assert (np.diff(rates[2:]) < 0).all()
    assert rates[-1] < 0.02


def test_the_rate_that_is_found_is_used(tmp_path):
    config = dataclasses.replace(
        CONFIG, learning_rate=0.0, search_rates=(1e-5, 3e-2), search_steps=4, num_steps=4
    )
    out = tuned(waves(), config, workdir=tmp_path)
    assert out.report.learning_rate == 3e-2
    assert set(out.report.search) == {3e-2}


def test_a_rate_that_gains_nothing_is_followed_by_a_lower_one(tmp_path):
    """A large one that does no harm in a trial, but in the run; it resumes in either."""
    config = dataclasses.replace(
        CONFIG, learning_rate=0.0, search_rates=(1e-2, 10.0), search_steps=1, num_steps=8, shares=()
    )
    with mock.patch.object(tune, "search_rate", return_value=(10.0, {10.0: 0.0})):
        with pytest.warns(UserWarning, match="diverged"):
            out = tuned(waves(), config, workdir=tmp_path)
        with pytest.warns(UserWarning, match="diverged"):
            again = tuned(waves(), config, workdir=tmp_path)
    assert out.report.learning_rate == 1e-2
    assert out.report.kept > 0
    assert (tmp_path / tune.LOWER / "metrics.jsonl").exists()
    assert again.report.history == out.report.history
    assert load_model(tmp_path).step == out.report.kept


class Killed(BaseException):
    pass


def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path, once):
    """Also after SIGTERM, which saves and ends in order."""
    whole = tuned(waves(), workdir=tmp_path / "whole")
    np.testing.assert_equal(dict(whole.report.history), dict(once.report.history))
    real = loop.FinetuneLoop._run_update

    def killed(self, step, state, batch):
        if step == 7:
            raise Killed
        return real(self, step, state, batch)

    def stopped(self, step, state, batch):
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, state, batch)

    with mock.patch.object(loop.FinetuneLoop, "_run_update", killed), pytest.raises(Killed):
        tuned(waves(), workdir=tmp_path / "cut")
    with mock.patch.object(loop.FinetuneLoop, "_run_update", stopped):
        part = tuned(waves(), workdir=tmp_path / "cut")
    assert (part.report.ended, part.report.updates) == ("SIGTERM", 13)
    resumed = tuned(waves(), workdir=tmp_path / "cut")
    assert resumed.report.history == whole.report.history
    for name, value in flatten(whole.params).items():
        np.testing.assert_array_equal(value, flatten(resumed.params)[name])
    assert load_model(tmp_path / "cut").step == whole.report.kept
    assert load_model(tmp_path / "cut").digest == load_model(tmp_path / "whole").digest
    with pytest.raises(ConfigError, match=r"holds another run, of which finetune.seed differ"):
        tuned(waves(), dataclasses.replace(CONFIG, seed=1), workdir=tmp_path / "cut")
    with pytest.raises(ConfigError, match=r"data.checksum differ"):
        tuned(waves(seed=5), workdir=tmp_path / "cut")


def test_what_is_wrong_is_said():
    with pytest.raises(ConfigError, match="mixing is 'graph', but a model of the family"):
        tuned(waves(), dataclasses.replace(CONFIG, mixing="graph"))
    with pytest.raises(ConfigError, match="mixing is 'all', but factors"):
        dataclasses.replace(LORA, mixing="all")
    for fields, message in (
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"mode": "all"}, "mode must be one of full, heads, no_router, lora"),
        ({"loss": "l1"}, "loss must be one of auto, huber, mse, mae, pinball"),
        ({"lora_targets": ("norms",)}, "lora_targets names 'norms'"),
        ({"search_rates": ()}, "search_rates must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(CONFIG, **fields)
    with pytest.raises(ConfigError, match=r"pinball.*no quantile heads"):
        tuned(waves(), dataclasses.replace(CONFIG, loss="pinball"))
    forecaster = Forecaster(MODEL, start().params, disk_cache=False)
    with pytest.raises(DataError, match="learning_rate must be positive or 'auto', but is 'best'"):
        forecaster.fit(waves(), HORIZON, learning_rate="best")
    with pytest.raises(
        DataError, match=r"fit\(\) has no argument 'lora_rnk'; did you mean 'lora_rank'"
    ):
        forecaster.fit(waves(), HORIZON, lora_rnk=4)


def test_warnings_are_errors_of_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned(waves(), dataclasses.replace(CONFIG, num_steps=2))


def test_updates_have_as_many_points_where_contexts_are_short():
    config = FinetuneConfig(horizon=8)
    assert [config.batch_of(points) for points in (4096, 1024, 400, 96)] == [16, 16, 40, 64]
    assert config.batch_of(400, parts=16) == 48
    assert dataclasses.replace(config, gradient_accumulation=3).batch_of(96, parts=2) == 66
    assert dataclasses.replace(config, batch_size=8).batch_of(96) == 8
