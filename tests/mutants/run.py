"""Runs every planted bug against the test that must kill it: `make mutants`.

Each runs in a copy of the checkout; a test that passes in spite of its bug fails the run.
`python tests/mutants/run.py emulated` runs those of one kind: native, emulated, python or
training.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from emulated import EMULATED
from mutant import Mutant
from native import NATIVE
from python import PYTHON
from ranking import RANKING
from training import TRAINING

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
Trial = Callable[[Path, tuple[Mutant, ...]], int]
CHOICE = "CWK_MUTANT"
NO_SPINNING = {"OMP_WAIT_POLICY": "passive"}
"""For trials side by side: threads that spin at barriers would take each other's cores."""
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


def plant(target: Path, mutants: tuple[Mutant, ...]) -> None:
    """Puts bugs into the copy, to be chosen at run time by their number from 1 on."""
    for number, mutant in enumerate(mutants, start=1):
        new = mutant.new.replace("MUTANT", f"(mutant() == {number})")
        edit(target / mutant.file, mutant.old, new)


def plant_native(target: Path) -> None:
    """Puts all native bugs into the copy, and builds it."""
    simd = target / "csrc" / "parts" / "simd.h"
    edit(simd, "#define CWK_INLINE inline", DECLARATION % "CWK_ISA" + "#define CWK_INLINE inline")
    for file in {mutant.file for mutant in NATIVE if mutant.file.startswith("csrc/binding/")}:
        source = target / file
        source.write_text(DECLARATION % "inline planted" + source.read_text())
    plant(target, NATIVE)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = os.environ | {"CWKERNELS_CUDA": "0"}
    subprocess.run(command, cwd=target, check=True, env=environment)


def plant_emulated(target: Path) -> None:
    """Puts all bugs of the CUDA kernels into the copy, and builds the emulator's library of it."""
    header = target / "tests" / "emulator" / "emulator.h"
    edit(header, "#include <cstring>", "#include <cstring>" + DECLARATION % "inline planted")
    plant(target, EMULATED)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    build = str(target / "build" / "cmake")
    options = [f"-DTORCH_ROOT={Path(spec.origin).parent}", "-DCWKERNELS_CUDA=OFF"]
    for command in (
        ["cmake", "-S", str(target), "-B", build, "-G", "Ninja", *options],
        ["cmake", "--build", build, "--target", "_emulated"],
    ):
        subprocess.run(
            command, check=True, env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL
        )


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


def try_planted(target: Path, mutants: tuple[Mutant, ...]) -> int:
    """How many of the mutants that were planted in the copy survive."""
    if not survives(target, mutants[0], {CHOICE: "0"}):
        raise SystemExit("mutants: the tests fail without a mutant")

    def trial(number: int) -> bool:
        return survives(target, mutants[number - 1], {CHOICE: str(number)} | NO_SPINNING)

    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        numbers = range(1, len(mutants) + 1)
        for mutant, survived in zip(mutants, pool.map(trial, numbers), strict=True):
            survivors += survived
            report(mutant, survived)
    return survivors


def try_edited(target: Path, mutants: tuple[Mutant, ...]) -> int:
    """How many of the mutants survive that are put into the copy one after the other."""
    survivors = 0
    for mutant in mutants:
        path = target / mutant.file
        original = path.read_text()
        edit(path, mutant.old, mutant.new)
        survived = survives(target, mutant, {})
        path.write_text(original)
        survivors += survived
        report(mutant, survived)
    return survivors


KINDS: dict[str, tuple[tuple[Mutant, ...], Callable[[Path], None], Trial]] = {
    "native": (NATIVE, plant_native, try_planted),
    "emulated": (EMULATED, plant_emulated, try_planted),
    "python": ((*PYTHON, *RANKING), lambda target: None, try_edited),
    "training": (TRAINING, lambda target: None, try_edited),
}


def main(arguments: Sequence[str]) -> int:
    """0 if every mutant of the kinds named was killed and the tests pass without one."""
    total = survivors = 0
    for kind in arguments or KINDS:
        mutants, prepare, trial = KINDS[kind]
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "copy"
            target.mkdir()
            copy_checkout(target)
            prepare(target)
            survivors += trial(target, mutants)
        total += len(mutants)
    print(f"mutants: {total - survivors} killed, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
