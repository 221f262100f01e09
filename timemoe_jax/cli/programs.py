"""How every program of this library reports errors: in one line.

A mistake of the user's ends in one line on standard error and exit status 2, never in a traceback;
a defect of the library's keeps its traceback.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from timemoe_jax.errors import TimeMoeError

USER_ERROR = 2


def fail(error: BaseException | str) -> NoReturn:
    """Prints an error on one line and exits with status 2."""
    message = " ".join(str(error).split())
    print(f"error: {message or type(error).__name__}", file=sys.stderr, flush=True)
    raise SystemExit(USER_ERROR)


def report_errors(function: Callable[[], Any]) -> Any:
    """Calls a function; a mistake of the user's ends the program with one line.

    Warnings are one line each, too, without the line of code that they come from.
    """
    warnings.showwarning = _show_warning
    try:
        return function()
    except TimeMoeError as error:
        fail(error)
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        fail(f"{error.strerror}: {error.filename}")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
