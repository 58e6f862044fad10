"""The command: arguments, printed table, JSON, picture, and the arithmetic behind them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cwkernels as cw
from bench import experiment, overhead, plot, run, table
from bench.contestants import CONTESTANTS
from bench.experiment import NetworkResult, training_seconds
from bench.harness import Samples
from bench.memory import MemoryUse
from bench.options import NETWORKS, make_parser, parse
from bench.record import SCHEMA
from cwkernels.report.paper import TABLE_1

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {
    "ours": 0.1,
    "ours_split": 0.101,
    "authors": 0.2,
    "authors_split": 0.27,
    "stock_nchw": 0.2,
    "stock_channels_last": 0.15,
}


def memory_use(peak: int) -> MemoryUse:
    return MemoryUse(1, 2, 3, 4, 5, 6, 7, 8, peak)


def result() -> NetworkResult:
    samples = Samples({name: ((s, s), (s, s)) for name, s in SECONDS.items()})
    peaks = {name: memory_use(100 * 2**20) for name in CONTESTANTS}
    peaks["ours_split"] = memory_use(102 * 2**20)
    return NetworkResult(64, ((0,) * 6, (1,) * 6), samples, peaks)


def execute(*arguments: str, script: bool = False) -> subprocess.CompletedProcess[str]:
    program = ["bench/overhead.py"] if script else ["-m", "bench.overhead"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` sets for its own process must not reach other tests."""
    monkeypatch.setattr(overhead, "set_environment", lambda: None)


def test_table_1_is_the_papers() -> None:
    paper = ROOT.parent / "shared/paper/conditional_supernet_weights.txt"
    if not paper.exists():
        pytest.skip(f"no {paper}")
    lines = paper.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("baseline\t1862"))
    cells = [line.split("\t") for line in lines[start : start + 9]]
    nb201, macro = ("full", "no_zero", "only_conv"), "macro"
    baselines = [str(v) for n in nb201 for v in (TABLE_1[n].seconds, TABLE_1[n].megabytes)]
    baselines += ["baseline", str(TABLE_1[macro].seconds), str(TABLE_1[macro].megabytes)]
    assert cells[0][1:] == baselines
    epochs = zip(TABLE_1["full"].overheads, TABLE_1[macro].overheads, strict=True)
    for row, (epoch, macro_epoch) in zip(cells[1:], epochs, strict=True):
        values = [v for n in nb201 for v in TABLE_1[n].overheads[epoch]]
        wanted = [f"split at {epoch}", *(f"{v:+.1f}%" for v in values)]
        macro_values = TABLE_1[macro].overheads[macro_epoch]
        wanted += [f"split at {macro_epoch}", *(f"{v:+.1f}%" for v in macro_values)]
        assert row == wanted


def test_the_epochs_of_a_training() -> None:
    assert [TABLE_1[n].epochs for n in NETWORKS] == [250, 250, 250, 50]
    assert list(NETWORKS) == ["full", "no_zero", "only_conv", "macro"]


def test_a_training_costs_its_epochs_before_and_after_the_split() -> None:
    assert training_seconds(250, 125, 2.0, 3.0) == 125 * 2 + 125 * 3
    assert training_seconds(250, 250, 2.0, 3.0) == 500
    measured = result()
    assert measured.steps_per_epoch == 703
    assert measured.baseline_seconds("ours", 250) == pytest.approx(0.1 * 703 * 250)
    assert measured.time_overhead("authors", 125, 250) == pytest.approx(17.5)
    assert measured.time_overhead("ours", 200, 250) == pytest.approx(0.2)
    assert measured.memory_overhead("ours") == pytest.approx(2.0)
    assert measured.memory_overhead("authors") == pytest.approx(0.0)


def test_the_table_has_the_papers_figures_beside_ours() -> None:
    printed = table.table_1({"full": result(), "macro": result()})
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "baseline 17575 s 1862 s 100 MiB 1895 MB" in lines
    assert "split at 125 +0.5 % +17.7 % +2.0 % +1.2 %" in lines
    assert "split at 125 +17.5 % +17.7 % +0.0 % +1.2 %" in lines
    assert "split at 47 +0.1 % -3.0 % +2.0 % +0.3 %" in lines
    assert "stock torch, NCHW ×2.00 [2.00–2.00] 100 MiB" in lines
    split_rows = [line for line in lines if line.startswith("split at")]
    assert len(split_rows) == 2 * 2 * 8  # two benchmarks, ours and the authors' way
    assert max(map(len, printed.splitlines())) <= 100


def test_the_text_says_what_was_measured() -> None:
    printed = table.basis({"full": result()})
    assert "T(e) = e·t0 + (E − e)·t1" in printed
    assert "703 steps of 64 images" in printed
    assert "4 timed steps of each contestant, 2 architectures × 2 rounds" in printed
    assert "t1/t0 1.010 [1.010–1.010]" in printed
    assert "t0 200.0 ms [200.0–200.0]" in printed


def test_the_long_form_has_every_part_in_its_own_column() -> None:
    printed = table.long_form({"full": result()})
    assert printed.splitlines()[1].split() == list(table.MEMORY_TITLES.values())
    assert sum("100.00" in line for line in printed.splitlines()) == len(CONTESTANTS) - 1


def test_the_picture_is_written(tmp_path: Path) -> None:
    path = tmp_path / "overhead.png"
    plot.plot_overheads({"full": result(), "macro": result()}, "a machine", path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "full,huge"], "--networks: wanted some of full"),
        (["--networks", ""], "--networks: wanted some of full"),
        (["--batch", "0"], "--batch: wanted a whole number above zero, got '0'"),
        (["--batch", "1.5"], "--batch: wanted a whole number above zero, got '1.5'"),
        (["--batch", "45001"], "--batch: an epoch has 45000 images, got 45001"),
        (["--steps", "-3"], "--steps: wanted a whole number above zero, got '-3'"),
        (["--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["--plot", "figure.pdf"], "--plot: wanted a name that ends in .png"),
        (["--plot", "/no/such/place/a.png"], "--plot: no such directory: /no/such/place"),
        (["--json", "/no/such/place/a.json"], "--json: no such directory: /no/such/place"),
        (["--json", "."], "--json: a directory, not a file"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_arguments_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        overhead.main(["--device", "cpu", *arguments])
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_cuda_without_a_gpu_or_kernels_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for available, message in ((False, "no usable GPU"), (True, "without kernels for the GPU")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setattr(cw.ops, "has_cuda_kernels", lambda: False)
        with pytest.raises(SystemExit) as exit_info:
            overhead.main(["--device", "cuda"])
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


def test_a_gpu_without_kernels_is_passed_over_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cw.ops, "has_cuda_kernels", lambda: False)
    device, note = run.choose_device(None)
    assert device.type == "cpu"
    assert "passed over" in note
    monkeypatch.setattr(cw.ops, "has_cuda_kernels", lambda: True)
    assert run.choose_device(None) == (torch.device("cuda"), "")


def test_the_defaults() -> None:
    options = parse(make_parser(), [])
    assert options.networks == NETWORKS
    assert (options.batch, options.steps, options.device) == (None, None, None)


def test_rounds_fill_the_time_and_are_two_at_least() -> None:
    rounds = experiment.rounds_within(38.0)
    assert rounds(5.0) == 6
    assert rounds(100.0) == experiment.MIN_ROUNDS
    assert rounds(0.001) == experiment.MAX_ROUNDS


def test_a_slow_machine_gets_fewer_architectures() -> None:
    assert experiment.architectures_within(30.0, 0.5) == experiment.MAX_ARCHITECTURES
    assert experiment.architectures_within(30.0, 2.0) == 5
    assert experiment.architectures_within(30.0, 100.0) == experiment.MIN_ARCHITECTURES
    assert experiment.architectures_within(-1.0, 1.0) == experiment.MIN_ARCHITECTURES


def test_batches_are_augmented_images_of_the_training_part() -> None:
    batches, source = experiment.load_batches(3, torch.device("cpu"))
    assert len(batches) == experiment.MAX_ARCHITECTURES
    assert source
    for batch in batches:
        assert batch.images.shape == (3, 3, 32, 32)
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == torch.int64
    assert not torch.equal(batches[0].images, batches[1].images)


@pytest.mark.slow
@pytest.mark.parametrize("script", [False, True], ids=["module", "script"])
def test_help_shows_examples(script: bool) -> None:
    finished = execute("--help", script=script)
    assert finished.returncode == 0
    assert "examples:" in finished.stdout
    assert "--networks macro --steps 80" in finished.stdout


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path: Path) -> None:
    record, picture = tmp_path / "run.json", tmp_path / "run.png"
    small = ("--networks", "only_conv", "--batch", "2", "--steps", "2", "--device", "cpu")
    finished = execute(*small, "--json", str(record), "--plot", str(picture), script=True)
    assert finished.returncode == 0, finished.stderr
    assert "split at 200" in finished.stdout
    assert "batch 2" in finished.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(record.read_text())
    assert content["schema"] == SCHEMA
    assert set(content) == {"schema", "machine", "batch", "data", "networks"}
    network = content["networks"]["only_conv"]
    assert network["steps_per_epoch"] == 22_500
    assert list(network["contestants"]) == list(CONTESTANTS)
    for contestant in network["contestants"].values():
        assert len(contestant["samples"]) == len(network["architectures"]) == 1
        assert len(contestant["samples"][0]) == 2
        assert contestant["memory"]["peak"] > contestant["memory"]["saved"] > 0
    assert list(network["overheads"]) == ["ours", "authors"]
    assert list(network["overheads"]["ours"]["time_percent"]) == list(
        map(str, TABLE_1["only_conv"].overheads)
    )
    assert network["paper"]["seconds"] == 2783
