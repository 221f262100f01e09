"""Programs that a config drives: flags to a typed config, fields by `--config.section.field`."""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from timemoe_jax.cli.config_files import find_config, load_config, make_importable
from timemoe_jax.cli.programs import INTERRUPTED, fail, report_errors
from timemoe_jax.config import from_mapping
from timemoe_jax.errors import ConfigError
from timemoe_jax.runtime import host_memory

Flags = Sequence[tuple[str, str]]  # names, and their help


class Program(NamedTuple):
    """A program: what it runs as `run(config, *values of the further flags)`.

    The `ConfigDict` of `--config` becomes a `config_class`. Further flags are texts; an optional
    one that is not given is None. `usage` is what `--help` prints. `on_failure` is called with the
    exception that ends `run`; a mistake of the user's has been printed by then, and is a
    `SystemExit`.
    """

    config_class: type[Any]
    run: Callable[..., Any]
    usage: str
    required_flags: Flags = ()
    optional_flags: Flags = ()
    on_failure: Callable[[BaseException], None] | None = None


def start(program: Program, argv: Sequence[str] | None = None) -> None:
    """Runs a program with the arguments after its name, by default those of the process.

    It ends by `SystemExit`: with status 0, 2 for a mistake of the user's, or 130 for Ctrl-C.
    """
    from absl import app, flags
    from absl import logging as absl_logging
    from ml_collections import config_flags

    arguments = _with_files([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        "The name of a config that comes along, or a file; a field is set as "
        "--config.section.field=value.",
        sys_argv=arguments,
    )
    required = [flags.DEFINE_string(name, None, text) for name, text in program.required_flags]
    optional = [flags.DEFINE_string(name, None, text) for name, text in program.optional_flags]

    def parse(_: Sequence[str]) -> list[str]:
        if {"--help", "-h", "-help"} & {*arguments[1:]}:
            print(program.usage)
            for flag in (config, *required, *optional):
                print(f"--{flag.name}\n    {flags.FLAGS[flag.name].help}")
            raise SystemExit(0)
        try:
            rest = flags.FLAGS(arguments)
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            fail(_field_error(arguments) or error)
        missing = [flag.name for flag in (config, *required) if flag.value is None]
        if missing:
            fail(f"missing {', '.join('--' + name for name in missing)}; see --help")
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; fields are set as --config.section.field=value")
        return rest

    def main(_: Sequence[str]) -> None:
        host_memory.keep_freed_memory()
        fields = dict(config.value.items())
        _run(program, fields, [flag.value for flag in (*required, *optional)])

    # JAX logs each backend that it did not find, which on a CPU is all of them.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    # A program prints its choices itself; the library's log is for programs that embed it.
    absl_logging.set_verbosity(absl_logging.WARNING)
    sys.modules["__main__"].__doc__ = program.usage
    app.run(main, argv=arguments, flags_parser=parse)


def _run(program: Program, fields: dict[str, Any], values: list[str | None]) -> None:
    """Runs a program; Ctrl-C ends it with a line and its own status, never with a traceback."""

    def run() -> None:
        try:
            program.run(from_mapping(program.config_class, fields), *values)
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from interrupt

    try:
        report_errors(run)
    except BaseException as error:
        # One with a message has ended in order, after all processes of a run have saved.
        in_order = isinstance(error.__cause__, KeyboardInterrupt) and str(error.__cause__)
        if program.on_failure is not None and not in_order:
            program.on_failure(error)
        raise


def _with_files(arguments: list[str]) -> list[str]:
    """The arguments with the file of the config for its name, and of one named behind a colon."""
    make_importable()
    found = list(arguments)
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            found[i] = f"{flag}={_file(value)}"
        elif flag in ("--config", "-config") and i + 1 < len(arguments):
            found[i + 1] = _file(arguments[i + 1])
    return found


def _file(value: str) -> str:
    if os.path.isfile(value):
        return value
    name, colon, argument = value.partition(":")
    return f"{report_errors(lambda: find_config(name))}{colon}{argument}"


def _field_error(arguments: list[str]) -> ConfigError | None:
    """The error of the first field set that the config does not have, by its full name."""
    from ml_collections import ConfigDict

    values = [a.partition("=")[2] for a in arguments if a.startswith(("--config=", "-config="))]
    if not values:
        return None
    name, colon, argument = values[-1].partition(":")
    try:
        config = load_config(name, *([argument] if colon else []))
    except Exception:  # it has been reported by what was tried before this
        return None
    for each in arguments:
        if not each.lstrip("-").startswith("config."):
            continue
        section, where = config, "config"
        for field in each.lstrip("-").partition("=")[0].split(".")[1:]:
            if not isinstance(section, ConfigDict):
                return ConfigError(f"{where} is one value and has no fields, such as {field!r}")
            if field not in section:
                return ConfigError(
                    f"{where} has no field {field!r}; {_hint(field, section, where)}"
                )
            section, where = section[field], f"{where}.{field}"
    return None


def _hint(field: str, section: Any, where: str) -> str:
    """What may have been meant: a field of a name like it, or the same one in another section."""
    names = {name: f"{where}.{name}" for name in section}
    inner = {n: f"{where}.{s}.{n}" for s, v in section.items() if hasattr(v, "items") for n in v}
    for known, least in ((names, 0.6), (inner, 0.9)):
        if close := difflib.get_close_matches(field, list(known), n=1, cutoff=least):
            return f"did you mean {known[close[0]]}?"
    return f"known: {', '.join(section)}"
