"""`cwkernels rank`, `evaluate` and `report` on the run of a tiny network."""

import contextlib
import io
import json
import os
import pty
import shutil
import sys
import termios
from pathlib import Path

import pytest
import torch

import cwkernels as cw
from cwkernels.cli import main
from cwkernels.data import Cifar10, generate_cifar10
from cwkernels.groundtruth import NB201_FILE
from cwkernels.ranking import load_scores
from cwkernels.spaces import named
from cwkernels.training import config

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CWKERNELS_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = """
network = { subset = "only_conv", channels = 4, cells_per_stage = 1 }
data = { validation = 8, batch_size = 8 }
recipe = { epochs = 2, splits = [{ epoch = 1 }] }
run = { threads = 1 }
"""


def tiny_data(root: str | None = None) -> Cifar10:
    return generate_cifar10(24, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "load_cifar10", tiny_data)
        assert main(["train", str(folder / "tiny.toml"), "--run", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, for one test."""
    monkeypatch.setattr(config, "load_cifar10", tiny_data)
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


FEW = ["--batches", "2", "--architectures", "5"]


def errors(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that fails."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_from_a_run_to_a_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (DATA / "groundtruth" / NB201_FILE).is_file():
        pytest.skip(f"no ground truth in {DATA}; CWKERNELS_DATA names the folder of the real data")
    assert main(["rank", str(run), "--batches", "2"]) == 0
    assert main(["rank", str(run), "--batches", "2", "--untrained"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"64 scores in {run / 'scores.jsonl'}; the best: |nor_conv_")
    assert captured.err == ""
    trained, untrained = (
        load_scores(named("nb201_only_conv"), run / name)
        for name in ("scores.jsonl", "untrained.jsonl")
    )
    assert not torch.equal(trained.loss, untrained.loss)

    where = ["--groundtruth", str(DATA), "--resamples", "20"]
    assert main(["evaluate", str(run), *where]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].startswith("super-network")
    assert printed.splitlines()[3].startswith("untrained super-network")
    record = json.loads((run / "evaluation.json").read_text())
    assert record["architectures"] == 64
    assert record["scores"]["about"]["data"] == "generated images"

    assert main(["report", str(run), "--out", str(run / "report")]) == 0
    named_files = capsys.readouterr().out.split()
    assert str(run / "report" / "figure_4.png") in named_files
    assert all(Path(name).is_file() for name in named_files)


def test_ranking_again_adds_what_is_missing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", str(run), *FEW]) == 0
    first = (run / "scores.jsonl").read_text()
    assert first.count("\n") == 1 + 5
    assert main(["rank", str(run), "--batches", "2", "--architectures", "all"]) == 0
    whole = (run / "scores.jsonl").read_text()
    assert whole.startswith(first)
    assert whole.count("\n") == 1 + 64
    assert capsys.readouterr().out.splitlines()[1].startswith("64 scores in ")


def test_the_runs_precision_is_the_rankings(run: Path) -> None:
    with cw.float32_conv_precision("highest"):
        assert main(["rank", str(run), *FEW]) == 0
    header = json.loads((run / "scores.jsonl").read_text().splitlines()[0])
    assert header["precision"] == "high"


def test_scores_of_other_images_are_not_mixed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", str(run), *FEW]) == 0
    capsys.readouterr()
    line = errors("rank", run, *FEW, "--images", "4", capsys=capsys)
    assert line.startswith(f"cwkernels rank: rank: {run}/scores.jsonl: images: wanted ")
    assert main(["rank", str(run), *FEW, "--images", "4", "--out", str(run / "four.jsonl")]) == 0


def test_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = errors("rank", tmp_path, capsys=capsys)
    assert line == f"cwkernels rank: run {tmp_path}: wanted a run's config.json, got none\n"
    line = errors("evaluate", run, capsys=capsys)
    assert "scores.jsonl" in line
    line = errors("report", tmp_path, "--out", tmp_path / "out", capsys=capsys)
    assert line.startswith(f"cwkernels report: run {tmp_path}: wanted a run's config.json")
    assert main(["rank", str(run), *FEW]) == 0
    capsys.readouterr()
    line = errors("evaluate", run, "--groundtruth", tmp_path, capsys=capsys)
    assert f"wanted {NB201_FILE} in {tmp_path}, got nothing there" in line
    with pytest.raises(SystemExit):
        main(["rank", str(run), "--architectures", "none"])
    assert "wanted a number from 1 on, or all, got 'none'" in capsys.readouterr().err


def read_all(master: int) -> str:
    """What a terminal was sent, once its other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while part := os.read(master, 1 << 16):
            shown += part
    os.close(master)
    return shown.decode()


def test_a_bar_on_a_terminal(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert main(["rank", str(run), *FEW]) == 0
    shown = read_all(master)
    assert "rank:" in shown
    assert "5/5" in shown


@pytest.mark.parametrize(("asked", "shown"), [((), False), (("--progress",), True)])
def test_a_bar_elsewhere_if_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], shown: bool
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(["rank", str(run), *FEW, *asked]) == 0
    assert ("5/5" in stderr.getvalue()) == shown
