"""Every way to install, each in a clean environment: `python tools/check_installs.py`.

From a fresh clone of this checkout's last commit. What each way finds is printed, and compared with
what it must find. The environments see this Python's torch if it has one; an isolated build
downloads its own all the same.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import abi_check
import make_venv

ROOT = Path(__file__).parents[1]
PIP_NVCC = "cuda-toolkit[nvcc,cccl]==13.*"
# The oldest torch that is quick to download, where there is a build for the CPU only.
OLDER_TORCH = "torch==2.13.*\n"


def main() -> None:
    """Raises an error at the first way that does not work."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clone = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        constraint = folder / "constraint.txt"
        constraint.write_text(OLDER_TORCH)
        with way("pip install . (nvcc from pip, build isolation, newest torch)", folder) as python:
            # All of them in this environment: nvcc looks for the others beside itself.
            make_venv.install(python, "--ignore-installed", PIP_NVCC)
            pip(python, [str(clone)], without_nvcc(CWKERNELS_CUDA="1"))
            expect(python, folder, "nvcc found by pip")
        with way("pip install -e . (build isolation, torch 2.13)", folder) as python:
            pip(python, ["-e", str(clone)], {"PIP_BUILD_CONSTRAINT": str(constraint)})
            built = "nvcc found by" if shutil.which("nvcc") else "nvcc was not found on PATH"
            expect(python, folder, "against torch 2.13", built)
        with way("pip install --no-build-isolation . (CWKERNELS_CUDA=0)", folder) as python:
            make_venv.install(python, "--ignore-installed", *make_venv.BUILD_TOOLS)
            pip(python, ["--no-build-isolation", str(clone)], {"CWKERNELS_CUDA": "0"})
            expect(python, folder, "no: CWKERNELS_CUDA=0")
            commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone, text=True)
            print("== the same from the source distribution (no nvcc, no git)", flush=True)
            source = sdist(python, clone, folder)
            again = ["--no-build-isolation", "--force-reinstall", "--no-deps"]
            pip(python, [*again, str(source)], without_nvcc())
            expect(python, folder, "no: nvcc was not found on PATH", f"commit {commit[:12]}\n")


@contextmanager
def way(name: str, folder: Path) -> Iterator[Path]:
    """Names a way to install, makes its environment, and says how long it took."""
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    present = make_venv.importable_torch()
    target = folder / "venv"
    python = make_venv.create(target, present[1] if present else None)
    yield python
    shutil.rmtree(target)
    print(f"{name}: right, in {time.perf_counter() - start:.0f} s", flush=True)


def pip(python: Path, arguments: list[str], variables: dict[str, str]) -> None:
    """Installs as a user would, without the switches that this job was started with."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CWKERNELS_")}
    # Gigabytes of packages that an isolated build uses once are not worth compiling to bytecode.
    clean["PIP_NO_COMPILE"] = "1"
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(command, check=True, env=clean | variables)


def sdist(python: Path, clone: Path, folder: Path) -> Path:
    """Builds the source distribution in a folder."""
    command = [str(python), "setup.py", "--quiet", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=clone, check=True)
    return next(folder.glob("*.tar.gz"))


def without_nvcc(**variables: str) -> dict[str, str]:
    """An environment whose PATH has no nvcc."""
    path = [p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "nvcc").exists()]
    return {**variables, "PATH": os.pathsep.join(path)}


def expect(python: Path, folder: Path, *texts: str) -> None:
    """Runs what is installed, and looks for texts in what it says of itself."""
    said = abi_check.report(python, folder)
    missing = [text for text in texts if text not in said]
    assert not missing, f"`python -m cwkernels` did not say {missing}"


if __name__ == "__main__":
    main()
