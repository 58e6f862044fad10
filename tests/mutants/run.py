"""Runs every planted bug against the test that must kill it: `make mutants`.

Each runs in a copy of the checkout; a test that passes in spite of its bug fails the run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutant import Mutant
from native import NATIVE
from python import PYTHON

ROOT = Path(__file__).parents[2]
PARTS = (
    "cwkernels",
    "cmake",
    "csrc",
    "tests",
    "bench",
    "pyproject.toml",
    "setup.py",
    "CMakeLists.txt",
    "README.md",
    "LICENSE",
)
CHOICE = "CWK_MUTANT"
DECLARATION = f"""
#include <cstdlib>
namespace cwkernels::%s {{
inline int mutant() {{
  static const int chosen = std::getenv("{CHOICE}") ? std::atoi(std::getenv("{CHOICE}")) : 0;
  return chosen;
}}
}}
"""


def copy_checkout(target: Path) -> None:
    """What the tests need; the built extension comes along."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / part, ignore=ignored)
        else:
            shutil.copy2(source, target / part)
    data = ROOT.parent / "shared"
    if data.exists():
        (target.parent / "shared").symlink_to(data)


def edit(path: Path, old: str, new: str) -> None:
    """Replaces a text that must stand in the file exactly once."""
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"mutants: {path}: {old!r} stands there {text.count(old)} times")
    path.write_text(text.replace(old, new))


def plant_native(target: Path) -> None:
    """Puts all native bugs into the copy, to be chosen at run time, and builds it."""
    simd = target / "csrc" / "parts" / "simd.h"
    edit(simd, "#define CWK_INLINE inline", DECLARATION % "CWK_ISA" + "#define CWK_INLINE inline")
    for file in {mutant.file for mutant in NATIVE if mutant.file.startswith("csrc/binding/")}:
        source = target / file
        source.write_text(DECLARATION % "inline planted" + source.read_text())
    for number, mutant in enumerate(NATIVE, start=1):
        new = mutant.new.replace("MUTANT", f"(mutant() == {number})")
        edit(target / mutant.file, mutant.old, new)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = os.environ | {"CWKERNELS_CUDA": "0"}
    subprocess.run(command, cwd=target, check=True, env=environment)


def survives(target: Path, mutant: Mutant, environment: dict[str, str]) -> bool:
    """Whether the mutant's test passes in the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.test]
    result = subprocess.run(
        command, cwd=target, env=os.environ | environment, capture_output=True, text=True
    )
    if result.returncode not in (0, 1):
        raise SystemExit(f"mutants: {mutant.name}: pytest failed to run\n{result.stdout}")
    return result.returncode == 0


def report(mutant: Mutant, survived: bool) -> None:
    """One line."""
    print(f"{'SURVIVED' if survived else 'killed  '}  {mutant.name}", flush=True)


def main() -> int:
    """0 if every mutant was killed and the tests pass without one."""
    survivors = 0
    with tempfile.TemporaryDirectory() as scratch:
        native, python = Path(scratch) / "native" / "copy", Path(scratch) / "python" / "copy"
        for target in (native, python):
            target.mkdir(parents=True)
            copy_checkout(target)
        plant_native(native)
        if not survives(native, NATIVE[0], {CHOICE: "0"}):
            raise SystemExit("mutants: the tests fail without a mutant")
        for number, mutant in enumerate(NATIVE, start=1):
            survived = survives(native, mutant, {CHOICE: str(number)})
            survivors += survived
            report(mutant, survived)
        for mutant in PYTHON:
            path = python / mutant.file
            original = path.read_text()
            edit(path, mutant.old, mutant.new)
            survived = survives(python, mutant, {})
            path.write_text(original)
            survivors += survived
            report(mutant, survived)
    killed = len(NATIVE) + len(PYTHON) - survivors
    print(f"mutants: {killed} killed, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
