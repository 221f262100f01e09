"""Lines and bars on the console, once for all processes."""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from timemoe_jax.runtime import distributed


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar; in a log file, which nobody watches live, it writes a line now and then."""
    live = sys.stderr.isatty()
    return tqdm(dynamic_ncols=live, mininterval=0.1 if live else 20, **options)


def say(text: str, stream: Any = None) -> None:
    """Prints a line, once for all processes, without breaking a progress bar."""
    if distributed.is_primary():
        tqdm.write(text, file=stream or sys.stdout)
        (stream or sys.stdout).flush()


SLOW_SECONDS = 2.0
_watched = threading.local()


@contextlib.contextmanager
def watch(doing: Callable[[], str], quiet: bool = False) -> Iterator[None]:
    """Says what a call is doing, in one line on standard error, if it takes more than two seconds.

    Of calls within one another the outermost has the line, which says what the innermost does;
    `tell` replaces what it says. There is none where TIMEMOE_QUIET is set, or with `quiet`, for a
    call that shows a bar.
    """
    if getattr(_watched, "state", None) is not None:
        tell(doing)
        yield
        return
    state = {"doing": doing}
    _watched.state = state
    silent = quiet or bool(os.environ.get("TIMEMOE_QUIET"))
    timer = threading.Timer(SLOW_SECONDS, lambda: say(f"{state['doing']()} ...", sys.stderr))
    timer.daemon = True
    if not silent:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _watched.state = None


def watched(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose calls are watched as one, however many parts they have."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        with watch(lambda: "forecasting", quiet=bool(options.get("progress"))):
            return method(self, *args, **options)

    return call


def tell(doing: Callable[[], str]) -> None:
    """Changes what the line of the call that is watched will say, if it is not out yet."""
    if state := getattr(_watched, "state", None):
        state["doing"] = doing
