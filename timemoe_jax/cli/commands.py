"""What a command is: one entry of a table with its name, its help, its arguments and its function.

Functions import what they need when they run, so that neither a mistake on the command line nor
`--help` waits for JAX.
"""

import argparse
import difflib
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from timemoe_jax.cli.programs import fail

Argument = tuple[tuple[str, ...], dict[str, Any]]
WIDTH = 88  # columns of a description


class Command(NamedTuple):
    """One command; its own help begins with `help` as a sentence, followed by `more`.

    `examples` are command lines that the help ends with.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace], None]
    arguments: tuple[Argument, ...]
    more: str = ""
    examples: tuple[str, ...] = ()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions and examples, and shows the defaults of options."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.option_strings and action.default not in (None, False, "", [])
        if not shown or action.default is argparse.SUPPRESS or "default" in (action.help or ""):
            return action.help
        return f"{action.help or ''} (default: %(default)s)".strip()


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other mistake: one line, exit status 2.

    A misspelt command or option is named, with what was probably meant.
    """

    def error(self, message: str) -> NoReturn:
        """Ends the program with the message."""
        fail(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, unless an option is one of no command; else that one is reported first."""
        if not any(isinstance(each, argparse._SubParsersAction) for each in self._actions):
            self._check_options(args or ())
        return super().parse_known_args(args, namespace)

    def _check_options(self, args: Sequence[str]) -> None:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for argument in args:
            name = argument.split("=", 1)[0]
            if name == "--":
                return
            if name.startswith("--") and not any(each.startswith(name) for each in known):
                self.error(f"unknown option {name}{_meant(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(each) for each in action.choices]
            command = isinstance(action, argparse._SubParsersAction)
            raise argparse.ArgumentError(
                None if command else action,
                f"invalid choice: {value!r}{_meant(str(value), choices)} "
                f"(choose from {', '.join(choices)})",
            )


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def argument(*names: str, **options: Any) -> Argument:
    """An entry of `Command.arguments`: what `ArgumentParser.add_argument` takes.

    `group` is the title in the help under which the argument is listed.
    """
    return names, options


def subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction:
    """Makes a parser require one of several commands, which are added to the result."""
    return parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)


def add_commands(commands: argparse._SubParsersAction, table: Iterable[Command]) -> None:
    """Adds every command of a table."""
    for command in table:
        description = f"{command.help[0].upper()}{command.help[1:]}. {command.more}"
        lines = "".join(f"\n  {example}" for example in command.examples)
        parser = commands.add_parser(
            command.name,
            help=command.help,
            description=textwrap.fill(description, WIDTH),
            epilog=f"example{'s' * (len(command.examples) > 1)}:{lines}" if lines else None,
            formatter_class=_Formatter,
        )
        groups: dict[str, Any] = {}
        for names, options in command.arguments:
            title = options.get("group")
            if title is not None and title not in groups:
                groups[title] = parser.add_argument_group(title)
            taken = {name: value for name, value in options.items() if name != "group"}
            groups.get(title or "", parser).add_argument(*names, **taken)
        parser.set_defaults(run=command.run)
