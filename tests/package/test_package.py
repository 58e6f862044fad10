"""What the package promises before any operation runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cwkernels as cw
from cwkernels.ops import _library

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cwkernels"

# DESIGN: imports run down only. A layer may import what is named here, all of it further down.
ALLOWED: dict[str, set[str]] = {
    "__main__": set(),
    "cli": {
        *("_version", "about", "data", "groundtruth", "ops", "ranking", "report"),
        "training",
    },
    "report": {"files", "ranking", "requires", "training"},
    "training": {
        *("_version", "data", "files", "networks", "nn", "ops", "optim", "ranking", "requires"),
        "spaces",
    },
    "about": {"_version", "ops"},
    "ranking": {
        *("_version", "data", "files", "groundtruth", "networks", "nn", "ops", "requires"),
        "spaces",
    },
    "testing": {"ops", "spaces"},
    "optim": {"nn", "ops"},
    "groundtruth": {"data", "spaces"},
    "networks": {"nn", "ops", "spaces"},
    "nn": {"ops", "spaces"},
    "spaces": set(),
    "data": {"ops"},
    "ops": {"_version"},
    "requires": set(),
    "files": set(),
    "_version": set(),
}


def imported_layers(path: Path) -> set[str]:
    """The parts of cwkernels that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("cwkernels.")}


def layer_files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_layers_are_allowed_only_what_is_further_down() -> None:
    order = list(ALLOWED)
    for layer, allowed in ALLOWED.items():
        assert allowed <= set(order[order.index(layer) + 1 :])


@pytest.mark.parametrize("path", layer_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_down_only(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported_layers(path) <= ALLOWED[layer] | {layer}


@pytest.mark.parametrize(
    ("line", "layers"),
    [
        ("from cwkernels import nn, ops", {"nn", "ops"}),
        ("import cwkernels.nn.bank as bank", {"nn"}),
        ("from cwkernels.nn.bank import Bank", {"nn"}),
        ("def function():\n    from cwkernels.data import CIFAR10", {"data"}),
        ("import torch.nn", set()),
    ],
)
def test_every_form_of_import_is_seen(line: str, layers: set[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(line)
    assert imported_layers(path) == layers


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_the_package_loads_its_parts_lazily() -> None:
    assert run("import cwkernels, sys; print('torch' in sys.modules)") == "False\n"


@pytest.mark.slow
def test_ops_load_nothing_of_nas() -> None:
    code = "import cwkernels.ops, sys; print([m for m in sys.modules if m.startswith('cwkernels')])"
    loaded = ast.literal_eval(run(code))
    assert "cwkernels.ops.gather_conv" in loaded
    leaves = {"cwkernels", "cwkernels._version"}
    assert all(name in leaves or name.startswith("cwkernels.ops") for name in loaded)


@pytest.mark.slow
def test_testing_does_not_need_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import cwkernels.testing; print('loaded')"
    assert run(code) == "loaded\n"


def test_types_are_declared() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_public_name_resolves() -> None:
    assert {"ops", "spaces", "networks", "backend"} <= set(dir(cw))
    for name in cw.__all__:
        assert getattr(cw, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'convolutions'"):
        _ = cw.convolutions


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cpu", "nonsense"])
def test_an_old_torch_is_a_named_error(version: str) -> None:
    with pytest.raises(
        ImportError, match=rf"cwkernels: wanted torch >= 2\.10, got .*{version[:3]}"
    ):
        _library.check_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.14.1+cu130", "3.0.0a0"])
def test_a_new_torch_is_accepted(version: str) -> None:
    _library.check_torch(version)


def test_a_missing_extension_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"no compiled extension at .*_C\.so: build it with"):
        _library.load(tmp_path / "_C.so")


def test_setup_refuses_an_old_torch(tmp_path: Path) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode != 0
    assert "cwkernels: building needs torch >= 2.10, found 2.9" in result.stderr


OBJECTS = sorted((ROOT / "build" / "cmake" / "CMakeFiles").glob("cpu_*.dir/csrc/ops/*.o"))


@pytest.mark.skipif(not OBJECTS, reason="the extension was not built in this checkout")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: f"{p.parts[-4]}-{p.name}")
def test_kernels_of_one_instruction_set_stay_in_their_namespace(path: Path) -> None:
    """Else the linker could pick AVX-512 code for a machine that does not have it."""
    isa = path.parts[-4].removeprefix("cpu_").removesuffix(".dir")
    # As mangled: nm gives up on some lambdas within lambdas.
    symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    defined = [line.split(maxsplit=2) for line in symbols.splitlines() if " U " not in line]
    exported = [name for _, kind, name in defined if kind in "TWVBDu"]
    assert exported
    assert all("9cwkernels" in name and f"{len(isa)}{isa}" in name for name in exported)


def test_the_make_environment_reuses_a_torch_that_is_new_enough() -> None:
    code = """
import make_venv
print([make_venv.new_enough(v) for v in ("2.10.0", "2.14.1+cu130", "2.9.1")])
print((make_venv.importable_torch()[1] / "torch" / "version.py").exists())
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tools", check=True
    )
    assert result.stdout == "[True, True, False]\nTrue\n"


def test_the_walk_names_the_files_of_the_tree() -> None:
    """Every file of the stem that docs/adding_an_operation.md walks through, in its order."""
    walk = (ROOT / "docs" / "adding_an_operation.md").read_text()
    named = re.findall(r"^\| \d \| `([^`]+)` \|", walk, flags=re.MULTILINE)
    headed = re.findall(r"^## [1-9]\. .*: `([^`]+)`$", walk, flags=re.MULTILINE)
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*copy_rows*"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert sorted(named) == sorted(listing.stdout.split())
    assert headed == named


def test_the_walk_names_what_there_is() -> None:
    walk = (ROOT / "docs" / "adding_an_operation.md").read_text()
    paths = set(re.findall(r"`((?:csrc|cwkernels|tests|docs)/[\w/]+(?:\.\w+)?)`", walk))
    assert len(paths) > 12
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_cpu_kernel_has_cases_for_the_sanitizers() -> None:
    contracts = (ROOT / "csrc/ops").glob("*.h")
    kernels = {p.stem for p in contracts if p.with_name(f"{p.stem}_cpu.cpp").exists()}
    assert kernels == {path.stem for path in (ROOT / "tests/native/cases").glob("*.cpp")}
