"""An extension that does not fit is an ImportError that says why, and never a crash."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cwkernels._version import __version__
from cwkernels.ops import _library
from cwkernels.testing import refused

PACKAGE = Path(_library.__file__).parents[1]
FIX = "build it here with `pip install --force-reinstall --no-deps .`"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of the extension that a test may spoil."""
    return Path(shutil.copy(_library.LIBRARY, tmp_path))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "cwkernels", ignore=ignored))


def run_copy(package: Path, *arguments: str) -> str:
    """What Python says of a copy; it must end by itself, whatever the extension is."""
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
    )
    assert result.returncode == 1, result
    return result.stderr


def compiled(source: str, library: Path) -> None:
    """A shared library in the extension's place."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)


def test_a_whole_file_has_no_fault() -> None:
    assert _library.file_fault(_library.LIBRARY) is None


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_a_truncated_file(library: Path, part: float) -> None:
    size = library.stat().st_size
    left = int(size * part)
    os.truncate(library, left)
    reason = f"it is truncated: wanted {size} bytes, got {left}"
    with refused(ImportError, f"cwkernels: {library} does not load: {reason}: {FIX}"):
        _library.load(library)


def test_a_truncated_file_does_not_crash_python(package: Path) -> None:
    os.truncate(package / "_C.so", (package / "_C.so").stat().st_size // 2)
    assert "ImportError: cwkernels: " in run_copy(package, "-c", "import cwkernels.ops")


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n" * 20, b"\x7fELF\x01" * 20])
def test_a_file_that_is_no_library(library: Path, content: bytes) -> None:
    library.write_bytes(content)
    reason = "does not load: it is not a 64-bit little-endian ELF file"
    with refused(ImportError, f"cwkernels: {library} {reason}: {FIX}"):
        _library.load(library)


@pytest.mark.parametrize(("number", "name"), [(183, "aarch64"), (22, "processor 22")])
def test_a_library_of_another_processor(library: Path, number: int, name: str) -> None:
    data = bytearray(library.read_bytes())
    struct.pack_into("<H", data, 18, number)
    library.write_bytes(data)
    reason = f"does not load: it is for {name}, and this machine is {os.uname().machine}"
    with refused(ImportError, f"cwkernels: {library} {reason}: {FIX}"):
        _library.load(library)


def test_a_symbol_that_this_torch_lacks(library: Path) -> None:
    library.unlink()
    compiled('extern "C" void of_another(); void* f = (void*)of_another;', library)
    with pytest.raises(ImportError) as error:
        _library.load(library)
    assert f"cwkernels: {library} does not load: torch 2." in str(error.value)
    assert "undefined symbol: of_another" in str(error.value)
    assert FIX in str(error.value)


def test_a_library_without_our_operations(package: Path) -> None:
    (package / "_C.so").unlink()
    compiled("int nothing;", package / "_C.so")
    error = run_copy(package, "-c", "import cwkernels.ops")
    assert f"_C.so: wanted version {__version__}, got unknown: {FIX}" in error


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "__version__", "9.9")
    file = _library.LIBRARY
    with refused(ImportError, f"cwkernels: {file}: wanted version 9.9, got {__version__}: {FIX}"):
        _library.load(file)


def fewer(bank: object, rows: object) -> None: ...


def more(bank: object, rows: object, start: object, dense_grad: object) -> None: ...


@pytest.mark.parametrize(
    ("name", "fake", "wanted", "got"),
    [
        ("copy_all", fewer, "copy_all(bank, rows)", "no such operation"),
        ("copy_rows", fewer, "copy_rows(bank, rows)", "copy_rows(bank, rows, dense_grad)"),
        (
            "copy_rows",
            more,
            "copy_rows(bank, rows, start, dense_grad)",
            "copy_rows(bank, rows, dense_grad)",
        ),
    ],
)
def test_a_library_older_than_the_code(
    name: str, fake: Callable[..., None], wanted: str, got: str
) -> None:
    start = f"cwkernels: {_library.LIBRARY} was built from other sources than this package's: "
    with refused(ImportError, f"{start}wanted {wanted}, got {got}: {FIX}"):
        _library.register_fake(name)(fake)


def test_python_m_prints_the_reason_alone(package: Path) -> None:
    (package / "_C.so").unlink()
    error = run_copy(package, "-m", "cwkernels")
    assert error.startswith(f"cwkernels: no compiled extension at {package}/_C.so: build it with")
    assert error.count("\n") == 1


def test_the_library_needs_nothing_that_a_torch_for_the_cpu_lacks() -> None:
    """One file loads on every torch: what CUDA's calls need is looked up when they are made."""
    command = ["nm", "--dynamic", "--undefined-only", str(_library.LIBRARY)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = {line.split()[-1] for line in output.splitlines()}
    assert "aoti_torch_call_dispatcher" in needed or "torch_call_dispatcher" in needed
    # A constant of the stable interface, which every torch has.
    of_cuda = {name for name in needed if "cuda" in name.lower()} - {"aoti_torch_device_type_cuda"}
    assert not of_cuda
    assert "torch_stream_native_handle" not in needed
