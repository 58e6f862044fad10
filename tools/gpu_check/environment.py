"""The first stage: what this machine is, and which tests can run on it.

`python -m tools.gpu_check.environment DEVICE FILE`; exit code 1 where nothing else could run.
"""

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import cwkernels as cw
from bench.harness import describe_machine, write_json
from cwkernels.testing.devices import why_no_cuda
from cwkernels.testing.emulated import why_not_emulated

ROOT = Path(__file__).resolve().parents[2]

NO_TESTS = 5
"""pytest's exit code for a collection of none."""

_OPERATION = re.compile(r'^OPERATION = "(\w+)"', re.MULTILINE)
_COUNT = re.compile(r"^(tests/\S+\.py): (\d+)$", re.MULTILINE)


def describe(device: str) -> dict[str, Any]:
    """Machine, build, operations without a kernel, and for each file how many tests it has."""
    info = cw.build_info()
    on = torch.device("cuda" if device == "cuda" and torch.cuda.is_available() else "cpu")
    files = {
        path.relative_to(ROOT).as_posix(): operation
        for path in sorted(ROOT.glob("tests/*/test_*.py"))
        if (operation := operation_of(path)) is not None
    }
    reasons = {file: why_not(operation, device) for file, operation in files.items()}
    return {
        "device": device,
        "machine": asdict(describe_machine(on)),
        "gpus": [asdict(gpu) for gpu in info.gpus],
        "library": {"commit": info.commit, "archs": info.cuda_archs, "nvcc": info.nvcc},
        "without kernels": {file: reason for file, reason in reasons.items() if reason},
        "tests": count_tests([file for file, reason in reasons.items() if not reason], device),
    }


def operation_of(path: Path) -> str | None:
    """The operation that a file's tests move to the device, or None."""
    match = _OPERATION.search(path.read_text(encoding="utf-8"))
    return match[1] if match else None


def why_not(operation: str, device: str) -> str | None:
    """Why its tests cannot run on the device, or None."""
    return why_no_cuda(operation) if device == "cuda" else why_not_emulated(operation)


def count_tests(files: list[str], device: str) -> dict[str, int]:
    """The tests of each file that run on the device."""
    if not files:
        return {}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", f"--device={device}"]
    said = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    if said.returncode not in (0, NO_TESTS):
        raise SystemExit(f"pytest does not collect the tests:\n{said.stdout}{said.stderr}")
    return {file: int(count) for file, count in _COUNT.findall(said.stdout)}


def what_is_missing(found: dict[str, Any]) -> str:
    """Why nothing else could run, or nothing."""
    if found["device"] == "cuda":
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no usable GPU"
        if not any(gpu["runs"] for gpu in found["gpus"]):
            reasons = [gpu["reason"] for gpu in found["gpus"]] or ["nvidia-smi shows no GPU"]
            return f"the library does not run here: {'; '.join(reasons)}"
    return "" if found["tests"] else f"no operation has a kernel: {found['without kernels']}"


def main(device: str, file: str) -> int:
    """Writes the record and says what is missing."""
    found = describe(device)
    write_json(Path(file), found)
    missing = what_is_missing(found)
    print(missing or found["machine"])
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
