"""Loads the extension, once, with errors that name what is wrong."""

import re
from pathlib import Path

import torch

LIBRARY = Path(__file__).parents[1] / "_C.so"
MINIMUM_TORCH = (2, 10)


def check_torch(version: str) -> None:
    """Raises ImportError if `version` is older than the stable ABI that the extension targets."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or tuple(map(int, found.groups())) < MINIMUM_TORCH:
        raise ImportError(f"cwkernels: wanted torch >= 2.10, got {version}")


def load(library: Path) -> None:
    """Registers the operations of the compiled extension with torch."""
    if not library.exists():
        raise ImportError(
            f"cwkernels: no compiled extension at {library}: "
            "build it with `pip install .` (or `make build` in a checkout)"
        )
    torch.ops.load_library(str(library))


check_torch(torch.__version__)
load(LIBRARY)
