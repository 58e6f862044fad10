"""The command `cwkernels`: its help, its errors of one line, and `doctor`."""

import subprocess
import sys
from pathlib import Path

import pytest

from cwkernels import cli
from cwkernels.cli import COMMANDS, bench, doctor, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {line}" in text for name, line in COMMANDS.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert COMMANDS[command][1:] in " ".join(capsys.readouterr().out.split())


def test_help_is_fast_because_nothing_heavy_is_loaded() -> None:
    code = """
import sys
from cwkernels.cli import main
try:
    main(["--help"])
except SystemExit:
    print("torch" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed.endswith("False\n")


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (
            ValueError("Trainer: lr: wanted\n  more, got less"),
            "Trainer: lr: wanted more, got less",
            2,
        ),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device", 2),
        (ImportError("wanted scipy"), "wanted scipy", 2),
        (RuntimeError(), "RuntimeError", 2),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_an_error_is_one_line(
    error: BaseException,
    line: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err == f"cwkernels doctor: {line}\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: object) -> int:
        raise KeyError("missing")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(KeyError):
        main(["doctor"])


def test_doctor_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "scipy" else object())
    monkeypatch.setattr(doctor, "search_folders", list)
    assert cli.main(["doctor"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "scipy missing cwkernels evaluate" in lines
    assert any(line.startswith("tqdm found") for line in lines)
    assert sum("missing: no groundtruth/" in line for line in lines) == 2


def test_a_benchmark_is_run_with_its_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "floor", "--no-such-option"]) == 2
    assert "--no-such-option" in capfd.readouterr().err


def test_there_are_no_benchmarks_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert main(["bench", "floor"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    wanted = "wanted a checkout of cwkernels, where the benchmarks are"
    got = f"got an installed package in {tmp_path}"
    assert line == f"cwkernels bench: bench: {wanted}, {got}"
