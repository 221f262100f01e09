"""Data frames as sources, and the index of a long table."""

import numpy as np
import pandas as pd
import pytest

from tests.data.test_columnar import HOURS, ROWS, check, labels
from timemoe_jax.data.formats.frames import frame_source
from timemoe_jax.data.formats.long_index import LongIndex, LongPart
from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.table_layout import ColumnNames
from timemoe_jax.errors import DataError


def test_frames_give_what_their_files_give(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["unique_id", "ds", "y"]).sample(frac=1, random_state=1)
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    source = frame_source(frame)
    from_file = open_source(str(path))
    assert labels(source) == labels(from_file)
    check(source, list(from_file))
    indexed = frame_source(frame.set_index(["unique_id", "ds"]))
    check(indexed, list(source))
    csv = tmp_path / "a.csv"
    frame.to_csv(csv, index=False)
    from_csv = open_source(str(csv))
    assert labels(from_csv) == labels(source)
    check(from_csv, list(source))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("freq", ["h", "D", "MS", "W-SUN"])
def test_the_frequency_is_found_in_silence(freq):
    frame = pd.DataFrame({"ds": pd.date_range("2024", periods=9, freq=freq), "v": range(9)})
    assert frame_source(frame).frequency == freq


def test_frames_of_every_kind():
    wide = pd.DataFrame(
        {"a": [1, 2, 3, 4], "b": pd.array([1, None, 3, 4], "Int64"), 7: [None, 1.5, 2, 3]},
        index=HOURS[::-1],
    )
    before = wide.copy()
    source = frame_source(wide)
    check(source, [[4, 3, 2, 1], [4, 3, np.nan, 1], [3, 2, 1.5, np.nan]])
    assert labels(source) == ["a", "b", "7"]
    pd.testing.assert_frame_equal(wide, before)
    lists = pd.DataFrame(
        {"item_id": ["x", "y", "z"], "target": [[1, None], np.ones(2, "f4"), None]}
    )
    check(frame_source(lists), [[1, np.nan], [1, 1], []])
    nested = pd.DataFrame({"target": [[[1.0, 2.0], [3.0]], np.ones((2, 1))]})
    source = frame_source(nested)
    check(source, [[1, 2], [3], [1], [1]])
    assert labels(source)[:2] == ["row 0 channel 0", "row 0 channel 1"]
    dated = pd.DataFrame({"id": [1, 1], "date": ["14/01/2024", "13/01/2024"], "y": [1.0, 2.0]})
    check(frame_source(dated, ColumnNames(timestamp="date")), [[2, 1]])


@pytest.mark.parametrize("kept", [slice(None), slice(0, None, 2), [3, 1, 2, 0]])
def test_the_former_index_of_a_frame_is_no_series(kept):
    """Also of one whose rows were left out or sorted since; a series may be called index, too."""
    dated = pd.DataFrame({"when": HOURS, "v": [1.0, 2.0, 3.0, 4.0]}).iloc[kept]
    for frame in (dated.reset_index(), dated.rename_axis("level_0").reset_index()):
        if isinstance(kept, slice):
            assert labels(frame_source(frame)) == ["v"]
    unnamed = dated.rename_axis("Unnamed: 0").reset_index()
    assert labels(frame_source(unnamed)) == ["v"]
    index = pd.DataFrame({"when": HOURS, "index": [3.0, 1.5, 2.0, 0.5]})
    assert labels(frame_source(index)) == ["index"]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ([1.0], "pandas DataFrame, not a list"),
        (pd.DataFrame(), "no rows"),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "more than one column 'a'"),
        (pd.DataFrame({"target": [["x"]]}), "row 0 must hold a list of numbers"),
        (pd.DataFrame({"target": [[1.0], "x"]}), "'target'"),
        (pd.DataFrame({"target": [[True, False]]}), "value 0 is 'True'"),
        (pd.DataFrame({"target": [[[[1.0]]]]}), "channel 0: value 0"),
        (pd.DataFrame({"a": [1 + 1j]}), "'a' must hold numbers"),
        (pd.DataFrame({"id": [1, 2], "y": [1.0, "x"]}), "'y' must hold numbers"),
    ],
)
def test_frames_that_cannot_be_used(frame, says):
    with pytest.raises(DataError, match=says):
        frame_source(frame)


def test_an_index_of_rows_and_series():
    """By hand: rows of a a b a b, whose times make b's come in reverse."""
    codes, times = np.array([0, 0, 1, 0, 1]), np.array([1.0, 2.0, 9.0, 3.0, 8.0])
    index = LongIndex("t", lambda: iter([LongPart(codes, ["a", "b"], times)]))
    assert index.ids == ("a", "b")
    assert index.lengths.tolist() == [3, 2]
    assert index.rows(0, 0, 3).tolist() == [0, 1, 3]
    assert index.rows(1, 0, 2).tolist() == [4, 2]
    assert index.rows(0, 1, 5).tolist() == [1, 3, 4, 2]
    assert index.rows(1, 1, 1).tolist() == []
