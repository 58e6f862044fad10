"""Kernels as people name them: `copy_rows_kernel<CopyWord>` for a mangled name."""

import re
import subprocess
from collections.abc import Iterable, Mapping

_NAMESPACES = re.compile(r"\bcwkernels::|\(anonymous namespace\)::")
_TYPED_NUMBER = re.compile(r"\((?:unsigned |long )*(?:int|long|char|short)\)(-?\d+)")
_BOOL = {"(bool)0": "false", "(bool)1": "true"}


def demangled(names: Iterable[str]) -> Mapping[str, str]:
    """The short name of each mangled one, by binutils' c++filt."""
    ordered = sorted(set(names))
    if not ordered:
        return {}
    said = subprocess.run(
        ["c++filt"], input="\n".join(ordered), capture_output=True, text=True, check=True
    )
    return dict(zip(ordered, map(short, said.stdout.splitlines()), strict=True))


def short(name: str) -> str:
    """A demangled name without return type, parameters and our namespace."""
    name = _without_parameters(name)
    for typed, plain in _BOOL.items():
        name = name.replace(typed, plain)
    name = _NAMESPACES.sub("", _TYPED_NUMBER.sub(r"\1", name))
    return name.removeprefix("void ").replace("> >", ">>")


def _without_parameters(name: str) -> str:
    """A template's arguments may hold parentheses; the parameters are the last ones."""
    if not name.endswith(")"):
        return name
    depth = 0
    for i in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[i], 0)
        if depth == 0:
            return name[:i]
    return name
