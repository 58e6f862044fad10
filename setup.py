"""What pip runs: hands the build over to CMake and ninja. CMakeLists.txt describes it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MINIMUM_TORCH = (2, 10)


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


class CMakeBuild(build_ext):
    """Configures and builds `_C` in build/cmake, where a second build is incremental."""

    def run(self) -> None:
        build = ROOT / "build" / "cmake"
        target = (
            ROOT / "cwkernels" if self.inplace else Path(self.build_lib).resolve() / "cwkernels"
        )
        cuda = {"1": "ON", "0": "OFF"}.get(os.environ.get("CWKERNELS_CUDA", ""), "AUTO")
        options = {
            "TORCH_ROOT": torch_root(),
            "CWKERNELS_CUDA": cuda,
            "CWKERNELS_WERROR": "ON" if os.environ.get("CWKERNELS_WERROR") == "1" else "OFF",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
        }
        if archs := os.environ.get("CWKERNELS_CUDA_ARCHS"):
            options["CWKERNELS_CUDA_ARCHS"] = archs.replace(",", ";")
        configure = [f"-D{name}={value}" for name, value in options.items()]
        # cmake and ninja that pip installed lie beside this Python, on PATH or not.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = os.environ | {"PATH": path}
        for command in (
            ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *configure],
            ["cmake", "--build", build],
        ):
            subprocess.run(command, check=True, env=environment)
        if self.inplace:  # where editors look for it
            link = ROOT / "compile_commands.json"
            link.unlink(missing_ok=True)
            link.symlink_to(build.relative_to(ROOT) / link.name)

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / "cwkernels" / "_C.so")]


def commands() -> dict[str, type]:
    """`bdist_wheel` says that the file does not depend on Python's version or ABI."""
    from setuptools.command.bdist_wheel import bdist_wheel

    class StableWheel(bdist_wheel):
        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]

    return {"build_ext": CMakeBuild, "bdist_wheel": StableWheel}


if sys.platform != "linux":
    raise SystemExit(f"cwkernels: wanted Linux, got {sys.platform}")

setup(ext_modules=[Extension("cwkernels._C", sources=[])], cmdclass=commands())
