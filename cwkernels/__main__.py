"""`python -m cwkernels` prints what was built and what this machine runs of it."""

import sys

import cwkernels as cw


def main() -> int:
    """Prints it; returns the exit status, 1 if the extension does not load."""
    try:
        print(cw.build_info())
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
