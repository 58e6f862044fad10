"""Gathers what the machine with a GPU may lack: `python -m tools.gpu_check.kit`, with network.

Below build/gpu_check: compute-sanitizer's wheel, pure-Python wheels of what the tests need, and the
program of the fragment tables, compiled by nvcc. That folder, cwkernels/_C.so and the checkout are
all that is copied there. `unpack` makes it usable on that machine, without pip and network.
"""

import argparse
import importlib.util
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tools.cubins import ARCHS, ROOT

KIT = ROOT / "build" / "gpu_check"
MOST_BYTES = 64 * 2**20
"""Of kit and library together: what the machine takes beside the checkout must fit."""
SANITIZER = "nvidia-cuda-sanitizer-api"
SANITIZER_VERSIONS = ">=13.4,<14"
"""Wheels before 13.4 lack the program that starts what is watched."""
TEST_MODULES = {
    "pytest": "pytest",
    "pluggy": "pluggy",
    "iniconfig": "iniconfig",
    "packaging": "packaging",
    "pygments": "pygments",
    "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis",
    "sortedcontainers": "sortedcontainers",
    "tqdm": "tqdm",
}
"""What tests and benchmarks import, and which package has it."""
FRAGMENTS = "tests/oracles/fragments.cu"


def make(folder: Path = KIT) -> None:
    """Fills the folder anew.

    Raises:
        SystemExit: where the library has no CUDA kernels or all is too large to be copied.
    """
    fetch_wheels(folder)
    compile_fragments(folder / "fragments")
    library = ROOT / "cwkernels" / "_C.so"
    if not cuda_archs():
        raise SystemExit(f"gpu_check: {library} has no CUDA kernels: CWKERNELS_CUDA=1 make build")
    size = sum(path.stat().st_size for path in (library, *folder.rglob("*")) if path.is_file())
    if size > MOST_BYTES:
        raise SystemExit(f"gpu_check: kit and library are {size} bytes, {MOST_BYTES} can be copied")
    print(f"{folder}: with the library {size / 2**20:.1f} MiB")


def fetch_wheels(folder: Path = KIT) -> None:
    """Fills the folder anew with the wheels alone, which is all that a dry run needs."""
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    download += ["--only-binary=:all:", "--dest", str(wheels)]
    subprocess.run([*download, f"{SANITIZER}{SANITIZER_VERSIONS}"], check=True)
    # "any": what does not depend on this machine's Python.
    subprocess.run([*download, "--platform=any", *TEST_MODULES.values()], check=True)


def compile_fragments(program: Path, nvcc: str = "nvcc") -> None:
    """The program of the fragment tables, for every architecture and as PTX."""
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    codes.append(f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}")
    subprocess.run([nvcc, "-std=c++17", "-O3", *codes, ROOT / FRAGMENTS, "-o", program], check=True)


def cuda_archs() -> str:
    """What the built library has CUDA kernels for; empty if it has none."""
    code = "import torch, cwkernels.ops; print(torch.ops.cwkernels.build_config())"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    archs: str = json.loads(said)["cuda_archs"]
    return archs


def unpack(kit: Path, site: Path) -> Path | None:
    """Unpacks into `site` what this Python cannot import; compute-sanitizer, or None without it."""
    site.mkdir(parents=True, exist_ok=True)
    for module, package in TEST_MODULES.items():
        if importlib.util.find_spec(module) is None:
            for wheel in _wheels(kit, package):
                zipfile.ZipFile(wheel).extractall(site)
    for wheel in _wheels(kit, SANITIZER):
        return unpack_sanitizer(wheel, site)
    return None


def unpack_sanitizer(wheel: Path, site: Path) -> Path:
    """The program, unpacked with what it loads; a wheel says nothing of who may run what."""
    zipfile.ZipFile(wheel).extractall(site)
    (program,) = site.glob("nvidia/cu*/compute-sanitizer/compute-sanitizer")
    for path in program.parent.rglob("*"):
        if path.is_file() and (path.name == program.name or path.name.startswith("TreeLauncher")):
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return program


def _wheels(kit: Path, package: str) -> list[Path]:
    prefix = package.replace("-", "_").lower()
    return [
        wheel
        for wheel in sorted(kit.glob("wheels/*.whl"))
        if wheel.name.partition("-")[0].lower() == prefix
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the kit."""
    parser = argparse.ArgumentParser(description=__doc__, prog="gpu_check.kit")
    parser.add_argument("--wheels", action="store_true", help="only those: enough for a dry run")
    fetch_wheels() if parser.parse_args(arguments).wheels else make()
    return 0


if __name__ == "__main__":
    sys.exit(main())
