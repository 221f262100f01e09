"""How every program of this library reports errors: in one line.

A mistake of the user's ends in one line on standard error and exit status 2, never in a traceback;
a defect of the library's keeps its traceback.
"""

import contextlib
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
        result = function()
        sys.stdout.flush()  # so that what cannot be written is known here
        return result
    except TimeMoeError as error:
        fail(error)
    except BrokenPipeError:
        _drop_output()  # whoever reads it has enough of it
    except OSError as error:
        named = "standard output" if error.filename is None else error.filename
        if error.filename is None:
            _drop_output()
        fail(f"{error.strerror or error}: {named}")


def _drop_output() -> None:
    """Lets what is left of the output go nowhere, where it cannot be written."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_utf8() -> None:
    """Makes standard output and standard error UTF-8, whatever the locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files may hold bytes that are no text.
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
