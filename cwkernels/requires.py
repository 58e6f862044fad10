"""Packages that only some commands need: imported where they are used, a named error if absent."""

import importlib
from typing import Any


def module(name: str, operation: str) -> Any:
    """Imports a module of the extra ``nas``.

    Args:
        name: as in an import statement, say ``"scipy.stats"``.
        operation: what needs it, for the error.

    Raises:
        ImportError: if its package is not installed, in one line.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{operation}: wanted the package {package}, got none: pip install 'cwkernels[nas]'"
        ) from error
