"""What pip runs: hands the build over to CMake and ninja. CMakeLists.txt describes it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent.resolve()
MINIMUM_TORCH = (2, 10)
CUDA_SWITCH = {"": "AUTO", "1": "ON", "0": "OFF"}
# A source distribution has no git: it carries the commit in this file.
COMMIT_FILE = "COMMIT"


def torch_root() -> Path:
    """The installed torch package, found without importing it (that takes seconds)."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("cwkernels: building needs torch >= 2.10, and none is installed here")
    root = Path(spec.origin).parent
    match = re.search(r"__version__ = '(\d+)\.(\d+)", (root / "version.py").read_text())
    if match is None or tuple(map(int, match.groups())) < MINIMUM_TORCH:
        found = ".".join(match.groups()) if match else "an unknown version"
        raise SystemExit(f"cwkernels: building needs torch >= 2.10, found {found} in {root}")
    return root


def commit() -> str:
    """The commit of these sources, "-dirty" behind it where they differ; "unknown" without git."""
    carried = ROOT / COMMIT_FILE
    if carried.exists():
        return carried.read_text().strip()
    if not (ROOT / ".git").exists():  # else git would answer for a repository around this folder
        return "unknown"
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.check_output(describe, cwd=ROOT, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def pip_nvcc_folders() -> list[Path]:
    """Where the nvcc of pip's packages would lie.

    In pip's isolated builds `sys.path` shows the build's own environment; `sysconfig` still names
    the one that is installed into.
    """
    spec = find_spec("nvidia")
    packages = [*(spec.submodule_search_locations or ())] if spec else []
    packages += [f"{sysconfig.get_path(name)}/nvidia" for name in ("purelib", "platlib")]
    return [Path(package) / "cu13" / "bin" for package in dict.fromkeys(packages)]


def cuda_switch() -> str:
    """CWKERNELS_CUDA as CMakeLists.txt takes it."""
    value = os.environ.get("CWKERNELS_CUDA", "")
    if value not in CUDA_SWITCH:
        raise SystemExit(
            "cwkernels: CWKERNELS_CUDA: wanted 1 (CUDA kernels or an error), 0 (none) or nothing "
            f"(where nvcc is found), got {value!r}"
        )
    return CUDA_SWITCH[value]


class CMakeBuild(build_ext):
    """Configures and builds `_C` in build/cmake, where a second build is incremental."""

    def run(self) -> None:
        build = ROOT / "build" / "cmake"
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        # cmake and ninja that pip installed lie beside this Python, on PATH or not.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        options = {
            "TORCH_ROOT": torch_root(),
            "CWKERNELS_CUDA": cuda_switch(),
            "CWKERNELS_CUDA_ARCHS": os.environ.get("CWKERNELS_CUDA_ARCHS", "").replace(",", ";"),
            "CWKERNELS_NVCC_HINTS": ";".join(map(str, pip_nvcc_folders())),
            "CWKERNELS_VERSION": self.distribution.get_version(),
            "CWKERNELS_COMMIT": commit(),
            "CWKERNELS_WERROR": "ON" if os.environ.get("CWKERNELS_WERROR") == "1" else "OFF",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": package / "cwkernels",
            # The one of an isolated build is gone at the next build.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=path) or "ninja",
        }
        configure = [f"-D{name}={value}" for name, value in options.items()]
        for command in (
            ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *configure],
            ["cmake", "--build", build],
        ):
            subprocess.run(command, check=True, env=os.environ | {"PATH": path})
        if self.inplace:  # where editors look for it
            link = ROOT / "compile_commands.json"
            link.unlink(missing_ok=True)
            link.symlink_to(build.relative_to(ROOT) / link.name)

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / "cwkernels" / "_C.so")]


class StableWheel(bdist_wheel):
    """A wheel whose name says that it does not depend on Python's version or ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class SourceWithCommit(sdist):
    """A source distribution that knows its commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / COMMIT_FILE).write_text(f"{commit()}\n")


if sys.platform != "linux":
    raise SystemExit(f"cwkernels: wanted Linux, got {sys.platform}")

setup(
    ext_modules=[Extension("cwkernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": StableWheel, "sdist": SourceWithCommit},
)
