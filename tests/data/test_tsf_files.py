"""Monash .tsf files: read as the format has them, and every damage named."""

import numpy as np
import pytest

from timemoe_jax.data.formats.open import open_source
from timemoe_jax.data.formats.tsf_files import TsfSource
from timemoe_jax.errors import DataError

TEXT = """# Dataset Information
# Two series.
@relation tiny
@attribute series_name string
@attribute start_timestamp date
@attribute level numeric
@frequency 10_minutes
@horizon 24
@missing true
@equallength false
@data
T1:2011-01-01 00-00-00:3:1,2.5,?,-4e3

T2:2011-01-02 00-10-00:4:7
"""


def write(tmp_path, text, encoding="utf-8", newline="\n"):
    path = tmp_path / "a.tsf"
    path.write_bytes(text.replace("\n", newline).encode(encoding))
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_header_attributes_and_values(tmp_path, newline):
    path = write(tmp_path, "\ufeff" + TEXT, newline=newline)
    source = open_source(str(path))
    assert isinstance(source, TsfSource)
    assert source.lengths.tolist() == [4, 1]
    np.testing.assert_array_equal(source[0], [1.0, 2.5, np.nan, -4000.0])
    np.testing.assert_array_equal(source.read(0, 1, 3), [2.5, np.nan])
    np.testing.assert_array_equal(source[1], [7.0])
    assert source.attributes(1) == {
        "series_name": "T2",
        "start_timestamp": "2011-01-02 00-10-00",
        "level": "4",
    }
    assert [source.label(i) for i in range(2)] == ["T1", "T2"]
    assert source.name(1) == f"{path} line 14"
    header = source.header
    assert header.attributes == (
        ("series_name", "string"),
        ("start_timestamp", "date"),
        ("level", "numeric"),
    )
    assert (header.relation, header.frequency, header.horizon) == ("tiny", "10_minutes", 24)
    assert (header.missing, header.equal_length) == (True, False)
    assert source.frequency == "10min"


@pytest.mark.parametrize(
    ("frequency", "alias"),
    [
        ("yearly", "YS"),
        ("quarterly", "QS"),
        ("monthly", "MS"),
        ("weekly", "W"),
        ("daily", "D"),
        ("hourly", "h"),
        ("half_hourly", "30min"),
        ("minutely", "min"),
        ("4_seconds", "4s"),
        ("1_hour", "1h"),
        ("fortnightly", "fortnightly"),
    ],
)
def test_frequencies(tmp_path, frequency, alias):
    source = TsfSource(write(tmp_path, TEXT.replace("10_minutes", frequency)))
    assert source.header.frequency == frequency
    assert source.frequency == alias


def test_without_optional_lines(tmp_path):
    source = TsfSource(write(tmp_path, "@attribute n string\n@data\nx:1"))
    assert source.frequency is None
    assert source.header.horizon is None
    np.testing.assert_array_equal(source[0], [1.0])
    assert source.label(0) == "0"


def test_encodings(tmp_path):
    text = TEXT.replace("T1", "Zürich").replace("# Two", "# Zwei für")
    assert TsfSource(write(tmp_path, text)).label(0) == "Zürich"
    path = write(tmp_path, text, "cp1252")
    source = TsfSource(path)
    with pytest.raises(DataError, match=r"a\.tsf line 12 is not utf-8 text.*cp1252, latin-1"):
        source.label(0)
    np.testing.assert_array_equal(source[1], [7.0])
    for encoding in ("cp1252", "latin-1"):
        assert TsfSource(path, encoding).label(0) == "Zürich"
    with pytest.raises(DataError, match="'utf-16'"):
        TsfSource(path, "utf-16")
    path = write(tmp_path, TEXT.replace("tiny", "für"), "cp1252")
    with pytest.raises(DataError, match="line 3 is not utf-8"):
        TsfSource(path)
    assert TsfSource(path, "cp1252").header.relation == "für"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (TEXT, "", "no line @data"),
        ("@data", "", "line 12 must begin with @"),
        ("T1:2011-01-01 00-00-00:3:1,2.5,?,-4e3\n\nT2:2011-01-02 00-10-00:4:7", "", "no series"),
        ("@relation", "relation", "line 3 must begin with @ or #"),
        ("@relation tiny", "@relation", "@relation must come once"),
        ("@missing true", "@missing perhaps", "true or false, not 'perhaps'"),
        ("@horizon 24", "@horizon soon", "whole number, not 'soon'"),
        ("@horizon 24", "@horizon ٣", "whole number"),
        ("@horizon 24", "@missing true", "@missing must come once"),
        ("@horizon 24", "@season 24", "@season is not known"),
        ("level numeric", "level float", "line 6: @attribute must have a name and one of"),
        ("level numeric", "level", "@attribute must have"),
        ("level numeric", "series_name string", "'series_name' comes twice"),
        (":3:", ":", "line 12 has 2 attributes before the values, but the header has 3"),
        (":3:", ":3:4:", "has 4 attributes"),
        (":4:7", ":4: ", "line 14 has no values"),
    ],
)
def test_damage_of_the_form_is_named(tmp_path, old, new, says):
    path = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(DataError, match=says) as error:
        TsfSource(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cell", ["x", "", "1_0", "??", "1?", "-?", "0x1", "\uff11", "nan nan"])
def test_values_that_are_no_numbers(tmp_path, cell):
    path = write(tmp_path, TEXT.replace("2.5", cell))
    with pytest.raises(DataError, match=r"line 12: value 1 is"):
        TsfSource(path)[0]


def test_changed_or_absent(tmp_path):
    path = write(tmp_path, TEXT)
    source = TsfSource(path)
    path.write_text(TEXT.replace("-4e3", "-4e3,5"))
    with pytest.raises(DataError, match="changed"):
        source[0]
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        source[0]
    with pytest.raises(DataError, match="cannot be read"):
        TsfSource(path)
