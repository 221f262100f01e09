"""Scores by hand, and windows that are the same for every model."""

import dataclasses
import json

import numpy as np
import pytest
from fake_forecaster import FakeForecaster
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY

from timemoe_jax.data.config import DataConfig
from timemoe_jax.data.formats.open import SourcePart
from timemoe_jax.data.formats.time300b.folder import write_time_moe_folder
from timemoe_jax.data.series_source import ArraySource
from timemoe_jax.errors import DataError
from timemoe_jax.evaluation.held_out import scoring as held_out
from timemoe_jax.evaluation.held_out.scoring import score
from timemoe_jax.evaluation.held_out.windows import choose_sources, choose_windows, open_held_out


class _Fake(FakeForecaster):
    """The last value plus the steps since then, by a model with heads of 1 and 4."""

    def __init__(self, forecast_plan="fitting"):
        super().__init__()
        self.config = dataclasses.replace(TINY, forecast_plan=forecast_plan)

    def usable_context(self, context_length, horizon):
        return context_length


def _chosen(series, context, horizons, max_windows=100, parts=None):
    source = ArraySource([np.asarray(values, float) for values in series])
    parts = parts or [SourcePart("d", "s", 0, len(series))]
    return choose_windows(source, parts, context, horizons, max_windows)


def test_every_window_of_a_few_short_series():
    chosen = _chosen([np.arange(8), np.arange(5), np.arange(4)], 3, (2, 4))
    (windows,) = chosen.windows
    assert windows.sequence.tolist() == [0, 0, 1]
    assert windows.start.tolist() == [0, 1, 0]
    assert windows.room.tolist() == [4, 4, 2]
    assert (windows.num_series, windows.too_short) == (3, 1)


def test_few_of_many_windows_are_evenly_spaced():
    (windows,) = _chosen([np.arange(105), np.arange(205)], 3, (3,), max_windows=3).windows
    # 100 and 200 starts: the middles of thirds of 300 are 50, 150 and 250.
    assert windows.sequence.tolist() == [0, 1, 1]
    assert windows.start.tolist() == [50, 50, 150]


def test_long_and_short_series_share_the_windows():
    (windows,) = _chosen([np.arange(1000), np.arange(14), np.arange(15)], 10, (4, 20), 40).windows
    assert np.bincount(windows.sequence).tolist() == [37, 1, 2]


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    context=st.integers(1, 12),
    horizons=st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True),
    most=st.integers(1, 50),
)
def test_windows_lie_within_their_series(lengths, context, horizons, most):
    horizons = tuple(sorted(horizons))
    try:
        (windows,) = _chosen([np.arange(n) for n in lengths], context, horizons, most).windows
    except DataError:
        assert max(lengths) < context + horizons[0]
        return
    lengths = np.array(lengths)
    ends = windows.start + context + windows.room
    assert (windows.start >= 0).all()
    assert (ends <= lengths[windows.sequence]).all()
    possible = sum(
        n - context - max(h for h in horizons if n >= context + h) + 1
        for n in lengths.tolist()
        if n >= context + horizons[0]
    )
    assert len(windows.start) == min(possible, most)
    assert len({*zip(windows.sequence, windows.start, strict=True)}) == len(windows.start)
    assert windows.too_short == np.count_nonzero(lengths < context + horizons[0])


def test_scores_by_hand():
    """Context 0 2 0 2: mean 1, deviation 1, its last value 1; what follows is -1 and 2."""
    found = score(None, _chosen([[0, 2, 0, 2, 0, 3]], 4, (1, 2)))
    (source,) = found.sources
    assert source.windows == {1: 1, 2: 1}
    assert found.average(2, "naive") == held_out.Errors((4 + 1) / 2, (2 + 1) / 2)
    assert found.average(2, "context_mean") == held_out.Errors((1 + 4) / 2, (1 + 2) / 2)
    assert found.relative_mse(2, "naive") == pytest.approx(1.0)
    assert found.methods == ("naive", "context_mean")


def test_what_lies_far_off_is_clipped_and_counted():
    found = score(None, _chosen([[0, 2, 0, 2, 1000, 1]], 4, (2,)), clip=5.0)
    assert found.average(2, "context_mean").mse == pytest.approx(25 / 2)
    assert found.sources[0].clipped == {2: 0.5}
    assert "50.00%" in found.to_markdown()


def test_windows_without_a_scale_or_a_last_point_are_counted_not_scored():
    series = [[5, 5, 5, 5, 1], [0, 1, 0, np.nan, 1], [0, np.nan, 2, 0, 2]]
    found = score(None, _chosen(series, 4, (1,)))
    (source,) = found.sources
    assert (source.unusable, source.windows[1]) == (2, 1)
    assert "not scored: 2" in found.to_markdown()


def test_a_context_that_is_flat_beside_its_series_has_no_scale():
    noise = 1e-9 * np.arange(4)
    found = score(None, _chosen([[*noise, 0, 1, 0, 1, 0]], 4, (1,)))
    assert found.sources[0].unusable == 2


def test_a_missing_truth_counts_for_nothing():
    with_gap = score(None, _chosen([[0, 2, 0, 2, np.nan, 3]], 4, (2,)))
    assert with_gap.average(2, "context_mean") == held_out.Errors(4.0, 2.0)


def test_a_perfect_model_has_no_error():
    found = score(_Fake(), _chosen([np.arange(40), np.arange(7, 30)], 8, (2, 4)))
    for horizon in (2, 4):
        assert found.average(horizon).mse < 1e-20
        assert found.average(horizon, "naive").mse > 0.1


@pytest.mark.parametrize(("plan", "calls"), [("covering", [4]), ("fitting", [4, 2])])
def test_one_forecast_serves_horizons_that_begin_with_the_same_heads(plan, calls):
    model = _Fake(plan)
    score(model, _chosen([np.arange(20)], 8, (2, 4), max_windows=5))
    assert [call["horizon"] for call in model.calls] == calls
    assert {call["normalize"] for call in model.calls} == {"instance"}


def test_a_model_that_reads_less_is_scored_on_the_same_windows_in_the_same_units():
    read = []

    class Reader(_Fake):
        def forecast(self, inputs, horizon, **options):
            read.append(inputs)
            return super().forecast(inputs, horizon, **options)

    chosen = _chosen([[0, 9, 0, 2, 0, 3, 1, 4, 1, 5]], 6, (2,))
    whole, less = (score(Reader(), chosen, num_read=n) for n in (None, 4))
    np.testing.assert_array_equal(read[0][:, -4:], read[1])
    assert read[0].shape[1] == 6
    assert (whole.num_read, less.num_read) == (6, 4)
    for method in ("naive", "context_mean"):
        assert whole.average(2, method) == less.average(2, method)
    for wrong in (0, 7):
        with pytest.raises(DataError, match=f"num_read must be from 1 to .* 6, but is {wrong}"):
            score(None, chosen, num_read=wrong)


def test_scores_do_not_depend_on_the_units_of_a_series():
    rng = np.random.default_rng(0)
    series = [rng.normal(size=40), rng.normal(size=30)]
    found = score(None, _chosen(series, 8, (4,)))
    moved = score(None, _chosen([1e6 - 300 * series[0], 2e-5 * series[1]], 8, (4,)))
    for method in ("naive", "context_mean"):
        assert moved.average(4, method).mse == pytest.approx(found.average(4, method).mse, rel=1e-9)


def test_every_source_counts_the_same():
    rng = np.random.default_rng(0)
    series = [rng.normal(size=100), np.cumsum(rng.normal(size=12))]
    parts = [SourcePart("d", "a", 0, 1), SourcePart("d", "b", 1, 2)]
    both = score(None, _chosen(series, 8, (2,), parts=parts))
    each = [score(None, _chosen([values], 8, (2,))).average(2, "naive").mse for values in series]
    assert both.average(2, "naive").mse == pytest.approx(np.mean(each))
    assert [s.name for s in both.sources] == ["d/a", "d/b"]
    ratios = [s.errors[2]["naive"].mse / s.errors[2]["context_mean"].mse for s in both.sources]
    assert both.relative_mse(2, "naive") == pytest.approx(np.sqrt(np.prod(ratios)))


def test_a_source_without_windows_is_named():
    parts = [SourcePart("d", "a", 0, 1), SourcePart("d", "b", 1, 2)]
    found = score(None, _chosen([np.arange(20) % 3, np.arange(5)], 8, (2,), parts=parts))
    assert "Sources without a window: d/b." in found.to_markdown()
    assert json.loads(json.dumps(found.as_dict()))["sources"][1]["errors"]["2"]["naive"] == {
        "mse": None,
        "mae": None,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context_length must be"),
        ({"horizons": (4, 2)}, "horizons must be increasing"),
        ({"horizons": ()}, "horizons must be increasing"),
        ({"context": 40}, "no series has a context of 40 points and a horizon of 2"),
        ({"max_windows": 0}, "max_windows must be"),
    ],
)
def test_impossible_windows(options, message):
    with pytest.raises(DataError, match=message):
        _chosen([np.arange(30)], **{"context": 4, "horizons": (2,), **options})


def test_an_impossible_clip():
    with pytest.raises(DataError, match="clip must be above 0"):
        score(None, _chosen([np.arange(30)], 4, (2,)), clip=0.0)


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("energy/load", "energy/wind", "web/hits"):
        series = [rng.normal(size=60) for _ in range(5)]
        write_time_moe_folder(tmp_path / "corpus" / name, series)
    return tmp_path / "corpus"


def test_what_a_config_holds_out(corpus):
    source, parts = open_held_out(
        DataConfig(path=str(corpus), validation_sources="energy/wind,web/hits")
    )
    assert [(p.label, p.first, p.stop) for p in parts] == [
        ("energy/wind", 0, 5),
        ("web/hits", 5, 10),
    ]
    assert len(source) == 10
    source, parts = open_held_out(DataConfig(path=str(corpus), validation_fraction=0.2), seed=1)
    assert sum(p.stop - p.first for p in parts) == len(source) == 3
    source, _ = open_held_out(DataConfig(path="x", validation_path=str(corpus / "web")))
    assert len(source) == 5
    with pytest.raises(DataError, match="hold nothing out"):
        open_held_out(DataConfig(path=str(corpus)))


def test_the_rows_after_those_trained_on_are_held_out(tmp_path):
    """With as many before them as a window reads, so that the first of them is forecast, too."""
    path = tmp_path / "table.csv"
    np.savetxt(path, np.arange(40.0).reshape(20, 2), delimiter=",", header="a,b", comments="")
    data = DataConfig(path=str(path), length=3, train_rows=10, validation_rows=6)
    source, (part,) = open_held_out(data)
    assert (part.first, part.stop) == (0, 2)
    assert [series.tolist() for series in source] == [
        list(range(14, 32, 2)),
        list(range(15, 33, 2)),
    ]


def test_unknown_sources_are_named(corpus):
    source, parts = open_held_out(DataConfig(path="x", validation_path=str(corpus)))
    chosen, kept = choose_sources(source, parts, "web/hits")
    assert [p.label for p in kept] == ["web/hits"]
    assert np.array_equal(chosen[0], source[10])
    with pytest.raises(DataError, match="energy/sun is none of the sources: energy/load"):
        choose_sources(source, parts, "energy/sun,web/hits")
