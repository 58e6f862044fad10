"""Builds the emulator: the library of the emulated kernels, and the planted bugs.

build/cmake holds the plain build beside the extension's, build/emulated one for each kind of
sanitizer. `make emulated` builds what the tests need, `make emulate` the sanitized kernels too.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS: Mapping[str, Path] = {
    "": ROOT / "build" / "cmake" / "emulator",
    "address,undefined": ROOT / "build" / "emulated" / "address-undefined" / "emulator",
    "thread": ROOT / "build" / "emulated" / "thread" / "emulator",
}
"""By sanitizers, where the library and the planted bugs lie."""


def build(sanitizers: str, *targets: str) -> str | None:
    """Builds targets with these sanitizers; what the build said, if it failed."""
    folder = FOLDERS[sanitizers].parent
    # cmake and ninja that pip installed lie beside this Python, on PATH or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder)]
    if sanitizers:
        spec = find_spec("torch")
        assert spec is not None
        assert spec.origin is not None
        configure += [
            *("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=path) or 'ninja'}"),
            *("-DCWKERNELS_CUDA=OFF", f"-DTORCH_ROOT={Path(spec.origin).parent}"),
            f"-DCWKERNELS_EMULATED_SANITIZE={sanitizers}",
        ]
    for command in (configure, ["cmake", "--build", str(folder), "--target", *targets]):
        result = subprocess.run(
            command,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            return f"{result.stdout}\nemulator: {' '.join(command)} failed"
    return None


def main(arguments: Sequence[str]) -> int:
    """With "all", the sanitized kernels too. Without their runtimes, only what is plain."""
    failure = build("", "_emulated", "plants", "fragments")
    if failure is not None:
        raise SystemExit(failure)
    for sanitizers in filter(None, FOLDERS):
        targets = ["_emulated", "plants"] if "all" in arguments else ["plants"]
        failure = build(sanitizers, *targets)
        if failure is not None:
            if "all" in arguments or "its runtimes" not in failure:
                raise SystemExit(failure)
            print(f"emulator: nothing with -fsanitize={sanitizers}: its runtimes are not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
