"""How every program of this library starts: flags to a typed config, errors to one line.

A mistake of the user's ends in one line on standard error and exit status 2, never in a traceback;
a defect of the library's keeps its traceback.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from timemoe_jax.config import from_mapping
from timemoe_jax.errors import TimeMoeError
from timemoe_jax.runtime import host_memory

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


def config_main(
    cls: type[Any],
    run: Callable[..., Any],
    usage: str,
    required_flags: Sequence[tuple[str, str]] = (),
    optional_flags: Sequence[tuple[str, str]] = (),
    on_failure: Callable[[BaseException], None] | None = None,
) -> None:
    """Runs a program that is driven by a config file: `run(config, *values of the further flags)`.

    The `ConfigDict` of `--config` becomes a `cls`. Further flags are texts, each given as its name
    and its help; an optional one that is not given is None. `usage` is what `--help` prints.
    `on_failure` is called with the exception that ends `run`; a mistake of the user's has been
    printed by then, and is a `SystemExit`.
    """
    from absl import app, flags
    from absl import logging as absl_logging
    from ml_collections import config_flags

    config = config_flags.DEFINE_config_file(
        "config", None, "A file of configs/; override a field as --config.section.field=value."
    )
    required = [flags.DEFINE_string(name, None, text) for name, text in required_flags]
    extra = required + [flags.DEFINE_string(name, None, text) for name, text in optional_flags]

    def parse(argv: Sequence[str]) -> list[str]:
        if {"--help", "-h", "-help"} & {*argv[1:]}:
            print(usage)
            for flag in (config, *extra):
                print(f"--{flag.name}\n    {flags.FLAGS[flag.name].help}")
            raise SystemExit(0)
        try:
            rest = flags.FLAGS(list(argv))
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            fail(error)
        missing = [flag.name for flag in (config, *required) if flag.value is None]
        if missing:
            fail(f"missing {', '.join('--' + name for name in missing)}; see --help")
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; fields are set as --config.section.field=value")
        return rest

    def main(_: Sequence[str]) -> None:
        host_memory.keep_freed_memory()
        values = [flag.value for flag in extra]
        try:
            fields = dict(config.value.items())
        except OSError as error:  # an absent file fails only when its config is first read
            fail(f"--config cannot be loaded: {str(error).splitlines()[-1]}")
        try:
            report_errors(lambda: run(from_mapping(cls, fields), *values))
        except BaseException as error:
            if on_failure is not None:
                on_failure(error)
            raise

    # JAX logs each backend that it did not find, which on a CPU is all of them.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    # A program prints its choices itself; the library's log is for programs that embed it.
    absl_logging.set_verbosity(absl_logging.WARNING)
    sys.modules["__main__"].__doc__ = usage
    app.run(main, flags_parser=parse)
