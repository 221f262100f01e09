"""Files appear whole or not at all."""

import json
import os

import pytest

from timemoe_jax.errors import DataError
from timemoe_jax.files import write_json, write_text, written_whole


def test_text_appears_under_its_name_alone(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "é\n")
    write_text(path, "ü\n")
    assert path.read_bytes() == "ü\n".encode()
    assert os.listdir(path.parent) == ["a.txt"]


def test_json_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    for content in ({"a": 1}, [2]):
        write_json(tmp_path / "new" / "x.json", content)
        assert json.loads((tmp_path / "new" / "x.json").read_text("utf-8")) == content
    assert os.listdir(tmp_path / "new") == ["x.json"]


def test_an_earlier_file_stays_where_the_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier", encoding="utf-8")

    def write_half(error):
        with written_whole(path) as beside:
            beside.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(DataError, match="No space left"):
        write_half(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        write_half(KeyboardInterrupt())
    assert path.read_text("utf-8") == "earlier"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_links_stay_and_devices_are_written_themselves(tmp_path):
    target, link = tmp_path / "a.txt", tmp_path / "link.txt"
    target.write_text("earlier", encoding="utf-8")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text("utf-8") == "new"
    write_text("/dev/null", "gone")
    assert not os.path.isfile("/dev/null")


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for path, why in ((tmp_path / "file" / "x", "File exists"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=f"{path} cannot be written: {why}"):
            write_text(path, "")
