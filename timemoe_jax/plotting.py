"""Pictures: forecasts, one panel a series, and sheets of many series."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from timemoe_jax.errors import DataError
from timemoe_jax.files import written_whole

if TYPE_CHECKING:
    from datetime import tzinfo

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Gray, blue and vermilion differ in lightness too, and for every common kind of color blindness.
CONTEXT_COLOR, TRUTH_COLOR, FORECAST_COLOR = "#555555", "#1f5f8b", "#c2410c"
SHEET_COLOR = "#1f5f8b"
MAX_PANELS = 12
# How much of the forecast's color the widest and the narrowest band have; the rest is white.
WIDEST_TINT, NARROWEST_TINT = 0.16, 0.5
MAX_BAND_LABELS = 5
DASHES = ((4, 2), (1, 1), (6, 2, 1, 2), (2, 2), (6, 2, 1, 2, 1, 2))  # of levels without a band


class Panel(NamedTuple):
    """One series to draw; the forecast starts one step after the context ends."""

    title: str
    context: Float[np.ndarray, " T"]  # NaN where missing: a gap
    forecast: Float[np.ndarray, " H"]
    truth: Float[np.ndarray, " H"] | None = None
    quantiles: Float[np.ndarray, "H Q"] | None = None
    levels: Sequence[float] | None = None  # Q of them, in (0, 1)
    # When each point was: a pandas index, datetime64 or numbers. None counts steps.
    times_context: Any = None
    times_forecast: Any = None


def plot_forecasts(
    path: str | os.PathLike[str], panels: Sequence[Panel], tail: int = 256, columns: int = 1
) -> Path:
    """Writes a picture with a panel for each series: context, truth, forecast and its bands.

    Quantiles tau and 1 - tau make one band, named after its nominal coverage; narrower bands are
    darker. A level without its counterpart is a line. At most `MAX_PANELS` series are drawn; if
    there are more, the picture and a warning say so.

    Args:
      path: of the picture, such as .png, .svg or .pdf; its folder is made if needed.
      panels: what to draw, row by row.
      tail: how many last points of each context to show.
      columns: how many panels stand side by side.

    Raises:
      DataError: a panel's arrays do not fit each other, or a value is infinite; or there is no
        panel, no such kind of picture, or tail or columns are below 1.
    """
    if not panels:
        raise DataError("panels is empty; a picture needs at least one series")
    for name, value in (("tail", tail), ("columns", columns)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, but is {value}")
    for panel in panels:
        _check_panel(panel)
    shown = panels[:MAX_PANELS]
    rows = -(-len(shown) // columns)
    figure = new_figure(path, 10, (2.4 if rows <= 5 else 2.0) * rows + 0.5)
    looks = _looks([panel.levels for panel in shown if panel.levels is not None])
    every = figure.subplots(rows, columns, squeeze=False).flat
    axes = every[: len(shown)]
    for ax in every[len(shown) :]:
        ax.remove()
    for ax, panel in zip(axes, shown, strict=True):
        _draw_panel(ax, panel, tail, looks)
    steps = [ax for ax, panel in zip(axes, shown, strict=True) if panel.times_context is None]
    for ax in steps[-columns:]:
        ax.set_xlabel("steps from the end of the context")
    for ax in steps:
        ax.xaxis.get_major_locator().set_params(integer=True)
    if len(panels) > len(shown):
        note = f"the first {len(shown)} of {len(panels)} series"
        figure.suptitle(note, fontsize=9, x=0.01, ha="left", color=CONTEXT_COLOR)
        warnings.warn(f"{os.fspath(path)}: {note} are drawn", stacklevel=2)
    _legend(figure, axes)
    return save_figure(figure, path, 100)


def _check_panel(panel: Panel) -> None:
    """Raises for arrays that cannot be drawn together."""
    horizon = len(panel.forecast)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("forecast", "truth"), (horizon,))
    shapes["context"] = (len(panel.context),)
    if (panel.quantiles is None) != (panel.levels is None):
        names = ("levels", "quantiles") if panel.quantiles is None else ("quantiles", "levels")
        raise DataError(f"{panel.title}: {' are given, but no '.join(names)}; give both or neither")
    if panel.levels is not None:
        shapes["quantiles"] = (horizon, len(panel.levels))
        wrong = [level for level in panel.levels if not 0 < level < 1]
        if wrong or len(set(panel.levels)) < len(panel.levels):
            raise DataError(
                f"{panel.title}: levels must be different numbers in (0, 1), "
                f"but are {list(panel.levels)}"
            )
    for name, shape in shapes.items():
        values = getattr(panel, name)
        if values is None:
            continue
        if np.shape(values) != shape or not horizon:
            raise DataError(
                f"{panel.title}: {name} has shape {np.shape(values)} beside a forecast of "
                f"{horizon} points{', of which there must be some' * (not horizon)}; "
                f"it must be {shape}"
            )
        if np.isinf(values).any():
            raise DataError(f"{panel.title}: {name} is infinite somewhere; NaN marks a gap")


def _draw_panel(ax: "Axes", panel: Panel, tail: int, looks: Mapping[str, Any]) -> None:
    past, ahead, tz, dated = _positions(panel)
    context, past = panel.context[-tail:], past[-tail:]
    # Everything after the context starts at its last point, so that the joint has no gap; where
    # that is missing, the gap is real.
    joined = bool(len(context)) and not np.isnan(context[-1])
    start = past[-1:] if joined else past[:0]
    after = np.concatenate([start, ahead])

    def ahead_of(values: Float[np.ndarray, " H"]) -> Float[np.ndarray, " _"]:
        return np.concatenate([context[-1:] if joined else context[:0], values])

    draw_line(ax, past, context, CONTEXT_COLOR, lw=1, label="context")
    point = ahead_of(panel.forecast)
    draw_line(ax, after, point, FORECAST_COLOR, lw=1.4, label="forecast", zorder=2.3)
    if panel.truth is not None:
        truth = ahead_of(panel.truth)
        draw_line(ax, after, truth, TRUTH_COLOR, lw=1.1, label="truth", zorder=2.4)
    if panel.quantiles is not None and panel.levels is not None:
        for name, low, high in _bands(panel.levels):
            lower, upper = (ahead_of(panel.quantiles[:, i]) for i in (low, high))
            # An edge, so that a band of one point can be seen. Narrower bands lie above wider
            # ones, all of them below the lines.
            look = {"color": looks[name], "lw": 0 if len(after) > 1 else 4}
            ax.fill_between(
                after, lower, upper, label=name, zorder=1.9 - float(name[:-1]) / 100, **look
            )
        for name, i in _lone_levels(panel.levels):
            values = ahead_of(panel.quantiles[:, i])
            if not (name == "median" and np.allclose(values, point, equal_nan=True)):
                look = {"dashes": looks[name], "lw": 1, "zorder": 2.2}
                draw_line(ax, after, values, FORECAST_COLOR, label=name, **look)
    if len(past):
        ax.axvline(past[-1], color="#bbbbbb", lw=0.8, zorder=0)
    _style_forecast_axes(ax, panel.title, tz, dated)


def draw_line(
    ax: "Axes", x: Float[np.ndarray, " _"], y: Float[np.ndarray, " _"], color: str, **look: Any
) -> None:
    """A line with gaps where values are missing, and dots where a value has no neighbor."""
    ax.plot(x, y, color=color, **look)
    seen = np.pad(~np.isnan(y), 1)
    alone = seen[1:-1] & ~seen[:-2] & ~seen[2:]
    if alone.any():
        ax.plot(x[alone], y[alone], ".", color=color, ms=4, zorder=look.get("zorder", 2))


def _style_forecast_axes(ax: "Axes", title: str, tz: "tzinfo | None", dated: bool) -> None:
    # Dollar signs in a name must not start a formula.
    short = title if len(title) <= 100 else title[:99] + "…"
    ax.set_title(short, loc="left", fontsize=10, parse_math=False)
    ax.margins(x=0.01)
    ax.spines[["top", "right"]].set_visible(False)
    plain_numbers(ax.yaxis)
    if dated:
        _label_dates(ax.xaxis, tz)


def _label_dates(axis: "Axis", tz: "tzinfo | None") -> None:
    from matplotlib.dates import DAILY, AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=tz, minticks=3, maxticks=9)
    # Every third day of a month would put its 31st beside the next month's first.
    locator.intervald[DAILY] = [1, 2, 7, 14]
    # Days are named with their month, since an axis may span several.
    axis.set_major_locator(locator)
    axis.set_major_formatter(
        ConciseDateFormatter(
            locator,
            tz=tz,
            formats=["%Y", "%b", "%b %d", "%H:%M", "%H:%M", "%S.%f"],
            zero_formats=["", "%Y", "%b %d", "%b %d", "%H:%M", "%H:%M"],
            offset_formats=["", "%Y", "%Y", "%Y-%b-%d", "%Y-%b-%d", "%Y-%b-%d %H:%M"],
        )
    )


def _bands(levels: Sequence[float]) -> list[tuple[str, int, int]]:
    """Nominal coverage, lower and upper column of each pair tau, 1 - tau; the narrowest first."""
    columns = {_key(level): i for i, level in enumerate(levels)}
    pairs = [
        (_key(1 - 2 * low), i, columns[_key(1 - low)])
        for low, i in columns.items()
        if low < 0.5 and _key(1 - low) in columns
    ]
    return [(f"{100 * coverage:.7g}%", low, high) for coverage, low, high in sorted(pairs)]


def _lone_levels(levels: Sequence[float]) -> list[tuple[str, int]]:
    """What each level that is part of no band is called, and its column."""
    paired = {i for _, *pair in _bands(levels) for i in pair}
    lone = [(level, i) for i, level in enumerate(levels) if i not in paired]
    return [("median" if _key(v) == 0.5 else f"quantile {v:.4g}", i) for v, i in sorted(lone)]


def _key(level: float) -> float:
    """A level without its rounding: 1 - 0.9 and 0.1 are one."""
    return round(float(level), 9)


def _looks(levels: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The color of each band (lighter if wider) and the dashes of each lone level, by name."""
    from matplotlib.colors import to_hex, to_rgb

    widths = {name: float(name[:-1]) for one in levels for name, *_ in _bands(one)}
    bands = sorted(widths, key=widths.__getitem__)
    shares = np.linspace(NARROWEST_TINT, WIDEST_TINT, len(bands))
    if len(bands) == 1:
        shares = np.array([(NARROWEST_TINT + WIDEST_TINT) / 2])
    color = np.array(to_rgb(FORECAST_COLOR))
    looks: dict[str, Any] = {
        name: to_hex(s * color + 1 - s) for name, s in zip(bands, shares, strict=True)
    }
    lone = sorted({name for one in levels for name, _ in _lone_levels(one)})
    return looks | {name: DASHES[i % len(DASHES)] for i, name in enumerate(lone)}


def _positions(
    panel: Panel,
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " H"], "tzinfo | None", bool]:
    """Positions of context and forecast on the x axis, their time zone, and whether it has dates.

    In steps the context ends at 0, and the forecast begins at 1.
    """
    if panel.times_context is None and panel.times_forecast is None:
        past = np.arange(1.0 - len(panel.context), 1)
        return past, np.arange(1.0, len(panel.forecast) + 1), None, False
    parts = {
        "times_context": (panel.times_context, len(panel.context)),
        "times_forecast": (panel.times_forecast, len(panel.forecast)),
    }
    axes = []
    for name, (times, count) in parts.items():
        if times is None:
            raise DataError(f"{panel.title}: {name} is missing; give the times of both or of none")
        axes.append(_times(times, count, f"{panel.title}: {name}"))
    (past, tz, dated), (ahead, _, dated_ahead) = axes
    if dated != dated_ahead:
        raise DataError(
            f"{panel.title}: times_context and times_forecast must both be dates or both numbers"
        )
    if not (np.diff(np.concatenate([past, ahead])) > 0).all():
        raise DataError(
            f"{panel.title}: the times must increase from the first point of the context to the "
            "last of the forecast"
        )
    return past, ahead, tz, dated


def _times(times: Any, count: int, name: str) -> tuple[np.ndarray, "tzinfo | None", bool]:
    """Times as positions on an axis, their time zone, and whether they are dates."""
    import pandas as pd
    from matplotlib.dates import date2num

    index = pd.Index(times)
    if len(index) != count:
        raise DataError(f"{name} has {len(index)} entries for {count} points; each needs one")
    dated = not pd.api.types.is_numeric_dtype(index.dtype)
    if dated:
        try:
            periods = isinstance(index, pd.PeriodIndex)
            index = index.to_timestamp() if periods else pd.DatetimeIndex(index)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} must hold dates or numbers, but: {error}") from None
    if index.hasnans:
        raise DataError(f"{name} lacks an entry at {int(np.argmax(index.isna()))}")
    if not dated:
        return index.to_numpy(np.float64), None, False
    zone = index.tz
    return date2num(index.tz_convert(None).to_numpy() if zone else index.to_numpy()), zone, True


def _legend(figure: "Figure", axes: Iterable["Axes"]) -> None:
    """One legend above all panels, where it covers no line; it has each name once."""
    named: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    bands = sorted((float(name[:-1]), name) for name in named if name.endswith("%"))
    if len(bands) > MAX_BAND_LABELS:
        # The narrowest, the widest, and as many between them as a line holds.
        kept = np.linspace(0, len(bands) - 1, MAX_BAND_LABELS).round().astype(int)
        for _, name in [band for i, band in enumerate(bands) if i not in kept]:
            del named[name]
    names = [name for name in named if not name.endswith("%")]
    names += [name for _, name in bands if name in named]
    figure.legend(
        [named[name] for name in names],
        names,
        loc="outside upper right",
        ncols=-(-len(names) // -(-len(names) // 9)),
        fontsize=8,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.4,
    )


class Thumbnail(NamedTuple):
    """One of many small series on a sheet."""

    title: str
    positions: Float[np.ndarray, " P"]
    values: Float[np.ndarray, " P"]


def plot_sheet(
    path: str | os.PathLike[str],
    thumbnails: Sequence[Thumbnail],
    *,
    title: str = "",
    columns: int = 4,
) -> Path:
    """Writes a picture of many small series, row by row; NaN is a gap.

    The folder of the picture is made if needed.
    """
    rows = max(1, -(-len(thumbnails) // columns))
    figure = new_figure(path, 3.9 * columns, 1.65 * rows + 0.5)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(thumbnails) :]:
        ax.set_axis_off()
    for ax, item in zip(axes, thumbnails, strict=False):
        marker = "." if len(item.values) < 3 else None  # a line needs points to join
        ax.plot(item.positions, item.values, color=SHEET_COLOR, lw=0.7, marker=marker)
        ax.set_title(item.title, loc="left", fontsize=7.5, pad=3)
        ax.margins(x=0)
        plain_numbers(ax.xaxis, 5)
        plain_numbers(ax.yaxis, 3)
        ax.tick_params(labelsize=6.5, length=2, color="#bbbbbb", labelcolor="#555555")
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["bottom", "left"]].set_color("#bbbbbb")
    return save_figure(figure, path, 110)


def new_figure(path: str | os.PathLike[str], width: float, height: float) -> "Figure":
    """An empty figure of a size in inches, for `save_figure` to write at a path.

    Raises:
      DataError: there is no such kind of picture.
    """
    # The object interface draws without a display, and touches no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_picture(path)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raises a DataError if a name does not end as that of a picture does that can be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    endings = sorted(FigureCanvasAgg.get_supported_filetypes())
    if Path(path).suffix.lower().removeprefix(".") not in endings:
        raise DataError(
            f"{os.fspath(path)}: a picture's name must end in one of {', '.join(endings)}"
        )


def save_figure(figure: "Figure", path: str | os.PathLike[str], dpi: int) -> Path:
    """Writes a figure, in a folder made if needed; returns where. See `written_whole`."""
    with written_whole(path) as beside:
        figure.savefig(beside, dpi=dpi)
    return Path(path)


def plain_numbers(axis: "Axis", bins: int | None = None) -> None:
    """Makes tick labels whole numbers, since an offset above the axis would meet the title."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter

    if bins:
        axis.set_major_locator(MaxNLocator(bins))
    largest = max(map(abs, axis.get_view_interval()))
    plain = ScalarFormatter(useOffset=False)
    axis.set_major_formatter(plain if 1e-3 < largest < 1e4 else EngFormatter(sep=""))
