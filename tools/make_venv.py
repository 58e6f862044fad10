"""Makes the virtual environment of `make`: `python tools/make_venv.py .venv`.

If the Python that runs this imports a torch that is new enough, the environment uses that one;
otherwise it installs torch and torchvision. It says which.
"""

import importlib.util
import re
import subprocess
import sys
import venv
from pathlib import Path

MINIMUM = (2, 10)
# What a build without isolation needs, beside torch.
BUILD_TOOLS = ("setuptools>=77", "wheel", "cmake>=3.25", "ninja")


def importable_torch() -> tuple[str, Path] | None:
    """Version and site-packages folder of the torch that this Python imports, if it does."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    found = re.search(r"__version__ = '([^']+)'", (package / "version.py").read_text())
    return (found.group(1), package.parent) if found else None


def new_enough(version: str) -> bool:
    """Whether a version has the stable ABI that the extension targets."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) >= MINIMUM


def create(target: Path, behind: Path | None) -> Path:
    """Makes an environment and returns its Python.

    Args:
        target: its folder.
        behind: site-packages folder whose packages are seen behind the environment's own.
    """
    venv.create(target, with_pip=True, clear=True)
    if behind is not None:
        own = next((target / "lib").glob("python*")) / "site-packages"
        (own / "torch_of_parent.pth").write_text(f"{behind}\n")
    python = target / "bin" / "python"
    install(python, "--upgrade", "pip")
    return python


def install(python: Path, *arguments: str) -> None:
    """Runs pip."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)


def main(target: Path) -> None:
    """Makes the environment in `target`."""
    present = importable_torch()
    reused = present if present is not None and new_enough(present[0]) else None
    if reused is not None:
        print(f"cwkernels: {target} uses torch {reused[0]} of {reused[1]}", flush=True)
    else:
        why = "no torch here" if present is None else f"torch {present[0]} is older than 2.10"
        print(f"cwkernels: {why}: installing torch and torchvision into {target}", flush=True)
    python = create(target, reused[1] if reused else None)
    if reused is None:
        install(python, "torch", "torchvision")
    # The environment's own, even where the parent has them: their programs must lie in its bin.
    install(python, "--ignore-installed", *BUILD_TOOLS, "ruff", "mypy")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
