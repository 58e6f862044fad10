"""The table of registers: what ptxas says is read, and each change is a line."""

import shutil
import textwrap
from pathlib import Path

import pytest

from tools import cubins, kernel_names, ptxas_table
from tools.ptxas_table import Usage, check, differences, parse, spills

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN1a6kernelILi3EEEvi' for 'sm_90'
ptxas info    : Function properties for _ZN1a6kernelILi3EEEvi
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Function properties for _Z6helperv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers
ptxas info    : Compile time = 3.1 ms
"""
USAGE = Usage(registers=40, stack=0, spills=0, shared=0)


def test_what_ptxas_says_is_read() -> None:
    assert parse(LOG) == {
        "_ZN1a6kernelILi3EEEvi": Usage(registers=128, stack=16, spills=20, shared=4096),
        "plain": Usage(registers=18, stack=0, spills=0, shared=0),
    }


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void cwkernels::fan<float, 3>(cwkernels::FanParams)", "fan<float, 3>"),
        ("void cwkernels::fan<(int)3, (bool)1>(cwkernels::P, int)", "fan<3, true>"),
        ("cwkernels::(anonymous namespace)::plain(int*, void (*)(int))", "plain"),
        ("void cwkernels::f<cwkernels::Tf32, (bool)0>(P)", "f<Tf32, false>"),
        ("void cwkernels::f<cwkernels::S<(int)2> >(P)", "f<S<2>>"),
        ("plain", "plain"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert kernel_names.short(name) == short


def test_each_change_is_a_line() -> None:
    before = {"a": {"80": USAGE, "90": USAGE}, "gone": {"80": USAGE}}
    after = {"a": {"80": USAGE, "90": Usage(44, 0, 0, 512)}, "new": {"80": USAGE}}
    assert differences(before, after) == [
        "a on sm_90: registers 40 → 44, shared 0 → 512",
        "gone: in the table, but no source has it",
        "new: new, not in the table",
    ]
    assert differences(before, before) == []
    assert differences({"a": {"80": USAGE}}, {"a": {"90": USAGE}}) == [
        "a on sm_80: gone",
        "a on sm_90: new",
    ]


def test_a_spill_is_wrong_whatever_the_table_says() -> None:
    spilling = {"a": {"90": Usage(255, 16, 20, 0)}}
    assert spills(spilling) == ["a on sm_90: spills 20 bytes"]
    assert check(("13.0.88", spilling), "13.0.88", spilling) == spills(spilling)


def test_another_compiler_is_asked_for_spills_only() -> None:
    found = {"a": {"90": Usage(44, 0, 0, 0)}}
    assert check(("13.0.88", {"a": {"90": USAGE}}), "13.1.12", found) == []
    assert check(("13.0.88", {"a": {"90": USAGE}}), "13.0.88", found) != []


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = {"a/f<3>": {"80": USAGE, "90": Usage(44, 0, 0, 512)}, "b/g": {"80": USAGE}}
    path = tmp_path / "registers.json"
    ptxas_table.write(path, "13.0.88", table)
    assert ptxas_table.read(path) == ("13.0.88", table)
    lines = path.read_text().splitlines()
    assert sum("a/f<3>" in line for line in lines) == 1
    assert len(lines) == 4 + len(table) + 2


def test_the_committed_table_has_every_source() -> None:
    _, table = ptxas_table.read(ptxas_table.TABLE)
    sources = {path.stem for path in cubins.ROOT.glob("csrc/ops/*.cu")}
    assert {kernel.partition("/")[0] for kernel in table} == sources
    assert all(set(archs) == {str(arch) for arch in cubins.ARCHS} for archs in table.values())


def test_headers_are_sources_too() -> None:
    found = cubins.sources_of(cubins.ROOT / "csrc" / "ops" / "copy_rows.cu")
    names = {path.name for path in found}
    assert {"copy_rows.cu", "copy_rows.cuh", "portable.cuh", "copy_rows.h"} < names
    assert "emulator.h" not in names


KERNEL = """\
#include "kernel.h"
extern "C" __global__ void kernel(Params params) { params.to[threadIdx.x] = 1; }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")
def test_what_is_compiled_is_kept_until_a_source_changes(tmp_path: Path) -> None:
    ops = tmp_path / "csrc" / "ops"
    ops.mkdir(parents=True)
    (ops / "one.cu").write_text(KERNEL)
    header = ops / "kernel.h"
    header.write_text("struct Params { int* to; };\n")
    (first,) = cubins.compile_all(root=tmp_path, archs=(90,))
    assert list(parse(first.log)) == ["kernel"]
    first.path.write_bytes(b"kept")
    cubins.compile_all(root=tmp_path, archs=(90,))
    assert first.path.read_bytes() == b"kept"
    header.write_text("struct Params { float* to; };\n")
    cubins.compile_all(root=tmp_path, archs=(90,))
    assert first.path.read_bytes() != b"kept"
    header.write_text("no C++\n")
    with pytest.raises(RuntimeError, match=r"one.cu for sm_90 does not compile:\n.*kernel.h"):
        cubins.compile_all(root=tmp_path, archs=(90,))


def test_a_compiler_without_a_version_is_named(tmp_path: Path) -> None:
    script = textwrap.dedent("""\
        #!/bin/sh
        echo something else
        """)
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(script)
    nvcc.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"wanted a version such as V13.0.88, got 'something"):
        cubins.nvcc_version(str(nvcc))
