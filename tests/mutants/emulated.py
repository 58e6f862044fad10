"""Planted bugs of the CUDA kernels, chosen at run time: one list, `MUTANTS`, for each operation."""

from importlib import import_module
from pathlib import Path

from mutant import Mutant

_LISTS = sorted(path.stem for path in Path(__file__).parent.glob("emulated_*.py"))

EMULATED: tuple[Mutant, ...] = tuple(
    mutant for name in _LISTS for mutant in import_module(name).MUTANTS
)
