"""How every program of this library reports errors: in one line.

A mistake of the user's ends in one line on standard error and exit status 2, never in a traceback;
a defect of the library's keeps its traceback.
"""

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from timemoe_jax.errors import TimeMoeError

USER_ERROR = 2
INTERRUPTED = 130  # as a shell has it for a program that Ctrl-C ended


def fail(error: BaseException | str) -> NoReturn:
    """Prints an error on one line and exits with status 2."""
    message = " ".join(str(error).split())
    print(f"error: {message or type(error).__name__}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR)


def report_errors(function: Callable[[], Any]) -> Any:
    """Calls a function; a mistake of the user's ends the program with one line.

    Warnings are one line each, too, without the line of code that they come from. What is printed
    is UTF-8, whatever the locale.
    """
    _write_utf8()
    warnings.showwarning = _show_warning
    try:
        return function()
    except TimeMoeError as error:
        fail(error)
    except BrokenPipeError:
        # Whoever read the output has enough of it; nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        named = "" if error.filename is None else f": {error.filename}"
        fail(f"{error.strerror or error}{named}")


def _write_utf8() -> None:
    """Makes standard output and standard error UTF-8, whatever the locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files may hold bytes that are no text.
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
