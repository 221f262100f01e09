"""The errors a user can cause, so that every entry point reports them alike.

The command line prints any `TimeMoeError` as one line and exits with status 2; in Python each is
also the built-in error that a caller would expect to catch.
"""

from collections.abc import Collection


class TimeMoeError(Exception):
    """Something the user gave is wrong; the message names what, and what would be right."""


class ConfigError(TimeMoeError, ValueError):
    """A configuration field is unknown, of the wrong type, or at odds with another."""


class DataError(TimeMoeError, ValueError):
    """A series, a file or a folder of series cannot be used as it is."""


class CheckpointError(TimeMoeError, ValueError):
    """A folder is no checkpoint, or what it holds is damaged or does not fit the model."""


class ForkError(TimeMoeError, RuntimeError):
    """A process was forked from one that had used JAX, and cannot use it."""


def listed(items: Collection[object], most: int = 8, separator: str = ", ") -> str:
    """Joins at most `most` items, and says how many more there are: "a, b and 3 more"."""
    shown = separator.join(str(item) for item in list(items)[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
