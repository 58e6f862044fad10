"""`cwkernels report`: the paper's tables and figures from the records of runs."""

import argparse
from pathlib import Path

from cwkernels.report.write import write_report


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, once evaluated"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="write there (report)"
    )


def run(options: argparse.Namespace) -> int:
    """Writes them and names the files; returns 0."""
    for path in write_report(options.runs, options.out):
        print(path)
    return 0
