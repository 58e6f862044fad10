"""`cwkernels bench`: the benchmarks of a checkout."""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, if this is one."""

NAMES = ("overhead", "peers", "kernels", "scaling", "phases", "floor")


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", choices=NAMES, help="which one: python -m bench.NAME")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own, such as --help")


def run(options: argparse.Namespace) -> int:
    """Runs it; its exit status."""
    if not (ROOT / "bench" / f"{options.name}.py").is_file():
        wanted = "a checkout of cwkernels, where the benchmarks are"
        raise FileNotFoundError(f"bench: wanted {wanted}, got an installed package in {ROOT}")
    command = [sys.executable, "-m", f"bench.{options.name}", *options.arguments]
    return subprocess.run(command, cwd=ROOT).returncode
