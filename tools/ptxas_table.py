"""Registers, stack, spills and shared memory of each kernel against csrc/registers.json.

`make ptxas` fails where a kernel needs more or less than the committed table says, so that a change
shows in review, and for any spill. `python tools/ptxas_table.py --update` renews the table.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.cubins import ROOT, Cubin, compile_all, nvcc_version
from tools.kernel_names import demangled

TABLE = ROOT / "csrc" / "registers.json"

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Usage:
    """What one kernel needs on one architecture: registers a thread, and bytes.

    Shared memory is what is declared in the source; what a launch asks for is beside the kernel.
    """

    registers: int
    stack: int
    spills: int
    shared: int


Table = Mapping[str, Mapping[str, Usage]]
"""By kernel, "stem/name<arguments>", and architecture, "80"."""


def parse(log: str) -> dict[str, Usage]:
    """What `ptxas -v` says of each kernel, by its mangled name."""
    found: dict[str, Usage] = {}
    name, stack, spills = "", 0, 0
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, stack, spills = entry[1], 0, 0
        elif frame := _FRAME.search(line):
            stack, spills = int(frame[1]), int(frame[2]) + int(frame[3])
        elif name and (used := _USED.search(line)):
            shared = _SHARED.search(line)
            found[name] = Usage(int(used[1]), stack, spills, int(shared[1]) if shared else 0)
            name = ""  # what follows is of functions that are no kernels
    return found


def table_of(cubins: Iterable[Cubin]) -> Table:
    """The table of what was compiled."""
    parsed = [(cubin, parse(cubin.log)) for cubin in cubins]
    names = demangled(name for _, kernels in parsed for name in kernels)
    table: dict[str, dict[str, Usage]] = {}
    for cubin, kernels in parsed:
        for mangled, usage in kernels.items():
            table.setdefault(f"{cubin.stem}/{names[mangled]}", {})[str(cubin.arch)] = usage
    return dict(sorted(table.items()))


def differences(committed: Table, found: Table) -> list[str]:
    """One line for each kernel and number that differs."""
    lines = []
    for kernel in sorted({*committed, *found}):
        if kernel not in found:
            lines.append(f"{kernel}: in the table, but no source has it")
        elif kernel not in committed:
            lines.append(f"{kernel}: new, not in the table")
        else:
            lines += _changes(kernel, committed[kernel], found[kernel])
    return lines


def spills(found: Table) -> list[str]:
    """One line for each kernel that spills, whatever the table says."""
    return [
        f"{kernel} on sm_{arch}: spills {usage.spills} bytes"
        for kernel, archs in found.items()
        for arch, usage in archs.items()
        if usage.spills
    ]


def read(path: Path) -> tuple[str, Table]:
    """The nvcc that a table is of, and the table."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["nvcc"], {
        kernel: {arch: Usage(*numbers) for arch, numbers in archs.items()}
        for kernel, archs in content["kernels"].items()
    }


def write(path: Path, nvcc: str, table: Table) -> None:
    """A line for each kernel, so that a change of one is a line of a diff."""
    numbers = {
        kernel: {arch: astuple(usage) for arch, usage in archs.items()}
        for kernel, archs in table.items()
    }
    rows = [f"  {json.dumps(kernel)}: {json.dumps(row)}" for kernel, row in numbers.items()]
    columns = json.dumps([field.name for field in fields(Usage)])
    text = f'{{\n "nvcc": {json.dumps(nvcc)},\n "columns": {columns},\n "kernels": {{\n'
    path.write_text(text + ",\n".join(rows) + "\n }\n}\n", encoding="utf-8")


def check(committed: tuple[str, Table], version: str, found: Table) -> list[str]:
    """What is wrong with what was compiled; registers are comparable under one nvcc only."""
    of, table = committed
    return spills(found) + (differences(table, found) if of == version else [])


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is as the table says."""
    parser = argparse.ArgumentParser(description=__doc__, prog="ptxas_table")
    parser.add_argument("--update", action="store_true", help="write the table anew")
    options = parser.parse_args(arguments)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        parser.error("there is no nvcc on PATH")
    version, found = nvcc_version(nvcc), table_of(compile_all(nvcc))
    if options.update:
        write(TABLE, version, found)
    committed = read(TABLE)
    wrong = check(committed, version, found)
    print("\n".join(wrong) or f"{len(found)} kernels, none spills")
    if committed[0] != version:
        print(f"only spills were looked at: the table is of nvcc {committed[0]}, this is {version}")
    elif differences(committed[1], found):
        print("if changes are meant: python tools/ptxas_table.py --update, and commit the table")
    else:
        print("all numbers are those of csrc/registers.json")
    return 1 if wrong else 0


def _changes(kernel: str, before: Mapping[str, Usage], after: Mapping[str, Usage]) -> list[str]:
    lines = []
    for arch in sorted({*before, *after}):
        if arch not in before or arch not in after:
            lines.append(f"{kernel} on sm_{arch}: {'new' if arch in after else 'gone'}")
            continue
        changed = [
            f"{field.name} {old} → {new}"
            for field in fields(Usage)
            if (old := getattr(before[arch], field.name))
            != (new := getattr(after[arch], field.name))
        ]
        if changed:
            lines.append(f"{kernel} on sm_{arch}: {', '.join(changed)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
