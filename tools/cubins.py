"""The CUDA kernels compiled for one architecture at a time; that needs nvcc and no GPU.

`compile_all` gives, for each source and architecture, what ptxas says of the kernels and a file of
their machine code. Both are kept below `build/cubins` until a source that they come from changes.
"""

import hashlib
import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHS = (80, 90)
"""What a build compiles for where there is no GPU to ask (cmake/cuda.cmake)."""
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-Xptxas=-v")

_INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Cubin:
    """One source for one architecture.

    Attributes:
        stem: the operation.
        arch: 80 for sm_80.
        path: the machine code.
        log: what ptxas says.
    """

    stem: str
    arch: int
    path: Path
    log: str


def compile_all(
    nvcc: str = "nvcc", root: Path = ROOT, archs: tuple[int, ...] = ARCHS
) -> list[Cubin]:
    """Every csrc/ops/*.cu for every architecture, as many at a time as there are cores.

    Raises:
        RuntimeError: with the compiler's own words, where a source does not compile.
    """
    folder = root / "build" / "cubins"
    folder.mkdir(parents=True, exist_ok=True)
    version = nvcc_version(nvcc)
    sources = sorted(root.glob("csrc/ops/*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(_compile, nvcc, version, source, arch, folder)
            for source in sources
            for arch in archs
        ]
        return [job.result() for job in jobs]


def nvcc_version(nvcc: str) -> str:
    """Such as "13.0.88": what the compiler decides about registers belongs to its version."""
    said = subprocess.check_output([nvcc, "--version"], text=True)
    match = re.search(r"\bV(\d+\.\d+\.\d+)", said)
    if match is None:
        raise RuntimeError(f"{nvcc} --version: wanted a version such as V13.0.88, got {said!r}")
    return match[1]


def sources_of(source: Path) -> list[Path]:
    """A source and the project's headers that it includes, those of headers too."""
    found = [source]
    for path in found:
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            header = (path.parent / name).resolve()
            # What is not there is another compiler's: nvcc never takes its branch.
            if header.exists() and header not in found:
                found.append(header)
    return found


def _compile(nvcc: str, version: str, source: Path, arch: int, folder: Path) -> Cubin:
    path = folder / f"{source.stem}.sm_{arch}.cubin"
    command = [nvcc, "-cubin", f"-gencode=arch=compute_{arch},code=sm_{arch}", *FLAGS]
    digest = hashlib.sha256(f"{version} {command[1:]}".encode())
    for read in sources_of(source):
        digest.update(read.read_bytes())
    record = path.with_suffix(".json")
    if path.exists() and record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["digest"] == digest.hexdigest():
            return Cubin(source.stem, arch, path, kept["log"])
    record.unlink(missing_ok=True)
    result = subprocess.run(
        [*command, "-o", str(path), str(source)], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} for sm_{arch} does not compile:\n{result.stderr}")
    record.write_text(json.dumps({"digest": digest.hexdigest(), "log": result.stderr}))
    return Cubin(source.stem, arch, path, result.stderr)
