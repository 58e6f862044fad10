"""The hot kernels multiply by matrix instructions, and by those that they were written for.

`make sass` compiles the kernels, disassembles them and compares with csrc/matrix_kernels.json: that
names each kernel that uses matrix units, and the instructions of its instantiations. One that is
for a precision, `tile<Tf32, …>`, must have that precision's instruction.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.cubins import ROOT, Cubin, compile_all
from tools.kernel_names import demangled

LIST = ROOT / "csrc" / "matrix_kernels.json"
TF32, BF16 = "HMMA.1688.F32.TF32", "HMMA.16816.F32.BF16"
PRECISIONS: Mapping[str, str] = {"Tf32": TF32, "Tf32x3": TF32, "Bf16": TF32}
"""By the name of a precision in csrc/parts/mma.cuh: what lies as bf16 is multiplied as TF32."""

Found = Mapping[str, Mapping[str, frozenset[str]]]
"""By kernel, "stem/name<arguments>", and architecture: the matrix instructions in its code."""

_FUNCTION = re.compile(r"^\.text\.(\w+):$")
_MATRIX = re.compile(r"\b([HIDQ]?G?MMA\.[\w.]+)\b")


def instructions(code: str) -> dict[str, frozenset[str]]:
    """The matrix instructions of each function in what nvdisasm prints, by its mangled name."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in code.splitlines():
        if function := _FUNCTION.match(line):
            name = function[1]
            found[name] = set()
        elif name and (matrix := _MATRIX.search(line)):
            found[name].add(matrix[1])
    return {name: frozenset(each) for name, each in found.items()}


def disassemble(cubins: Iterable[Cubin], nvdisasm: str) -> Found:
    """What the kernels of these files have."""
    raw = [
        (cubin, instructions(subprocess.check_output([nvdisasm, "-c", cubin.path], text=True)))
        for cubin in cubins
    ]
    names = demangled(name for _, kernels in raw for name in kernels)
    found: dict[str, dict[str, frozenset[str]]] = {}
    for cubin, kernels in raw:
        for mangled, has in kernels.items():
            found.setdefault(f"{cubin.stem}/{names[mangled]}", {})[str(cubin.arch)] = has
    return found


def check(listed: Mapping[str, list[str]], found: Found) -> list[str]:
    """What is wrong, a line each."""
    lines = []
    unlisted: dict[str, set[str]] = {}
    for kernel, archs in sorted(found.items()):
        name, _, arguments = kernel.partition("<")
        for arch, has in sorted(archs.items()):
            where = f"{kernel} on sm_{arch}"
            for precision in re.findall(r"\w+", arguments):
                wanted = PRECISIONS.get(precision)
                if wanted is not None and wanted not in has:
                    lines.append(f"{where}: wanted {wanted}, got {_text(has)}")
            unlisted.setdefault(name, set()).update(has - set(listed.get(name, ())))
    lines += [
        f"{name}: has {_text(more)}, which the list does not name"
        for name, more in unlisted.items()
        if more
    ]
    for name, wanted_of_some in sorted(listed.items()):
        all_of_name = [
            has
            for kernel, archs in found.items()
            if _name(kernel) == name
            for has in archs.values()
        ]
        if not all_of_name:
            lines.append(f"{name}: in the list, but no source has it")
            continue
        for instruction in wanted_of_some:
            if not any(instruction in has for has in all_of_name):
                lines.append(f"{name}: wanted {instruction} in one of its instantiations")
    return lines


def find_nvdisasm() -> str | None:
    """On PATH, or among pip's packages."""
    if (found := shutil.which("nvdisasm")) is not None:
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in Path(folder).glob("cu*/bin/nvdisasm"):
            return str(path)
    return None


def main() -> int:
    """0 if all kernels are as listed."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise SystemExit("sass: there is no nvdisasm: pip install 'cwkernels[gates]'")
    found = disassemble(compile_all(), nvdisasm)
    wrong = check(json.loads(LIST.read_text(encoding="utf-8")), found)
    matrix = sum(any(archs.values()) for archs in found.values())
    print("\n".join(wrong) or f"{len(found)} kernels, {matrix} with matrix instructions, as listed")
    if wrong:
        print(f"the list is {LIST.relative_to(ROOT)}")
    return 1 if wrong else 0


def _name(kernel: str) -> str:
    return kernel.partition("<")[0]


def _text(instructions: Iterable[str]) -> str:
    return ", ".join(sorted(instructions)) or "none"


if __name__ == "__main__":
    sys.exit(main())
