"""The benchmarks' tables: facts that their papers state, places, and damaged files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cwkernels as cw
from cwkernels.groundtruth import MACRO_FILE, NB201_FILE, GroundTruth, load, load_macro, load_nb201
from cwkernels.spaces.macro import flops, parameters
from cwkernels.testing import refused

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CWKERNELS_DATA", ROOT.parent / "shared" / "data"))
real_data = pytest.mark.skipif(
    not (DATA / "groundtruth" / MACRO_FILE).is_file(),
    reason=f"no ground truth in {DATA}; CWKERNELS_DATA names the folder of the real data",
)


@real_data
def test_macro_is_what_its_paper_says() -> None:
    space = cw.spaces.macro()
    truth = load_macro(space, DATA)
    archs = space.all()
    assert truth.trials is not None
    assert truth.trials.shape == (6561, 3)
    assert truth.trials.mean(1).numpy() == pytest.approx(truth.accuracy.numpy())
    assert float(truth.accuracy.mean()) == pytest.approx(90.247, abs=5e-4)
    best = truth.accuracy[space.index(space.parse("22212220"))]
    assert best == truth.accuracy.max()
    assert float(best) == pytest.approx(93.127, abs=5e-4)
    assert torch.equal(truth.parameters, parameters(archs))
    assert torch.equal(truth.flops, flops(archs))


@real_data
@pytest.mark.parametrize(
    ("subset", "mean", "best"),
    [("full", 87.063, 94.373), ("no_zero", 89.449, 94.373), ("only_conv", 93.202, 93.983)],
)
def test_nb201_and_its_subsets(subset: str, mean: float, best: float) -> None:
    space = cw.spaces.nb201(subset)
    truth = load_nb201(space, DATA)
    assert len(truth.accuracy) == len(space)
    assert float(truth.accuracy.mean()) == pytest.approx(mean, abs=5e-4)
    assert float(truth.accuracy.max()) == pytest.approx(best, abs=5e-4)
    assert truth.trials is None


@real_data
def test_a_row_is_its_architectures() -> None:
    """Lines of the file, read by eye."""
    first = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|"
    for subset in ("full", "no_zero"):
        space = cw.spaces.nb201(subset)
        truth = load_nb201(space, DATA)
        row = space.index(space.parse(first + "skip_connect~2|"))
        assert float(truth.accuracy[row]) == 85.8633
        assert int(truth.parameters[row]) == 129306
        assert int(truth.flops[row]) == 15647370
        hundred = load_nb201(space, DATA, dataset="cifar100")
        assert float(hundred.accuracy[row]) == 52.9133


@real_data
def test_kernel_areas_reach_the_tau_that_honest_tables_state() -> None:
    from scipy.stats import kendalltau

    space = cw.spaces.nb201("full")
    truth = load(space, DATA)
    found = cw.ranking.predictors(truth, space.all())
    taus = {
        name: kendalltau(values, truth.accuracy.numpy()).statistic for name, values in found.items()
    }
    assert taus["kernel area"] == pytest.approx(0.578, abs=5e-4)
    assert taus["live kernel area"] == pytest.approx(0.654, abs=5e-4)


@real_data
def test_the_noise_of_macro_bounds_any_ranking() -> None:
    space = cw.spaces.macro()
    truth = load(space, DATA)
    archs = cw.ranking.evaluated_set(space)
    accuracy = truth.accuracy[space.index(archs)]
    scores = cw.ranking.Scores(space, archs, accuracy, accuracy)
    evaluation = cw.ranking.evaluate(scores, truth, resamples=2)
    assert evaluation.results["super-network"].metrics["tau"] == 1
    assert evaluation.ceiling is not None
    assert evaluation.ceiling["tau"] == pytest.approx(0.9, abs=0.01)


def test_the_benchmark_counts_6466_cells() -> None:
    space = cw.spaces.nb201("full")
    assert len({space.unique_string(arch) for arch in space}) == 6466


Reader = Callable[[Path], GroundTruth]
readers = pytest.mark.parametrize(
    ("name", "read"),
    [
        (MACRO_FILE, lambda root: load_macro(cw.spaces.macro(), root)),
        (NB201_FILE, lambda root: load_nb201(cw.spaces.nb201("full"), root)),
    ],
)


@readers
def test_an_absent_file_is_one_line(name: str, read: Reader, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert message.startswith("groundtruth.load_")
    assert message.endswith(f": wanted {name} in {tmp_path}, got nothing there")
    assert "\n" not in message


@real_data
@readers
def test_an_altered_file_is_refused(name: str, read: Reader, tmp_path: Path) -> None:
    content = (DATA / "groundtruth" / name).read_bytes()
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in read(tmp_path).source
    (tmp_path / name).write_bytes(content.replace(b"85.", b"95.", 1))
    with pytest.raises(ValueError, match=rf"{name}: wanted SHA-256 \w{{12}}…, got \w{{12}}…$"):
        read(tmp_path)


def test_wrong_arguments_are_refused() -> None:
    with refused(ValueError, "groundtruth.load_nb201: dataset: wanted one of ('cifar10', "):
        load_nb201(cw.spaces.nb201("full"), dataset="mnist")
    with refused(TypeError, "groundtruth.load: space: wanted nb201 or macro, got int"):
        load(3)  # type: ignore[arg-type]
