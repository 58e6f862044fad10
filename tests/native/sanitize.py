"""The CPU kernels under sanitizers, driven without torch: `make sanitize`.

tests/native is built twice, with AddressSanitizer and UndefinedBehaviorSanitizer and with
ThreadSanitizer, and runs the short case list of every operation on each instruction set of this
machine. Before that, bugs planted in calls of the kernels prove that each sanitizer is at work and
that results are compared.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
PLANTS: Mapping[str, Mapping[str, str]] = {
    "address,undefined": {
        "overrun": "ERROR: AddressSanitizer",
        "overread": "ERROR: AddressSanitizer: heap-buffer-overflow",
        "overflow": "runtime error: signed integer overflow",
        "wrong": "FAILED",
    },
    "thread": {"race": "WARNING: ThreadSanitizer: data race", "wrong": "FAILED"},
}
"""By build the planted bugs, and what the driver must say before it fails of each."""
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def build(sanitizers: str) -> Path:
    """Configures and builds the driver; a second build is incremental."""
    folder = BUILD / sanitizers.replace(",", "-")
    # cmake and ninja that pip installed lie beside this Python, on PATH or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    ninja = shutil.which("ninja", path=path) or "ninja"
    werror = "ON" if os.environ.get("CWKERNELS_WERROR") == "1" else "OFF"
    for command in (
        [
            *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            *(f"-DCWKERNELS_SANITIZE={sanitizers}", f"-DCWKERNELS_WERROR={werror}"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
        ],
        ["cmake", "--build", str(folder)],
    ):
        result = subprocess.run(
            command,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise SystemExit(f"{result.stdout}\nsanitize: {' '.join(command)} failed")
    return folder / "driver"


def drive(driver: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the driver; its output holds stderr too."""
    return subprocess.run(
        [str(driver), *arguments],
        env=os.environ | OPTIONS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def check_plants(driver: Path, sanitizers: str, isa: str) -> None:
    """Each planted bug must make the driver fail and say why; without one it must pass."""
    clean = drive(driver, isa, "none")
    if clean.returncode != 0:
        raise SystemExit(f"{clean.stdout}\nsanitize: the driver fails without a planted bug")
    for plant, message in PLANTS[sanitizers].items():
        result = drive(driver, isa, plant)
        if result.returncode == 0 or message not in result.stdout:
            raise SystemExit(
                f"{result.stdout}\nsanitize: {sanitizers}, {isa}: the planted bug {plant!r} was "
                f"not found: wanted {message!r} and a failure, got exit code {result.returncode}"
            )


def main() -> int:
    """0 if every planted bug was found and the kernels have none."""
    for sanitizers, plants in PLANTS.items():
        start = time.perf_counter()
        driver = build(sanitizers)
        built = time.perf_counter()
        isas = drive(driver, "--isas").stdout.split()
        if not isas:
            raise SystemExit(f"sanitize: {driver} names no instruction set")
        for isa in isas:
            check_plants(driver, sanitizers, isa)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(partial(drive, driver), isas))
        for isa, result in zip(isas, results, strict=True):
            print(result.stdout, end="")
            if result.returncode != 0:
                raise SystemExit(f"sanitize: {sanitizers}, {isa}: exit code {result.returncode}")
        print(
            f"sanitize: {sanitizers}: {', '.join(plants)} found on {', '.join(isas)}; the kernels "
            f"pass ({built - start:.0f} s to build, {time.perf_counter() - built:.0f} s to run)",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
