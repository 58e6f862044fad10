"""The long run of the emulated kernels: `make emulate`.

The tests that take a device run on the emulator once for each line of RUNS: under sanitizers, whose
runtimes are loaded before Python, with several seeds, and with the limits of other devices. That is
an hour; arguments go to pytest, and CI runs a part (`--sample 0.03`).
"""

import os
import subprocess
import sys
import time

import build

RUNS = (
    ("", "90:3:0"),
    ("", "90:1:2"),
    ("", "80:3:3"),
    ("", "86:2:4"),
    ("address,undefined", "90:3:5"),
    ("address,undefined", "86:3:6"),
    ("thread", "90:3:7"),
    ("thread", "80:2:8"),
)
"""Sanitizers, and CWKERNELS_EMULATOR: capability, processors, seed."""
RUNTIMES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}
# Leaks are Python's; torch's own threads order what they do by means that are not seen.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
}

PYTEST = (sys.executable, "-m", "pytest", "-q", "-s", "--timeout=1800", "-k", "emulated")


def preload(sanitizers: str) -> str:
    """Paths of the runtimes; that of C++ with them, or exceptions would escape the others."""
    compiler = os.environ.get("CXX", "c++")
    names = [RUNTIMES[sanitizers], "libstdc++.so.6"] if sanitizers else []
    found = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in names
    ]
    return " ".join(found)


def main() -> int:
    """0 if every run passes."""
    build.main(["all"])
    for sanitizers, device in RUNS:
        start = time.perf_counter()
        environment = os.environ | {
            "CWKERNELS_EMULATED_LIBRARY": str(build.FOLDERS[sanitizers] / "_emulated.so"),
            "CWKERNELS_EMULATOR": device,
        }
        if sanitizers:
            environment |= OPTIONS | {"LD_PRELOAD": preload(sanitizers)}
        result = subprocess.run(
            # What a sanitizer says is on stderr, which pytest would keep to itself.
            [*PYTEST, *sys.argv[1:]],
            cwd=build.ROOT,
            env=environment,
            check=False,
        )
        what = f"emulate: {sanitizers or 'plain'}, {device}"
        if result.returncode != 0:
            raise SystemExit(f"{what}: exit code {result.returncode}")
        print(f"{what}: passed in {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
