"""The command line of `bench/overhead.py`; it loads no torch."""

import argparse
import importlib.util
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cwkernels.report.paper import TABLE_1

NETWORKS = tuple(TABLE_1)
_EXAMPLES = """\
examples:
  python -m bench.overhead                             all four networks, under three minutes
  python -m bench.overhead --networks macro --steps 80 one network, 80 timed steps of each
  python -m bench.overhead --json run.json --plot run.png
  python -m bench.overhead --long                      every part of the memory in its own column
"""


@dataclass(frozen=True)
class Options:
    """The command line; None means: to be decided on the device at hand."""

    networks: tuple[str, ...]
    batch: int | None
    steps: int | None
    device: str | None
    json: Path | None
    plot: Path | None
    long: bool


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and leave with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help shows the options)\n")

    def add_networks(self) -> None:
        """The option that says which networks."""
        self.add_argument(
            "--networks",
            type=network_names,
            default=NETWORKS,
            metavar="NAMES",
            help=f"which, separated by commas (default: {','.join(NETWORKS)})",
        )

    def add_counts(self, counts: Iterable[tuple[str, int, str]]) -> None:
        """An option for each number of at least 1: name, default, what it counts."""
        for name, default, what in counts:
            text = f"{what} ({default})"
            self.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=text)


def parse(parser: Parser, arguments: Sequence[str] | None) -> Options:
    """The options, once all that can be known without torch is checked."""
    options = Options(**vars(parser.parse_args(arguments)))
    if options.plot is not None and options.plot.suffix != ".png":
        parser.error(f"--plot: wanted a name that ends in .png, got {options.plot}")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot: needs matplotlib: pip install 'cwkernels[bench]'")
    check_file(parser, "--json", options.json)
    check_file(parser, "--plot", options.plot)
    return options


def check_file(parser: Parser, option: str, path: Path | None) -> None:
    """An error if there is no directory in which to write this file."""
    if path is not None and not path.absolute().parent.is_dir():
        parser.error(f"{option}: no such directory: {path.parent}")
    if path is not None and path.is_dir():
        parser.error(f"{option}: a directory, not a file: {path}")


def make_parser() -> Parser:
    """The parser of all options."""
    parser = Parser(
        prog="overhead",
        description="What conditional weights cost, in the form of the paper's table 1.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_networks()
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="images in a step (default: 64 on a CPU, 256 on a GPU)",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="timed steps of each contestant and network, rounded up to whole rounds over the "
        "architectures, two at least (default: as many as under three minutes allow)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "emulated"),
        help="where to train (default: the GPU if cwkernels has kernels for it, else the CPU)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the overheads")
    parser.add_argument(
        "--long", action="store_true", help="also print every part of the memory (a minute more)"
    )
    return parser


def network_names(text: str) -> tuple[str, ...]:
    """Networks, separated by commas."""
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"wanted some of {', '.join(NETWORKS)}, got {unknown[0]!r}"
        )
    return names


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"wanted a whole number above zero, got {text!r}")
    return int(text)


def command_line(module: str, arguments: Sequence[str]) -> str:
    """How to repeat a measurement: the command without the files that it wrote."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--json", "--plot"):
            next(rest)
        elif not argument.startswith(("--json=", "--plot=")):
            kept.append(argument)
    return shlex.join(["python", "-m", module, *kept])
