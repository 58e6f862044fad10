"""`cw.build_info()` and `python -m cwkernels`: what was built, and what this machine runs of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cwkernels as cw
from cwkernels import about
from cwkernels._version import __version__
from cwkernels.ops import _library
from cwkernels.testing import cpu_isa, cpu_isas

BUILT = {
    **_library.build_config(),
    "cuda_archs": "80,90",
    "cuda_archs_why": "the default",
    "nvcc": "13.0.88",
    "cuda_why": "nvcc found by PATH",
}
NOT_BUILT = {**BUILT, "cuda_archs": "", "cuda_archs_why": "", "nvcc": "", "cuda_why": "no nvcc"}


def shows(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Puts an nvidia-smi on PATH."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def built(monkeypatch: pytest.MonkeyPatch, config: dict[str, str]) -> None:
    monkeypatch.setattr(_library, "build_config", lambda: config)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_it_says_what_is_installed_and_in_force() -> None:
    info = cw.build_info()
    config = _library.build_config()
    assert (info.version, info.commit) == (__version__, config["commit"])
    assert (info.torch, info.torch_built) == (torch.__version__, config["torch"])
    assert (info.compiler, info.cuda_why) == (config["compiler"], config["cuda_why"])
    assert ",".join(info.cuda_archs) == config["cuda_archs"]
    assert info.threads == torch.get_num_threads()
    assert set(info.cpu_isas) == set(cpu_isas()) <= set(info.cpu_isas_built)
    for name in cpu_isas():
        with cpu_isa(name):
            assert cw.build_info().cpu_isa == name


def test_python_m_prints_it() -> None:
    command = [sys.executable, "-m", "cwkernels"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    info = cw.build_info()
    assert printed.startswith(f"cwkernels {__version__}, commit {info.commit}\n")
    for text in (info.compiler, info.torch, "copy_rows", "gather_conv", ", ".join(info.cpu_isas)):
        assert text in printed


def test_operations_are_those_that_the_dispatcher_has_kernels_for() -> None:
    kernels = {operation.name: operation.kernels for operation in cw.build_info().operations}
    assert "CPU" in kernels["copy_rows"]
    assert "CPU" in kernels["gather_conv"]
    assert ("CUDA" in kernels["copy_rows"]) == (_library.build_config()["cuda_archs"] != "")
    assert not {"cpu_isa", "set_cpu_isa", "build_config"} & set(kernels)


def test_no_kernel_is_called_verified_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    monkeypatch.setattr(about, "GPU_VERIFIED", {"copy_rows": "0123abc"})
    kernels = {operation.name: operation.kernels for operation in cw.build_info().operations}
    assert kernels["copy_rows"]["CUDA"] == "GPU-verified at commit 0123abc"
    assert kernels["gather_conv"]["CUDA"] == "emulated, never run on a GPU"


@pytest.mark.parametrize(
    ("capability", "driver", "archs", "nvcc", "torch_cuda", "runs", "reason"),
    [
        ("9.0", "580.65.06", "80,90", "13.0.88", "13.0", True, "by its code for sm_90"),
        ("8.6", "580.65.06", "80,90", "13.0.88", "13.0", True, "by its code for sm_80"),
        ("8.9", "600.1", "80,86,89,90", "13.0.88", "13.0", True, "by its code for sm_89"),
        ("12.0", "580.1", "80,90", "13.0.88", "13.0", True, "by its PTX for compute_90, compiled"),
        ("12.0", "580.1", "80,120", "13.0.88", "13.0", True, "by its code for sm_120"),
        ("8.0", "580.1", "86,90", "13.0.88", "13.0", False, "there is no code for it: built for"),
        ("7.5", "580.1", "80,90", "13.0.88", "13.0", False, "there is no code for it: built for"),
        ("9.0", "570.9", "80,90", "13.0.88", "13.0", False, "CUDA 13 needs driver 580 or newer"),
        ("9.0", "570.9", "80,90", "12.8.93", "12.8", True, "by its code for sm_90"),
        ("9.0", "520.9", "80,90", "12.8.93", "12.8", False, "CUDA 12 needs driver 525 or newer"),
        ("9.0", "580.1", "", "", "13.0", False, "this build has no CUDA kernels"),
        ("9.0", "580.1", "80,90", "13.0.88", None, False, "is built without CUDA"),
    ],
)
def test_which_gpu_runs_the_kernels(
    capability: str,
    driver: str,
    archs: str,
    nvcc: str,
    torch_cuda: str | None,
    runs: bool,
    reason: str,
) -> None:
    names = tuple(filter(None, archs.split(",")))
    result, why = about.gpu_fit(capability, driver, names, nvcc, torch_cuda)
    assert (result, reason in why) == (runs, True), why


def test_the_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built(monkeypatch, BUILT)
    shows(
        monkeypatch,
        tmp_path,
        "echo 'NVIDIA H100, 9.0, 580.65.06'; echo 'Tesla T4, 7.5, 580.65.06'",
    )
    info = cw.build_info()
    assert [(gpu.name, gpu.runs) for gpu in info.gpus] == [
        ("NVIDIA H100", True),
        ("Tesla T4", False),
    ]
    text = str(info)
    assert "yes, for 80, 90 and PTX (the default), by nvcc 13.0.88 (nvcc found by PATH)" in text
    first = "NVIDIA H100, compute capability 9.0, driver 580.65.06: runs the CUDA kernels: by its"
    assert first in text
    assert "Tesla T4, compute capability 7.5, driver 580.65.06: does not run CUDA kernels" in text


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 9", "unknown: Command '['nvidia-smi'"),
        ("echo 'No devices were found'", "none: nvidia-smi says: No devices were found"),
        ("true", "none: nvidia-smi says: "),
    ],
)
def test_a_machine_whose_nvidia_smi_finds_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, why: str
) -> None:
    shows(monkeypatch, tmp_path, script)
    info = cw.build_info()
    assert info.gpus == ()
    assert info.gpus_why.startswith(why)
    assert f"GPU            {info.gpus_why}" in str(info)


def test_a_machine_without_nvidia_smi_and_a_build_without_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built(monkeypatch, NOT_BUILT)
    monkeypatch.setenv("PATH", str(tmp_path))
    text = str(cw.build_info())
    assert "CUDA kernels   no: no nvcc\n" in text
    assert "GPU            none: there is no nvidia-smi\n" in text
