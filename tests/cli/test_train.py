"""`cwkernels train`: from a TOML file to a run, on with a run, errors of one line, its bar."""

import os
import pty
import sys
import termios
from pathlib import Path

import pytest

from cwkernels import training
from cwkernels.cli import main
from cwkernels.data import Cifar10, generate_cifar10
from cwkernels.training import config, load_run

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = """
[network]
channels = 4
cells_per_stage = 1
[data]
validation = 8
batch_size = 8
[recipe]
epochs = 3
splits = [{ epoch = 1 }]
[run]
threads = 1
"""


def tiny_data(root: str | None = None) -> Cifar10:
    return generate_cifar10(24, 8)


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of a run of six steps on generated images."""
    monkeypatch.setattr(config, "load_cifar10", tiny_data)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_run_from_a_file(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = toml.parent / "run"
    assert main(["train", str(toml), "--run", str(path), "--set", "run.tensorboard=true"]) == 0
    run = load_run(path)
    assert run.config.run.tensorboard
    assert [record.weight_sets for record in run.metrics()] == [12, 76, 76]
    assert run.network().num_weight_sets == 76
    assert list((path / "tensorboard").glob("events.out.tfevents.*"))
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == f"cwkernels train: {path}: generated images"
    assert captured.out.splitlines()[-1].endswith(run.metrics()[-1].line().strip())
    assert captured.err == ""


def test_values_from_the_command_line(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["recipe.base=paper", "recipe.epochs=7", "network.subset=no_zero", "data.root='a b'"]
    arguments = [word for change in changes for word in ("--set", change)]
    assert main(["train", str(toml), "--show-config", *arguments]) == 0
    shown = capsys.readouterr().out.splitlines()
    for line in ('subset = "no_zero"', "epochs = 7", 'root = "a b"', 'new_sets = "on_first_use"'):
        assert line in shown
    assert "# stop_epoch is not set" in shown


def test_a_run_goes_on(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml.parent / "run"
    arguments = ["train", str(toml), "--run", str(path), "--resume"]
    epochs: list[int] = []

    def stop(self: training.ProgressBar, trainer: object, record: training.EpochRecord) -> None:
        epochs.append(record.epoch)
        if record.epoch == 2 and len(epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.ProgressBar, "on_epoch", stop)
    assert main(arguments) == 130
    assert main(arguments) == 0
    assert main(["train", "--run", str(path), "--resume"]) == 0
    assert epochs == [1, 2, 3]
    assert [record.epoch for record in load_run(path).metrics()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{toml}"], "train: --run: wanted a directory for the run, got none"),
        (["{toml}", "--set", "lr=3"], "train: --set: wanted TABLE.KEY=VALUE, got 'lr=3'"),
        (["{toml}", "--set", "recipe.lr"], "train: --set: wanted TABLE.KEY=VALUE, got 'recipe.lr'"),
        (["{toml}", "--set", "recipe.lr=x"], "config: recipe.lr: wanted a number, got 'x'"),
        (["none.toml"], "[Errno 2] No such file or directory: 'none.toml'"),
        (["{folder}/run/config.json"], "config.json: wanted TOML, got: Invalid statement"),
        (["--run", "{folder}/run"], "wanted no run there, got one: --resume goes on with it"),
        (
            ["{toml}", "--run", "{folder}/run", "--resume", "--set", "recipe.epochs=9"],
            "got another one",
        ),
        (["{toml}", "--run", "{toml}"], "File exists: "),
    ],
)
def test_an_error_is_one_line(
    toml: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training.create_run(toml.parent / "run", config.Config())
    filled = [word.format(toml=toml, folder=toml.parent) for word in arguments]
    assert main(["train", *filled]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("cwkernels train: ")
    assert line in error


def test_the_bar_is_for_terminals(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere there is none: see `captured.err` above."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 120))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["train", str(toml), "--run", str(toml.parent / "run")]) == 0
        bar = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert "| 0/6 " in bar
    assert "epoch=2" in bar
    assert "sets=76" in bar
