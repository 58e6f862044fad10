"""The build says the truth about what it found. Configured with CMake only: nothing is compiled."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
SYSTEM_PATH = "/usr/bin:/bin"
NVCC = shutil.which("nvcc")

needs_cmake = pytest.mark.skipif(
    not (PROGRAMS / "cmake").exists(), reason="there is no cmake beside this Python"
)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc on PATH")
without_nvcc = pytest.mark.skipif(
    shutil.which("nvcc", path=SYSTEM_PATH) is not None, reason=f"nvcc is in {SYSTEM_PATH}"
)
pytestmark = needs_cmake


def configure(
    build: Path, *options: str, path: str = SYSTEM_PATH, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs CMake on this checkout with a clean environment."""
    command = [
        str(PROGRAMS / "cmake"),
        *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={PROGRAMS / 'ninja'}",
        f"-DTORCH_ROOT={Path(torch.__file__).parent}",
        *(f"-D{option}" for option in options),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PATH": path, **variables}, check=False
    )


def config(build: Path) -> dict[str, str]:
    """What the extension's build_config() would say."""
    header = (build / "generated" / "build_config.h").read_text()
    parsed: dict[str, str] = json.loads("".join(re.findall(r'R"\((.*)\)"', header)))
    return parsed


def flat(text: str) -> str:
    """CMake breaks the lines of its messages."""
    return " ".join(text.split())


def program(path: Path, script: str) -> Path:
    """A shell script in place of a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    """The machine's nvcc in a folder of its own."""
    return program(tmp_path / "toolkit" / "bin" / "nvcc", f'exec {NVCC} "$@"')


@without_nvcc
def test_without_nvcc_the_build_is_for_the_cpu_and_says_so(tmp_path: Path) -> None:
    result = configure(tmp_path)
    assert result.returncode == 0, result.stderr
    why = "nvcc was not found on PATH or among pip's packages, and neither CUDACXX nor CUDA_HOME"
    assert f"cwkernels: CUDA kernels: no ({why} is set)" in result.stdout
    found = config(tmp_path)
    assert (found["cuda_archs"], found["nvcc"]) == ("", "")
    assert found["cuda_why"] == f"{why} is set"
    assert found["torch"] == torch.__version__


@needs_nvcc
def test_with_nvcc_and_no_gpu_cuda_is_built(tmp_path: Path, nvcc: Path) -> None:
    result = configure(tmp_path, path=f"{nvcc.parent}:{SYSTEM_PATH}")
    assert result.returncode == 0, result.stderr
    assert f"cwkernels: CUDA kernels: yes (nvcc found by PATH: {nvcc}, " in result.stdout
    found = config(tmp_path)
    assert found["cuda_why"] == "nvcc found by PATH"
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["nvcc"])
    assert (found["cuda_archs"], found["cuda_archs_why"]) == ("80,90", "the default")
    commands = (tmp_path / "compile_commands.json").read_text()
    assert "-gencode=arch=compute_80,code=sm_80" in commands
    assert "-gencode=arch=compute_90,code=compute_90" in commands
    assert "CWK_WITH_CUDA=1" in commands


@needs_nvcc
@pytest.mark.parametrize("source", ["CUDACXX", "CUDA_HOME", "pip"])
def test_other_places_of_nvcc(tmp_path: Path, nvcc: Path, source: str) -> None:
    variables = {"CUDACXX": str(nvcc), "CUDA_HOME": str(nvcc.parents[1])}
    options = [f"CWKERNELS_NVCC_HINTS=/nowhere;{nvcc.parent}"] if source == "pip" else []
    environment = {source: variables[source]} if source in variables else {}
    result = configure(tmp_path, *options, **environment)
    assert result.returncode == 0, result.stderr
    assert f"CUDA kernels: yes (nvcc found by {source}: {nvcc}, " in result.stdout
    assert f"{nvcc} " in (tmp_path / "compile_commands.json").read_text()


@needs_nvcc
def test_another_nvcc_in_the_same_build_folder(tmp_path: Path, nvcc: Path) -> None:
    other = program(tmp_path / "other" / "nvcc", f'exec {NVCC} "$@"')
    for chosen in (nvcc, other):
        configure(tmp_path / "build", CUDACXX=str(chosen))
        commands = (tmp_path / "build" / "compile_commands.json").read_text()
        assert f'"{chosen} ' in commands


@needs_nvcc
def test_cuda_left_out(tmp_path: Path, nvcc: Path) -> None:
    result = configure(tmp_path, "CWKERNELS_CUDA=OFF", path=f"{nvcc.parent}:{SYSTEM_PATH}")
    assert "cwkernels: CUDA kernels: no (CWKERNELS_CUDA=0)" in result.stdout
    assert config(tmp_path)["cuda_why"] == "CWKERNELS_CUDA=0"
    assert "-gencode" not in (tmp_path / "compile_commands.json").read_text()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for tests that differ in what CMake asks anew each time."""
    return tmp_path_factory.mktemp("shared")


@needs_nvcc
@pytest.mark.parametrize(
    ("nvidia_smi", "archs", "why"),
    [
        (r"printf '9.0\n8.6\n9.0\n'", "86,90", "the visible GPU's"),
        ("echo 7.5", "80,90", "the default"),
        ("echo 99.0", "80,90", "the default"),
        ("echo 9.0; exit 9", "80,90", "the default"),
        ("echo No devices were found", "80,90", "the default"),
    ],
    ids=["two-kinds", "too-old", "newer-than-nvcc", "no-driver", "no-gpu"],
)
def test_architectures_are_those_of_the_visible_gpu(
    shared: Path, nvidia_smi: str, archs: str, why: str
) -> None:
    smi = program(shared / "bin" / "nvidia-smi", nvidia_smi)
    result = configure(shared, path=f"{smi.parent}:{SYSTEM_PATH}", CUDACXX=str(NVCC))
    assert f"for {archs} and PTX: {why})" in result.stdout
    found = config(shared)
    assert (found["cuda_archs"], found["cuda_archs_why"]) == (archs, why)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["CWKERNELS_CUDA_ARCHS=80;sm_90"],
            "CWKERNELS_CUDA_ARCHS: wanted numbers such as 80,90, got '80;sm_90'",
        ),
        (["CWKERNELS_CUDA=yes"], "CWKERNELS_CUDA: wanted ON, OFF or AUTO, got 'yes'"),
        (["TORCH_ROOT=/nowhere"], "needs torch >= 2.10: no stable-ABI headers under '/nowhere'"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: Sequence[str], error: str) -> None:
    result = configure(tmp_path, *options)
    assert result.returncode != 0
    assert error in flat(result.stderr)


def test_other_processors_get_the_baseline_only(tmp_path: Path) -> None:
    cross = ("CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64", "CWKERNELS_CUDA=OFF")
    result = configure(tmp_path, *cross)
    assert "cwkernels: CPU kernels: baseline (aarch64)" in result.stdout
    assert config(tmp_path)["cpu_isas"] == "baseline"
    assert "-mavx" not in (tmp_path / "compile_commands.json").read_text()


def test_only_what_gives_the_commit_is_compiled_for_a_new_one(tmp_path: Path) -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*.*") if path.suffix != ".in"]
    readers = [path.name for path in sources if "build_config.h" in path.read_text()]
    assert readers == ["module.cpp"]
    options = ("CWKERNELS_CUDA=OFF", "CWKERNELS_COMMIT=abc")
    configure(tmp_path, *options)
    header = tmp_path / "generated" / "build_config.h"
    os.utime(header, (0, 0))
    configure(tmp_path, *options)
    assert header.stat().st_mtime == 0
    configure(tmp_path, "CWKERNELS_COMMIT=def")
    assert config(tmp_path)["commit"] == "def"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs: setup.py keeps its build folder beside itself."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt"):
        shutil.copy(ROOT / name, copy)
    for name in ("cmake", "csrc"):
        shutil.copytree(ROOT / name, copy / name)
    (copy / "cwkernels").mkdir()
    shutil.copy(ROOT / "cwkernels" / "_version.py", copy / "cwkernels")
    return copy


def setup(sources: Path, variables: Mapping[str, str]) -> str:
    """What a build that must fail says."""
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        capture_output=True,
        text=True,
        cwd=sources,
        env={"PATH": SYSTEM_PATH, **variables},
        check=False,
    )
    assert result.returncode != 0
    return flat(result.stderr)


@without_nvcc
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "nvcc was not found on PATH or among pip's packages, and neither"),
        ({"CUDACXX": "/nowhere/nvcc"}, "CUDACXX is '/nowhere/nvcc', and there is no nvcc."),
        ({"CUDA_HOME": "/nowhere"}, "CUDA_HOME is '/nowhere', and there is no nvcc."),
    ],
    ids=["nothing", "CUDACXX", "CUDA_HOME"],
)
def test_cuda_asked_for_without_nvcc(
    sources: Path, variables: Mapping[str, str], reason: str
) -> None:
    error = setup(sources, {"CWKERNELS_CUDA": "1", **variables})
    assert f"CWKERNELS_CUDA=1, but {reason}" in error
    assert (
        "Put nvcc on PATH, or set CUDACXX to it, or install pip's: python -m pip install" in error
    )


@pytest.mark.parametrize("value", ["2", "ON", "yes"])
def test_another_value_of_the_switch(sources: Path, value: str) -> None:
    error = setup(sources, {"CWKERNELS_CUDA": value})
    assert "cwkernels: CWKERNELS_CUDA: wanted 1 (CUDA kernels or an error), 0 (none)" in error
    assert error.endswith(f"got {value!r}")


def test_the_built_extension_knows_its_commit() -> None:
    built = json.loads(torch.ops.cwkernels.build_config())["commit"]
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown", built)


def test_missing_sanitizer_runtimes_are_an_error(tmp_path: Path) -> None:
    compiler = program(
        tmp_path / "c++", 'case "$*" in *-fsanitize=thread*) exit 1;; esac; exec c++ "$@"'
    )
    for sanitizers, code in (("address,undefined", 0), ("thread", 1)):
        options = (f"CMAKE_CXX_COMPILER={compiler}", f"CWKERNELS_SANITIZE={sanitizers}")
        result = configure(tmp_path / sanitizers, *options)
        assert result.returncode == code, result.stderr
    message = f"{compiler} cannot link -fsanitize=thread: its runtimes (libasan, libubsan, libtsan)"
    assert f"cwkernels: {message} must be installed" in flat(result.stderr)
