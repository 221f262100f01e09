"""Pictures: what is drawn, not only that something is."""

import statistics

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.dates import num2date

from timemoe_jax import DataError, plotting
from timemoe_jax.plotting import FORECAST_COLOR, TRUTH_COLOR, Panel, plot_forecasts

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
HORIZON = 24


def _pixels(image, color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(image[..., :3] - rgb).max(axis=-1) < 0.02).sum())


def _has_color(image, color):
    return _pixels(image, color) > 0


def _panel(title="a", levels=None, context=None, **fields):
    t = np.arange(300.0)
    context = np.sin(t / 9) if context is None else context
    forecast = np.sin(t[:HORIZON] / 9)
    if levels is not None:
        normal = [statistics.NormalDist().inv_cdf(level) for level in levels]
        fields = {"quantiles": forecast[:, None] + 0.2 * np.array(normal), **fields}
    return Panel(title, context, forecast, levels=levels, **fields)


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws panels, and returns the figure instead of writing it."""
    drawn = []
    monkeypatch.setattr(plotting, "save_figure", lambda figure, path, dpi: drawn.append(figure))

    def one(*panels, **options):
        plot_forecasts(tmp_path / "p.png", panels, **options)
        return drawn[-1]

    return one


def _lines(ax):
    """By its name, x and y of each line of a panel."""
    return {line.get_label(): np.asarray(line.get_xydata()).T for line in ax.lines}


def _names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _bands(ax):
    """By its name, each band's color and its lower and upper end at the last point."""
    found = {}
    for band in ax.collections:
        x, y = band.get_paths()[0].vertices.T
        last = y[x == x.max()]
        found[band.get_label()] = (band.get_facecolor()[0], last.min(), last.max())
    return found


def test_panels_show_forecast_and_truth(tmp_path):
    t = np.arange(300.0)
    with_truth = Panel("a", np.sin(t / 9), np.sin(t[:24] / 9), np.cos(t[:24] / 9))
    path = plot_forecasts(tmp_path / "deep" / "two.png", [with_truth, with_truth])
    image = matplotlib.image.imread(path)
    assert _has_color(image, FORECAST_COLOR)
    assert _has_color(image, TRUTH_COLOR)
    alone = plot_forecasts(tmp_path / "one.png", [with_truth._replace(truth=None)])
    smaller = matplotlib.image.imread(alone)
    assert not _has_color(smaller, TRUTH_COLOR)
    assert smaller.shape[0] < image.shape[0]


def test_bands_are_seen_in_the_picture(tmp_path):
    colors = plotting._looks([LEVELS])
    with_bands = matplotlib.image.imread(plot_forecasts(tmp_path / "b.png", [_panel("a", LEVELS)]))
    without = matplotlib.image.imread(plot_forecasts(tmp_path / "n.png", [_panel("a")]))
    for name in ("50%", "80%", "95%"):
        # Where a line is smoothed, a few pixels may have any tint.
        assert _pixels(with_bands, colors[name]) > 200
        assert _pixels(with_bands, colors[name]) > 5 * _pixels(without, colors[name])


def test_bands_are_named_after_their_coverage_and_darker_inside(draw):
    figure = draw(_panel("a", LEVELS))
    assert _names(figure) == ["context", "forecast", "50%", "80%", "95%"]
    bands = _bands(figure.axes[0])
    end = np.sin((HORIZON - 1) / 9)
    lightness = []
    for name, level in (("50%", 0.75), ("80%", 0.9), ("95%", 0.975)):
        color, low, high = bands[name]
        half = 0.2 * statistics.NormalDist().inv_cdf(level)
        np.testing.assert_allclose([low, high], [end - half, end + half])
        lightness.append(color[:3].sum())
    assert lightness == sorted(lightness)
    # Narrower ones are drawn later, all of them before the lines.
    orders = {band.get_label(): band.get_zorder() for band in figure.axes[0].collections}
    assert orders["95%"] < orders["80%"] < orders["50%"] < 2


@given(st.permutations(LEVELS), st.sets(st.sampled_from(LEVELS)))
def test_any_order_of_levels_makes_the_same_pairs(order, left_out):
    levels = [level for level in order if level not in left_out]
    bands = plotting._bands(levels)
    for name, low, high in bands:
        assert levels[low] < 0.5 < levels[high]
        assert float(name[:-1]) == pytest.approx(100 * (levels[high] - levels[low]))
    paired = {levels[i] for _, *pair in bands for i in pair}
    assert paired == {v for v in levels if v != 0.5 and any(abs(1 - v - w) < 1e-9 for w in levels)}
    lone = {levels[i] for _, i in plotting._lone_levels(levels)}
    assert lone | paired == set(levels)
    assert not lone & paired


def test_levels_without_a_counterpart_are_lines(draw):
    quantiles = np.arange(3.0) + np.zeros((HORIZON, 1))
    figure = draw(_panel(levels=(0.5, 0.6, 0.95), quantiles=quantiles))
    names = ["context", "forecast", "median", "quantile 0.6", "quantile 0.95"]
    assert _names(figure) == names
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["quantile 0.95"].get_ydata()[-1] == 2
    assert len({str(lines[name]._dash_pattern) for name in names[2:]}) == 3
    assert not figure.axes[0].collections


def test_a_median_that_is_the_forecast_is_not_drawn_twice(draw):
    assert "median" not in _names(draw(_panel(levels=(0.1, 0.5, 0.9))))
    moved = np.ones((HORIZON, 3)) * [-1, 0.5, 1]
    assert "median" in _names(draw(_panel(levels=(0.1, 0.5, 0.9), quantiles=moved)))


def test_a_coverage_has_one_color_in_all_panels(draw):
    figure = draw(_panel("a", (0.1, 0.9)), _panel("b", LEVELS), _panel("c"))
    assert _names(figure) == ["context", "forecast", "50%", "80%", "95%"]
    first, second = (_bands(ax) for ax in figure.axes[:2])
    np.testing.assert_array_equal(first["80%"][0], second["80%"][0])


def test_many_bands_leave_the_legend_readable(draw):
    figure = draw(_panel("a", tuple(np.arange(1, 100) / 100)))
    assert len(figure.axes[0].collections) == 49
    names = _names(figure)[2:]
    assert (names[0], names[-1], len(names)) == ("2%", "98%", plotting.MAX_BAND_LABELS)


def test_the_forecast_starts_where_the_context_ends(draw):
    panel = _panel(levels=(0.1, 0.9), truth=np.ones(HORIZON))
    figure = draw(panel, tail=50)
    lines = _lines(figure.axes[0])
    x, y = lines["context"]
    assert (x[0], x[-1], len(x)) == (-49, 0, 50)
    for name, values in (("forecast", panel.forecast), ("truth", panel.truth)):
        np.testing.assert_array_equal(lines[name][:, 0], [0, y[-1]])
        np.testing.assert_array_equal(lines[name][0], np.arange(HORIZON + 1))
        np.testing.assert_array_equal(lines[name][1, 1:], values)
    vertices = figure.axes[0].collections[0].get_paths()[0].vertices
    np.testing.assert_array_equal(np.unique(vertices[vertices[:, 0] == 0, 1]), [y[-1]])


def test_missing_points_are_gaps(draw):
    context = np.arange(10.0)
    context[[2, 3, 5, 9]] = np.nan
    before = context.copy()
    panel = _panel(context=context, truth=np.where(np.arange(HORIZON) < 5, 1.0, np.nan))
    (ax,) = draw(panel).axes
    lines = _lines(ax)
    np.testing.assert_array_equal(lines["context"][1], context)
    # The context's last point is missing, so that the forecast does not start there.
    assert lines["forecast"][0, 0] == 1
    dots = [line for line in ax.lines if line.get_marker() == "."]
    # Point 4, which no line reaches.
    assert [list(map(float, dot.get_xydata()[0])) for dot in dots] == [[-5.0, 4.0]]
    np.testing.assert_array_equal(context, before)


def test_one_point_ahead_of_a_gap_is_seen(tmp_path):
    panel = Panel(
        *("a", np.array([1.0, 2, np.nan]), np.array([2.0])),
        *(np.array([2.5]), np.array([[1.0, 3.0]]), (0.1, 0.9)),
    )
    image = matplotlib.image.imread(plot_forecasts(tmp_path / "p.png", [panel]))
    tint = plotting._looks([(0.1, 0.9)])["80%"]
    right = image[60:, image.shape[1] // 2 :]  # without the legend
    for color in (FORECAST_COLOR, TRUTH_COLOR):
        assert _has_color(right, color)
    assert _pixels(right, tint) > 200


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2024-03-30 12:00", periods=324, freq="h", tz="Europe/Berlin"),
        pd.date_range("2024-01-01", periods=324, freq="D"),
        pd.date_range("2024-01-01", periods=324, freq="D").to_numpy(),
        pd.Series(pd.date_range("2024-01-01", periods=324, freq="D", tz="UTC")),
        pd.period_range("2000-01", periods=324, freq="M"),
    ],
)
def test_times_stand_on_the_axis(draw, times):
    (ax,) = draw(_panel(times_context=times[:300], times_forecast=times[300:])).axes
    index = pd.DatetimeIndex(times.to_timestamp() if isinstance(times, pd.PeriodIndex) else times)
    expected = index if index.tz else index.tz_localize("UTC")
    lines = _lines(ax)
    shown = [num2date(x) for x in (lines["context"][0, -1], lines["forecast"][0, 1])]
    for found, wanted in zip(shown, expected[299:301], strict=True):
        assert abs((found - wanted).total_seconds()) < 1e-3
    assert not ax.get_xlabel()
    if index.tz:
        assert ax.xaxis.get_major_formatter()._tz == index.tz


def test_numbers_are_times_too(draw):
    times = 2 * np.arange(324) + 10
    (ax,) = draw(_panel(times_context=times[:300], times_forecast=times[300:])).axes
    np.testing.assert_array_equal(_lines(ax)["forecast"][0], times[299:])


def test_more_series_than_fit_are_counted(draw, tmp_path):
    panels = [_panel(f"series {i}") for i in range(plotting.MAX_PANELS + 2)]
    with pytest.warns(UserWarning, match=r"p\.png: the first 12 of 14 series are drawn"):
        figure = draw(*panels)
    assert figure._suptitle.get_text() == "the first 12 of 14 series"
    assert [ax.get_title("left") for ax in figure.axes] == [p.title for p in panels[:12]]


def test_panels_side_by_side(draw):
    """Five in two columns: row by row, and no sixth."""
    figure = draw(*(_panel(f"series {i}") for i in range(5)), columns=2)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [f"series {i}" for i in range(5)]
    left = [round(ax.get_position().x0, 2) for ax in figure.axes]
    assert left[0] == left[2] == left[4] < left[1] == left[3]
    _check_texts(figure)


def _overlaps(a, b):
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def _check_texts(figure):
    """Every text lies within the page, and on no other."""
    figure.canvas.draw()
    texts = [figure.legends[0]]
    for ax in figure.axes:
        texts += [ax._left_title, ax.xaxis.label, ax.xaxis.get_offset_text()]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = axis.get_view_interval()
            # Ticks beyond the ends of an axis have a place, but are not drawn.
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label1 for tick in ticks]
    boxes = [t.get_window_extent() for t in texts if not hasattr(t, "get_text") or t.get_text()]
    assert len(boxes) > 5 * len(figure.axes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if _overlaps(a, b)]
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)
    assert all(page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_no_text_meets_another(draw, count):
    times = pd.date_range("2023-12-20", periods=324, freq="D")
    dated = {"times_context": times[:300], "times_forecast": times[300:]}
    panels = [
        _panel(
            "price in $_{US$ of " * 9,
            (*LEVELS, 0.6, 0.99),
            context=3e7 + 1e3 * np.arange(300.0),
            **(dated if i % 2 else {}),
        )
        for i in range(count)
    ]
    _check_texts(draw(*panels))


@pytest.mark.parametrize("freq", ["s", "15min", "h", "D", "MS"])
def test_no_date_meets_another(draw, freq):
    times = pd.date_range("2023-07-03 21:00", periods=324, freq=freq)
    dated = {"times_context": times[:300], "times_forecast": times[300:]}
    for tail in (1, 5, 20, 40, 60, 90, 130, 160, 200, 240, 270, 300):
        figure = draw(_panel(**dated), tail=tail)
        _check_texts(figure)
        assert len(figure.axes[0].get_xticks()) > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truth": np.ones(3)}, r"load: truth has shape \(3,\) beside a forecast of 24 points"),
        ({"quantiles": np.ones((24, 1))}, "load: quantiles are given, but no levels"),
        ({"levels": (0.1,)}, "load: levels are given, but no quantiles"),
        (
            {"quantiles": np.ones((24, 1)), "levels": (0.1, 0.9)},
            r"load: quantiles has shape \(24, 1\) .* must be \(24, 2\)",
        ),
        ({"quantiles": np.ones((24, 1)), "levels": (1.0,)}, r"levels must be different numbers in"),
        ({"quantiles": np.ones((24, 2)), "levels": (0.1, 0.1)}, r"levels must be different"),
        ({"forecast": np.ones(0)}, "load: forecast has shape .* there must be some"),
        ({"context": np.array([1.0, np.inf])}, "load: context is infinite"),
        ({"times_context": np.arange(300)}, "load: times_forecast is missing"),
        (
            {"times_context": np.arange(9), "times_forecast": np.arange(24)},
            "load: times_context has 9 entries for 300 points",
        ),
        (
            {"times_context": np.arange(300), "times_forecast": np.arange(24)},
            "load: the times must increase",
        ),
        (
            {
                "times_context": np.arange(300),
                "times_forecast": pd.date_range("2024", periods=24, freq="D"),
            },
            "load: .* must both be dates or both numbers",
        ),
        (
            {"times_context": ["x"] * 300, "times_forecast": ["y"] * 24},
            "load: times_context must hold dates or numbers",
        ),
        (
            {"times_context": np.full(300, np.nan), "times_forecast": np.arange(24)},
            "load: times_context lacks an entry at 0",
        ),
    ],
)
def test_panels_that_cannot_be_drawn(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        plot_forecasts(tmp_path / "p.png", [_panel(), _panel("load")._replace(**fields)])
    assert not (tmp_path / "p.png").exists()


def test_pictures_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="panels is empty"):
        plot_forecasts(tmp_path / "p.png", [])
    with pytest.raises(DataError, match="tail must be at least 1, but is 0"):
        plot_forecasts(tmp_path / "p.png", [_panel()], tail=0)
    with pytest.raises(DataError, match="columns must be at least 1, but is 0"):
        plot_forecasts(tmp_path / "p.png", [_panel()], columns=0)
    for name in ("p", "p.csv"):
        with pytest.raises(DataError, match=r"name must end in one of .*png.*svg"):
            plot_forecasts(tmp_path / name, [_panel()])
    assert plot_forecasts(tmp_path / "p.svg", [_panel()]).read_text().startswith("<?xml")
