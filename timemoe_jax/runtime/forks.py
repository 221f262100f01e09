"""Whether this process was forked from one that had used JAX, which then never answers."""

import os

from timemoe_jax.errors import ForkError

_used = _forked = False


def check() -> None:
    """Notes that this process uses JAX from now on.

    Raises:
      ForkError: it was forked from a process that had: JAX's threads are not in the copy, and
        whatever waits for them would wait for ever.
    """
    global _used
    if _forked:
        raise ForkError(
            "this process was forked after JAX was used, and would hang; start workers by "
            "multiprocessing.get_context('spawn') (a Forecaster pickles), or fork before the "
            "first forecast"
        )
    _used = True


def _after_fork() -> None:
    global _forked
    _forked = _forked or _used


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
