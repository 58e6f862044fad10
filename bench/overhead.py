"""What conditional weights cost in time and memory, in the form of the paper's table 1.

Run it from the repository's root: `python -m bench.overhead`, or `python bench/overhead.py`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # A script's path starts with bench/, not with the directory that holds it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.options import make_parser, parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print; the exit code is 2 if the arguments ask for what cannot be done."""
    parser = make_parser()
    options = parse(parser, arguments)
    set_environment()
    from bench.run import UsageError, run  # loads torch, which must find the environment set

    try:
        run(options)
    except UsageError as error:
        parser.error(str(error))
    return 0


def set_environment() -> None:
    """Settings that count only before torch is loaded."""
    # Threads that wander between cores cost a step several percent, now here, now there.
    os.environ.setdefault("OMP_PROC_BIND", "true")
    # The profiler, which counts allocations, else writes its own log to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


if __name__ == "__main__":
    sys.exit(main())
