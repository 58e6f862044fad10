"""One file for every torch: `python tools/abi_check.py dist/cwkernels-….whl newest 2.13 2.10`.

For each version: a virtual environment with that torch and the wheel, `python -m cwkernels` and the
smoke test. "newest" is what pip would install now; where this Python imports the same one, that is
used. PyPI has no builds of torch for the CPU only: where pip is configured to find one elsewhere,
`torch==2.13.*` takes it, and otherwise the CUDA build, which brings gigabytes along.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import make_venv

SMOKE = Path(__file__).with_name("smoke.py")


def main(wheel: Path, versions: list[str]) -> None:
    """Raises an error at the first thing that is wrong."""
    check_contents(wheel)
    for version in versions:
        requirement = "torch" if version == "newest" else f"torch=={version}.*"
        with tempfile.TemporaryDirectory() as folder:
            print(f"== {requirement}", flush=True)
            start = time.perf_counter()
            python = environment(Path(folder) / "venv", requirement)
            make_venv.install(python, "--no-deps", str(wheel.resolve()))
            seconds = time.perf_counter() - start
            report(python, Path(folder))
            print(f"{wheel.name} fits {requirement}, installed in {seconds:.0f} s", flush=True)


def check_contents(wheel: Path) -> None:
    """A wheel holds the package and nothing else, and its name says what it does not depend on."""
    machine = platform.machine()
    assert wheel.name.endswith(f"-py3-none-linux_{machine}.whl"), wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    strangers = [
        name
        for name in names
        if not (name.startswith("cwkernels/") and name.endswith((".py", "/_C.so", "/py.typed")))
        and ".dist-info/" not in name
    ]
    assert not strangers, f"{wheel}: wanted the package only, got {strangers}"
    wanted = {
        f"cwkernels/{name}" for name in ("_C.so", "py.typed", "__main__.py", "ops/backend.py")
    }
    assert wanted <= set(names), f"{wheel}: {wanted - set(names)} are missing"
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB", flush=True)


def environment(target: Path, requirement: str) -> Path:
    """A virtual environment with a torch, this Python's if that is the one which pip chooses."""
    present = make_venv.importable_torch()
    if present is not None and present[0].partition("+")[0] == resolved(requirement):
        return make_venv.create(target, present[1])
    python = make_venv.create(target, None)
    make_venv.install(python, requirement, "numpy")
    return python


def resolved(requirement: str) -> str:
    """The version that pip would install, without what follows its "+"."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    answer = subprocess.check_output([*command, "--no-deps", "--report", "-", requirement])
    version: str = json.loads(answer)["install"][0]["metadata"]["version"]
    return version.partition("+")[0]


def report(python: Path, folder: Path) -> str:
    """Prints what an environment's cwkernels says of itself, and that it computes right.

    Args:
        python: the environment's.
        folder: where to run: no package may lie there.
    """
    said = subprocess.check_output([python, "-m", "cwkernels"], cwd=folder, text=True)
    print(said.partition("operations\n")[0], end="", flush=True)
    subprocess.run([python, SMOKE], cwd=folder, check=True)
    return said


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
