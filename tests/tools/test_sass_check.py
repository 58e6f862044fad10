"""The gate of matrix instructions sees one that is missing, unlisted, or listed for nothing."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from tools import sass_check
from tools.cubins import ROOT, compile_all
from tools.sass_check import BF16, TF32, check, disassemble, instructions

CODE = """\
	.section	.text._Z4tileIiEvv,"ax",@progbits
.text._Z4tileIiEvv:
        /*0130*/                   HMMA.1688.F32.TF32 R12, R12, R10, RZ ;
        /*0140*/                   HMMA.1688.F32.TF32 R12, R12, R10, R12 ;
        /*0150*/                   LDSM.16.M88.4 R4, [R8] ;
.text.plain:
        /*0140*/                   FFMA R12, R12, R10, RZ ;
"""
LISTED = {"conv/tile": [TF32]}
FOUND = {
    "conv/tile<Tf32, 3>": {"80": frozenset({TF32}), "90": frozenset({TF32})},
    "conv/tile<Tf32x3, 3>": {"90": frozenset({TF32})},
    "conv/general<float>": {"90": frozenset[str]()},
}


def test_what_nvdisasm_prints_is_read() -> None:
    assert instructions(CODE) == {"_Z4tileIiEvv": {TF32}, "plain": frozenset()}


def test_kernels_as_listed() -> None:
    assert check(LISTED, FOUND) == []


def test_a_kernel_without_its_instruction() -> None:
    found = FOUND | {"conv/tile<Tf32, 5>": {"90": frozenset[str]()}}
    assert check(LISTED, found) == [f"conv/tile<Tf32, 5> on sm_90: wanted {TF32}, got none"]
    found = FOUND | {"conv/tile<Bf16, 3>": {"90": frozenset({BF16})}}
    assert f"conv/tile<Bf16, 3> on sm_90: wanted {TF32}, got {BF16}" in check(LISTED, found)


def test_a_kernel_that_is_not_listed() -> None:
    found = FOUND | {"sgd/step": {"90": frozenset({BF16})}}
    unlisted = f"sgd/step: has {BF16}, which the list does not name"
    assert check(LISTED, found) == [unlisted]


def test_a_list_of_what_is_not_there() -> None:
    assert check(LISTED | {"conv/gone": [TF32]}, FOUND) == [
        "conv/gone: in the list, but no source has it"
    ]
    assert check({"conv/tile": [TF32, BF16]}, FOUND) == [
        f"conv/tile: wanted {BF16} in one of its instantiations"
    ]


KERNEL = """\
#include "{portable}"
namespace cwkernels {{
struct Tf32 {{}};
struct Params {{ float* d; const uint32_t* a; }};
template <class Precision>
__global__ void tile(Params p) {{
  wait_for_previous();
  float d[4] = {{}};
  uint32_t a[4], b[2] = {{p.a[0], p.a[1]}};
  for (int i = 0; i < 4; ++i) a[i] = p.a[lane() * 4 + i];
  {multiply}
  for (int i = 0; i < 4; ++i) p.d[lane() * 4 + i] = d[i];
}}
template __global__ void tile<Tf32>(Params);
}}  // namespace cwkernels
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")
@pytest.mark.skipif(sass_check.find_nvdisasm() is None, reason="there is no nvdisasm: make sass")
@pytest.mark.parametrize(
    ("multiply", "instruction"), [("mma_tf32(d, a, b);", TF32), ("mma_bf16(d, a, b);", BF16)]
)
def test_real_code(tmp_path: Path, multiply: str, instruction: str) -> None:
    ops = tmp_path / "csrc" / "ops"
    ops.mkdir(parents=True)
    portable = ROOT / "csrc" / "parts" / "portable.cuh"
    (ops / "conv.cu").write_text(KERNEL.format(portable=portable, multiply=multiply))
    nvdisasm = sass_check.find_nvdisasm()
    assert nvdisasm is not None
    found = disassemble(compile_all(root=tmp_path), nvdisasm)
    has = frozenset({instruction})
    assert found == {"conv/tile<Tf32>": {"80": has, "90": has}}
    assert bool(check(LISTED, found)) == (instruction != TF32)


def test_nvdisasm_is_found_among_pips_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia" / "cu13" / "bin" / "nvdisasm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path / name)]}),
    )
    monkeypatch.setenv("PATH", "")
    assert sass_check.find_nvdisasm() == str(program)
    assert os.access(program, os.X_OK)
