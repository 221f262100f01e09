"""Whatever a forecaster is given ends in a finite forecast or in an error that says what is wrong.

TIMEMOE_FUZZ_EXAMPLES asks for more cases of each kind; a summary of what they ended in is printed.
"""

import collections
import dataclasses
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_model import TINY

from timemoe_jax import Forecaster, TimeMoeError
from timemoe_jax.data.formats.table_layout import TIME_NAMES
from timemoe_jax.forecasting.frames.files import read_frame_file, with_steps
from timemoe_jax.models.base import create_params

HORIZON = 3
EXAMPLES = int(os.environ.get("TIMEMOE_FUZZ_EXAMPLES", "60"))
LEVELS = (0.25, 0.75)  # three errors calibrate them


@pytest.fixture(scope="module")
def forecaster():
    # One head, so that forecasts of any length are steps of one kind, and compile fast.
    config = dataclasses.replace(TINY, max_position_embeddings=64, horizon_lengths=(1,))
    return Forecaster(config, create_params(config, seed=1))


@pytest.fixture(scope="module")
def outcomes(request):
    """Counts what cases ended in, and prints that at the end."""
    found = collections.Counter()
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for (kind, outcome), count in sorted(found.items()):
            print(f"fuzz: {kind}: {outcome}: {count} cases")


def run(outcomes, kind, forecast):
    """Calls `forecast`; its result must be finite, or its error named."""
    message = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            assert np.isfinite(forecast()).all()
    except TimeMoeError as error:
        message = str(error)
    # A message that says what is wrong has more than a few words.
    assert not message or len(message.split()) > 3, message
    outcomes[kind, "named error" if message else "finite forecast"] += 1


FLOATS = st.one_of(
    st.floats(-10, 10),
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.sampled_from([np.nan, 0.0, -0.0, 1e300, -1e300, 1e-300, 5e-324, np.inf, 3.4e38]),
)
DTYPES = ("float64", "float32", "float16", "int8", "uint64", "int64", "bool", "complex64", "U3")


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        elements = FLOATS.map(lambda x: x if not abs(x) > limit else np.inf).map(dtype.type)
        return draw(hnp.arrays(dtype, shape, elements=elements))
    return draw(hnp.arrays(dtype, shape))


@st.composite
def lists(draw):
    """Series of different lengths and kinds: lists, arrays, None, text, and what is no series."""
    one = st.one_of(
        st.lists(FLOATS, max_size=14),
        st.lists(st.one_of(FLOATS, st.none(), st.booleans(), st.text(max_size=2)), max_size=5),
        hnp.arrays(np.float64, st.integers(0, 14), elements=FLOATS),
        st.none(),
        st.integers(),
        st.text(max_size=3),
    )
    return draw(st.lists(one, max_size=3))


SCALES = st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e150, 1e300])


@st.composite
def usable(draw):
    """Series that should be forecast, of any magnitude and with any points missing but one."""
    count = draw(st.integers(1, 3))
    series = []
    for _ in range(count):
        values = draw(hnp.arrays(np.float64, st.integers(1, 14), elements=st.floats(-9, 9)))
        values = values * draw(SCALES) + draw(st.sampled_from([0.0, 1.0, -1e6]))
        missing = draw(hnp.arrays(bool, values.shape))
        missing[draw(st.integers(0, len(values) - 1))] = False
        series.append(np.where(missing, np.nan, values))
    return series


@settings(max_examples=EXAMPLES)
@example(np.zeros((0, 0, 0)), "instance")
@example(np.zeros((2, 0, 3)), "instance")
@example(np.zeros((2, 3, 0)), "instance")
@given(arrays(), st.sampled_from(["instance", "none"]))
def test_arrays(forecaster, outcomes, values, normalize):
    before = values.copy()
    run(outcomes, "arrays", lambda: forecaster.forecast(values, HORIZON, normalize=normalize).point)
    np.testing.assert_array_equal(values, before)


@settings(max_examples=EXAMPLES)
@given(lists())
def test_lists(forecaster, outcomes, values):
    run(outcomes, "lists", lambda: forecaster.forecast(values, HORIZON).point)


@settings(max_examples=EXAMPLES)
@given(usable())
def test_usable_series_are_forecast(forecaster, outcomes, series):
    point = forecaster.forecast(series, HORIZON).point
    assert np.isfinite(point).all()
    outcomes["usable series", "finite forecast"] += 1


@settings(max_examples=EXAMPLES)
@given(
    st.one_of(st.integers(-3, 70), st.floats(allow_nan=True), st.text(max_size=2), st.none()),
    st.one_of(st.integers(-3, 70), st.none(), st.text(max_size=2)),
    st.one_of(st.lists(st.floats(-0.5, 1.5), max_size=3), st.none(), st.text(max_size=2)),
)
def test_arguments(forecaster, outcomes, horizon, context_length, levels):
    # Horizons that compile something are tested elsewhere.
    horizon = HORIZON if isinstance(horizon, int) and horizon > 0 else horizon
    series = np.sin(np.arange(30.0))
    run(
        outcomes,
        "arguments",
        lambda: (
            forecaster.forecast(
                series, horizon, context_length=context_length, quantile_levels=levels
            ).point
        ),
    )


TIMES = st.one_of(
    st.datetimes(pd.Timestamp("1700-01-01"), pd.Timestamp("2200-01-01")),
    st.none(),
    st.integers(-5, 5),
    st.sampled_from(["2024-02-30", "2024-01-01", "soon", ""]),
)


@st.composite
def frames(draw):
    """Long, wide and odd frames: regular times with rows moved, doubled, dropped or spoilt."""
    rows = draw(st.integers(0, 12))
    freq = draw(st.sampled_from(["h", "D", "MS", "B", "15min", "YE"]))
    tz = draw(st.sampled_from([None, "Europe/Berlin", "UTC"]))
    times = pd.date_range("2023-10-28", periods=rows, freq=freq, tz=tz)
    frame = pd.DataFrame({draw(st.sampled_from(["ds", "timestamp", "when"])): times})
    if draw(st.booleans()):
        frame[draw(st.sampled_from(["unique_id", "item_id", "id"]))] = draw(
            st.lists(st.sampled_from(["a", "b", None, 3]), min_size=rows, max_size=rows)
        )
    for name in draw(st.lists(st.sampled_from(["y", "target", "x", "ds"]), max_size=2)):
        cells = st.one_of(FLOATS, st.none(), st.text(max_size=2)) if draw(st.booleans()) else FLOATS
        frame[name] = draw(st.lists(cells, min_size=rows, max_size=rows))
    if rows and draw(st.booleans()):
        index = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows))
        frame = frame.iloc[index]
    if len(frame) and draw(st.booleans()):
        frame = frame.astype({frame.columns[0]: object})
        frame.iloc[0, 0] = draw(TIMES)
    return frame


@settings(max_examples=EXAMPLES)
@given(frames())
def test_frames(forecaster, outcomes, frame):
    before = frame.copy()
    run(
        outcomes,
        "frames",
        lambda: forecaster.predict_df(frame, HORIZON)["predictions"].to_numpy(),
    )
    pd.testing.assert_frame_equal(frame, before)


@st.composite
def files(draw):
    """The bytes of a CSV or Parquet file, whole, cut off, or with bytes changed."""
    rows = draw(st.integers(1, 14))
    times = pd.date_range("2024-01-01", periods=rows, freq="h").astype(str)
    frame = pd.DataFrame({"ds": times, "y": np.sin(np.arange(rows))})
    kind = draw(st.sampled_from(["csv", "parquet"]))
    data = bytearray(frame.to_csv(index=False).encode() if kind == "csv" else frame.to_parquet())
    change = draw(st.sampled_from(["none", "cut", "bytes", "random"]))
    if change == "cut":
        del data[draw(st.integers(0, len(data))) :]
    elif change == "bytes":
        for _ in range(draw(st.integers(1, 4))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    elif change == "random":
        data = draw(st.binary(max_size=60))
    return kind, bytes(data)


@settings(max_examples=EXAMPLES)
@given(files())
def test_files(forecaster, outcomes, tmp_path_factory, file):
    kind, data = file
    path = tmp_path_factory.mktemp("fuzz") / f"data.{kind}"
    path.write_bytes(data)

    def forecast():
        frame = read_frame_file(path)
        named = set(TIME_NAMES) & set(frame.columns)
        frame = frame if named else with_steps(frame)
        return forecaster.predict_df(frame, HORIZON)["predictions"].to_numpy()

    run(outcomes, "files", forecast)


@settings(max_examples=max(EXAMPLES // 3, 5))
@given(usable())
def test_intervals(forecaster, outcomes, series):
    long = [np.resize(each, 40) for each in series]
    few = {"context_length": 16, "batch_size": 4}  # the programs of the tests above
    run(
        outcomes,
        "intervals",
        lambda: forecaster.forecast(long, HORIZON, quantile_levels=LEVELS, **few).quantiles,
    )
