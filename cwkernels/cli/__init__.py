"""The command `cwkernels`: train, rank, evaluate, report, and what this machine can do.

Each command is a module of this package with `add_parser`, which describes it, and `run`, which
does it; only the one that was asked for is loaded.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol

from cwkernels._version import __version__

COMMANDS = {
    "train": "train a super-network, or go on with a run that was cut",
    "doctor": "say what this machine can do and what is missing",
    "bench": "run a benchmark of a checkout",
}
"""The commands, each a module of that name, and what it does in one line."""

FAILURES = (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError)
"""What the library raises where an argument, a file or a package is not as it must be."""


class Command(Protocol):
    """What the module of a command has."""

    def add_parser(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Does it; returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status, 2 with one line on stderr where it cannot.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(next((word for word in arguments if word in COMMANDS), None)).parse_args(
        arguments
    )
    try:
        return _load(options.command).run(options)
    except FAILURES as error:
        print(f"cwkernels {options.command}: {_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cwkernels {options.command}: interrupted", file=sys.stderr)
        return 130


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Every command with its line of help, and the arguments of the chosen one."""
    parser = argparse.ArgumentParser(prog="cwkernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"cwkernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, line in COMMANDS.items():
        own = commands.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.")
        if name == chosen:
            _load(name).add_parser(own)
    return parser


def _load(name: str) -> Command:
    module: Command = importlib.import_module(f"cwkernels.cli.{name}")
    return module


def _line(error: BaseException) -> str:
    """An error in one line; of a bare one, such as KeyError, its type too."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
