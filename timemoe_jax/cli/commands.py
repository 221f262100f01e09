"""What a command is: one entry of a table with its name, its help, its arguments and its function.

Functions import what they need when they run, so that neither a mistake on the command line nor
`--help` waits for JAX.
"""

import argparse
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

from timemoe_jax.cli.programs import fail

Argument = tuple[tuple[str, ...], dict[str, Any]]


class Command(NamedTuple):
    """One command; its own help begins with `help` as a sentence, followed by `more`."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], None]
    arguments: tuple[Argument, ...]
    more: str = ""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other mistake: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with the message."""
        fail(f"{message}; see {self.prog} --help")


def argument(*names: str, **options: Any) -> Argument:
    """An entry of `Command.arguments`: what `ArgumentParser.add_argument` takes."""
    return names, options


def subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction:
    """Makes a parser require one of several commands, which are added to the result."""
    return parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)


def add_commands(commands: argparse._SubParsersAction, table: Iterable[Command]) -> None:
    """Adds every command of a table."""
    for command in table:
        description = f"{command.help[0].upper()}{command.help[1:]}. {command.more}"
        parser = commands.add_parser(command.name, help=command.help, description=description)
        for names, options in command.arguments:
            parser.add_argument(*names, **options)
        parser.set_defaults(run=command.run)
