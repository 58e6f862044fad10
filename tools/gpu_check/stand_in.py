"""Stands in for compute-sanitizer on a dry run: takes its options, runs the command, finds nothing.

`python -m tools.gpu_check.stand_in --tool memcheck … python -m pytest …`
"""

import subprocess
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """The command's exit code, after the summary that the tool would print."""
    rest = list(arguments)
    while rest and rest[0].startswith("--"):
        rest = rest[2:]
    code = subprocess.run(rest, check=False).returncode
    print("========= ERROR SUMMARY: 0 errors (a stand-in: nothing was watched)")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
