"""The line on the console about a call that takes long."""

import time

import pytest

from timemoe_jax.runtime import progress
from timemoe_jax.runtime.progress import tell, watch


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.delenv("TIMEMOE_QUIET")
    monkeypatch.setattr(progress, "SLOW_SECONDS", 0.01)


def test_one_line_for_calls_within_one_another(capsys):
    with watch(lambda: "outer"), watch(lambda: "inner"):
        tell(lambda: "compiling")
        time.sleep(0.3)
        with watch(lambda: "another"):
            time.sleep(0.05)
    captured = capsys.readouterr()
    assert captured.err == "compiling ...\n"
    assert captured.out == ""


@pytest.mark.parametrize("reason", ["quick", "quiet", "variable"])
def test_no_line(capsys, monkeypatch, reason):
    if reason == "variable":
        monkeypatch.setenv("TIMEMOE_QUIET", "1")
    if reason == "quick":
        monkeypatch.setattr(progress, "SLOW_SECONDS", 5)
    with watch(lambda: "forecasting", quiet=reason == "quiet"):
        time.sleep(0 if reason == "quick" else 0.1)
    assert capsys.readouterr().err == ""
