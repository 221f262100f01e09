"""Chaotic systems: that they are, and how long forecasts of them are valid."""

import importlib.util
import sys

import numpy as np
import pytest
from evaluation_tasks import KnownModel

from timemoe_jax.data.generators.families.chaos import integrate, lorenz, rossler
from timemoe_jax.errors import ConfigError
from timemoe_jax.evaluation import records
from timemoe_jax.evaluation.leaderboards import chaos_run, chaos_systems, scoring
from timemoe_jax.evaluation.leaderboards.chaos_systems import EXPONENTS, own_systems
from timemoe_jax.evaluation.leaderboards.config import ChaosConfig
from timemoe_jax.forecasting.scoring.baselines import context_parroting


def test_the_systems_are_of_tens_of_points_a_turn():
    """By the strongest period of the spectrum, or for Lorenz, of no sharp one, by its maxima."""
    series = {name: each.series for name, each in own_systems(6, 1024, seed=1).items()}
    assert list(series) == ["Lorenz", "Roessler", "Mackey-Glass"]
    assert {values.shape for values in series.values()} == {(6, 1024)}
    for name, values in series.items():
        assert np.isfinite(values).all()
        inner = values[:, 1:-1]
        peaks = ((inner > values[:, :-2]) & (inner >= values[:, 2:])).sum(axis=1)
        spectrum = np.abs(np.fft.rfft(values - values.mean(axis=1, keepdims=True)))
        periods = 1024 / spectrum.argmax(axis=1)
        turn = 1024 / peaks if name == "Lorenz" else periods
        assert ((turn > 15) & (turn < 50)).all(), (name, turn)


def test_the_systems_begin_apart_and_part():
    """No two series are each other's copy, and a seed gives the same again."""
    one, again, other = (own_systems(4, 300, seed) for seed in (0, 0, 1))
    for name, system in one.items():
        values = system.series
        np.testing.assert_array_equal(values, again[name].series)
        assert not np.array_equal(values, other[name].series)
        spread = values.std(axis=1).min()
        for i in range(4):
            for j in range(i):
                assert np.abs(values[i] - values[j]).max() > spread


def test_the_systems_are_chaotic():
    """What parroting copies from a long context is right for a while and wrong in the end, while
    it is right throughout for a cycle of the same length."""

    def validity(values):
        forecast = context_parroting(values[:, :2000], 700, 10)
        off = np.abs(forecast - values[:, 2000:]) > 0.4 * values[:, :2000].std(axis=1)[:, None]
        return np.where(off.any(axis=1), off.argmax(axis=1), 700)

    for name, system in own_systems(20, 2000 + 700, seed=0).items():
        assert 15 < np.median(validity(system.series)) < 700, name
    assert validity(np.sin(2 * np.pi * np.arange(2700) / 30)[None]) == [700]


def test_errors_grow_by_the_exponents():
    """The logarithm of a tiny difference rises by the largest Lyapunov exponent per time."""
    rng, count = np.random.default_rng(0), 48
    for name, flow, step, length in (
        ("Lorenz", lorenz(*map(np.full, [count] * 3, (10.0, 28.0, 8 / 3))), 0.025, 600),
        ("Roessler", rossler(*map(np.full, [count] * 3, (0.2, 0.2, 5.7))), 0.2, 1000),
    ):
        steps = np.full(count, step)
        state = integrate(flow, rng.uniform(0.5, 3.0, (3, count)), steps, 1, 3000)[-1]
        moved = state + 1e-9 * rng.normal(size=state.shape)
        paths = [integrate(flow, each, steps, length) for each in (state, moved)]
        growth = np.log(np.linalg.norm(paths[0] - paths[1], axis=1)).mean(axis=1)[200:]
        slope = np.polyfit(step * np.arange(len(growth)), growth, 1)[0]
        assert slope == pytest.approx(EXPONENTS[name], rel=0.15), name


def test_points_of_a_turn():
    """Twice as many points a turn are half as far apart."""
    for name, system in own_systems(2, 50, 0, points_per_turn=60).items():
        assert system.exponent == pytest.approx(own_systems(2, 5, 0)[name].exponent / 2), name


# The scores


def test_scores_by_hand():
    target = np.array([[1.0, 1, 1, 1], [2.0, 2, 2, 2], [0.0, 0, 0, 0]])
    forecast = np.array([[1.0, 1, 3, 1], [2.0, 2, 2, 2], [0.0, 1, 0, 0]])
    smape = chaos_run.smape_so_far(target, forecast)
    # 200 * 2 / 4 at the third step of the first, 200 at the second of the last; 0 where both are 0.
    np.testing.assert_allclose(smape[0], [0, 0, 100 / 3, 25])
    np.testing.assert_allclose(smape[2], [0, 100, 200 / 3, 50])
    np.testing.assert_array_equal(chaos_run.valid_steps(smape), [2, 4, 1])


def test_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring.Forecaster, "from_pretrained", lambda *_: KnownModel())
    config = ChaosConfig(
        checkpoint="nano",
        systems=("Roessler", "Lorenz", "Roessler"),
        starts=3,
        context=64,
        horizon=20,
        per_window=True,
        output_dir=str(tmp_path),
    )
    manifest = chaos_run.run(config)
    cells = {(cell["task"], cell["method"]): cell for cell in manifest["results"]}
    methods = ["nano", "naive", "parroting"]
    assert list(cells) == [(task, method) for task in ("Roessler", "Lorenz") for method in methods]
    system = own_systems(3, 84, 0)["Lorenz"]
    last = np.repeat(system.series[:, 63:64], 20, axis=1)
    smape = chaos_run.smape_so_far(system.series[:, 64:], last)
    cell = cells["Lorenz", "naive"]
    assert cell["smape"] == pytest.approx(smape[:, -1].mean())
    steps = chaos_run.valid_steps(smape)
    assert cell["valid_time"] == pytest.approx(steps.mean() * 0.9056 * 0.025)
    error = steps.std(ddof=1) / np.sqrt(3) * 0.9056 * 0.025
    assert cell["valid_time_standard_error"] == pytest.approx(error)
    assert cells["Lorenz", "nano"]["exposure"] == "never seen"
    assert "exposure to these systems: never seen" in (tmp_path / "results.md").read_text("utf-8")
    assert len(records.read_windows(tmp_path)) == 2 * 3 * 3


# dysts


def test_systems_that_there_are_not(monkeypatch):
    assert chaos_systems.check_systems(["Lorenz", "Lorenz"]) == ["Lorenz"]
    monkeypatch.setitem(sys.modules, "dysts", None)
    monkeypatch.setitem(sys.modules, "dysts.systems", None)
    with pytest.raises(chaos_systems.MissingDystsError, match=r"pip install 'dysts>=0\.96'"):
        chaos_systems.check_systems(["Aizawa"])


@pytest.mark.skipif(not importlib.util.find_spec("dysts"), reason="dysts is not installed")
def test_systems_of_dysts():
    names = chaos_systems.check_systems(["dysts", "Lorenz"])
    assert len(names) == 136 - ("Lorenz" in names[:-1])
    with pytest.raises(ConfigError, match="there is no Lorentz; the library has Lorenz, Roessler"):
        chaos_systems.check_systems(["Lorentz"])
    done = []
    found = chaos_systems.trajectories(
        ["Aizawa", "Lorenz"], 4, 90, 0, 30, processes=1, done=lambda: done.append(1)
    )
    assert [system.name for system in found] == ["Aizawa", "Lorenz"]
    assert len(done) == 2
    aizawa = found[0]
    assert aizawa.series.shape == (4, 90)
    assert np.isfinite(aizawa.series).all()
    assert (aizawa.series.std(axis=1) > 0.1).all()
    again = chaos_systems.dysts_system("Aizawa", 4, 90, 0)
    np.testing.assert_array_equal(again.series, aizawa.series)
    assert 0.005 < aizawa.exponent < 0.05  # 0.13 a time, of which a turn of 30 points takes 2.6
