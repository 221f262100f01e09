"""How an error names many things."""

from timemoe_jax.errors import listed


def test_listed():
    assert listed([]) == ""
    assert listed("ab") == "a, b"
    assert listed([1, 2, 3], most=2) == "1, 2 and 1 more"
    assert listed({"x": 1, "y": 2, "z": 3}, 1, "; ") == "x and 2 more"
