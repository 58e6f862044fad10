"""Reading CIFAR-10, its facts, and what stands in for it."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwkernels import data
from cwkernels.data import Cifar10, cifar10

SMALL = 6  # images a file in the copies that the tests write
NPZ = [*(f"train_{part}.npz" for part in range(5)), "test.npz"]


@pytest.fixture(scope="module")
def real() -> Cifar10:
    loaded = data.load_cifar10(generated_train=1, generated_test=1)
    if not loaded.source.startswith("CIFAR-10 ("):
        pytest.skip(loaded.source)
    return loaded


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without data, on which a file holds SMALL images; its working directory."""
    monkeypatch.delenv("CWKERNELS_DATA", raising=False)
    monkeypatch.setattr(cifar10, "CHECKOUT", tmp_path / "home" / "checkout")
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", SMALL)
    work = tmp_path / "project" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    return work


def small_arrays(part: int) -> dict[str, Any]:
    random = np.random.default_rng(part)
    return {
        "images": random.integers(0, 256, (SMALL, 3, 32, 32), np.uint8),
        "labels": random.integers(0, 10, SMALL, np.uint8),
    }


def write_npz(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in enumerate(NPZ):
        np.savez_compressed(folder / name, **small_arrays(part))
    return folder


def write_binaries(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for part, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        arrays = small_arrays(part)
        stored = {"data": arrays["images"].reshape(SMALL, -1), "labels": arrays["labels"].tolist()}
        (folder / name).write_bytes(pickle.dumps(stored))
    meta = {"label_names": [str(label) for label in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return folder


def accept_any_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = pytest.importorskip("torchvision.datasets").CIFAR10
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(stock, files, [[name, None] for name, _ in getattr(stock, files)])
    monkeypatch.setattr(stock, "meta", {**stock.meta, "md5": None})


def assert_small(loaded: Cifar10, folder: Path) -> None:
    parts = [small_arrays(part) for part in range(6)]
    for field in ("images", "labels"):
        train = np.concatenate([part[field] for part in parts[:5]])
        assert np.array_equal(getattr(loaded, f"train_{field}").numpy(), train)
        assert np.array_equal(getattr(loaded, f"test_{field}").numpy(), parts[5][field])
    assert loaded.train_images.dtype == loaded.test_images.dtype == torch.uint8
    assert loaded.train_labels.dtype == loaded.test_labels.dtype == torch.int64
    assert loaded.train_images.is_contiguous()
    assert loaded.source == f"CIFAR-10 ({folder})"


def test_real_counts(real: Cifar10) -> None:
    assert real.train_images.shape == (50_000, 3, 32, 32)
    assert real.test_images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(real.train_labels).tolist() == [5_000] * 10
    assert torch.bincount(real.test_labels).tolist() == [1_000] * 10


def test_real_original_order(real: Cifar10) -> None:
    """The first labels of data_batch_1 and test_batch, known from CIFAR-10 itself."""
    assert real.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert real.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]


def test_real_mean_and_deviation_are_the_normalisation(real: Cifar10) -> None:
    """To the digits that the constants have; RGB, since the channels differ."""
    count = real.train_images.numel() / 3
    first = torch.zeros(3, dtype=torch.float64)
    second = torch.zeros(3, dtype=torch.float64)
    for start in range(0, 50_000, 2_500):
        values = real.train_images[start : start + 2_500].double() / 255
        first += values.sum((0, 2, 3))
        second += values.square().sum((0, 2, 3))
    mean = first / count
    deviation = (second / count - mean.square()).sqrt()
    assert [round(value, 4) for value in mean.tolist()] == list(data.MEAN)
    assert [round(value, 4) for value in deviation.tolist()] == list(data.DEVIATION)


def test_real_division(real: Cifar10) -> None:
    batches = data.Batches(real, seed=0)
    assert len(batches.training_indices) == 45_000
    assert len(batches.validation_indices) == 5_000
    assert batches.steps_per_epoch == 175
    counts = torch.bincount(real.train_labels[batches.validation_indices])
    assert (counts - 500).abs().max() < 5 * 500**0.5


@pytest.mark.parametrize("where", ["variable", "checkout", "beside", "below"])
def test_search_list(bare: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    folders = {
        "variable": bare.parents[1] / "named",
        "checkout": bare.parents[1] / "home" / "shared" / "data",
        "beside": bare.parent / "shared" / "data",
        "below": bare / "data",
    }
    monkeypatch.setenv("CWKERNELS_DATA", str(folders["variable"]))
    assert cifar10.search_folders() == list(folders.values())
    written = write_npz(folders[where] / "cifar10")
    assert_small(data.load_cifar10(), written)


def test_first_in_the_search_list_wins(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(bare / "data" / "cifar10")
    monkeypatch.setenv("CWKERNELS_DATA", str(bare / "named"))
    first = write_npz(bare / "named" / "cifar10")
    assert data.load_cifar10().source == f"CIFAR-10 ({first})"


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_root_wins(bare: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    monkeypatch.setenv("CWKERNELS_DATA", str(bare / "named"))
    write_npz(bare / "named" / "cifar10")
    chosen = write_npz(bare / "chosen" / below)
    assert_small(data.load_cifar10(bare / "chosen"), chosen)
    assert_small(data.load_cifar10("chosen"), chosen)


def test_root_must_exist(bare: Path) -> None:
    write_npz(bare / "data" / "cifar10")
    (bare / "file").touch()
    for name, got in (("absent", "nothing there"), ("file", "a file")):
        with pytest.raises(FileNotFoundError) as error:
            data.load_cifar10(name)
        wanted = f"load_cifar10: root: wanted a folder at {bare / name}, got {got}"
        assert str(error.value) == wanted


def test_root_must_hold_cifar10(bare: Path) -> None:
    write_npz(bare / "data" / "cifar10")
    (bare / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        data.load_cifar10("empty")
    assert str(error.value) == (
        "load_cifar10: root: wanted train_0.npz … test.npz or cifar-10-batches-py in "
        f"{bare / 'empty'}, got neither"
    )


@pytest.mark.parametrize("name", NPZ)
def test_missing_file(bare: Path, name: str) -> None:
    folder = write_npz(bare / "data" / "cifar10")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load_cifar10()
    assert str(error.value) == f"load_cifar10: {folder / name}: wanted a file, got nothing there"


def bad_bytes(whole: bytes) -> dict[str, bytes]:
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle:-4000]) + whole[-4000:]
    return {"empty": b"", "cut": whole[:-1000], "half": whole[:middle], "damaged": damaged}


@pytest.mark.parametrize("kind", ["empty", "cut", "half", "damaged", "npy", "keys", "text"])
@pytest.mark.parametrize("name", ["train_3.npz", "test.npz"])
def test_damaged_file(bare: Path, kind: str, name: str) -> None:
    file = write_npz(bare / "data" / "cifar10") / name
    if kind == "npy":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif kind == "keys":
        np.savez(file, images=np.zeros(3))
    elif kind == "text":
        file.write_text("not an archive")
    else:
        file.write_bytes(bad_bytes(file.read_bytes())[kind])
    with pytest.raises(ValueError, match="npz") as error:
        data.load_cifar10()
    wanted = f"load_cifar10: {file}: wanted a whole npz file with images and labels, got "
    assert str(error.value).startswith(wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("images", np.zeros((SMALL, 3, 32, 32)), "wanted uint8 [6, 3, 32, 32], got float64 [6, 3"),
        ("images", np.zeros((5, 3, 32, 32), np.uint8), "wanted uint8 [6, 3, 32, 32], got uint8 [5"),
        ("images", np.zeros((6, 32, 32, 3), np.uint8), "got uint8 [6, 32, 32, 3]"),
        ("labels", np.zeros(5, np.uint8), "wanted integers [6], got uint8 [5]"),
        ("labels", np.zeros(6), "wanted integers [6], got float64 [6]"),
        ("labels", np.full(6, 10, np.uint8), "wanted 0 … 9, got 10 … 10"),
        ("labels", np.arange(-1, 5, dtype=np.int8), "wanted 0 … 9, got -1 … 4"),
    ],
)
def test_wrong_arrays(bare: Path, field: str, value: np.ndarray[Any, Any], message: str) -> None:
    file = write_npz(bare / "data" / "cifar10") / "train_2.npz"
    np.savez(file, **{**small_arrays(2), field: value})
    with pytest.raises(ValueError, match="wanted") as error:
        data.load_cifar10()
    assert str(error.value).startswith(f"load_cifar10: {file}: {field}: wanted ")
    assert message in str(error.value)


def test_torchvision_binaries(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_any_md5(monkeypatch)
    folder = write_binaries(bare / "data")
    assert_small(data.load_cifar10(), folder)
    assert_small(data.load_cifar10(bare / "data"), folder)


def test_npz_files_come_before_binaries(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_any_md5(monkeypatch)
    write_binaries(bare.parent / "shared" / "data")
    folder = write_npz(bare / "data" / "cifar10")
    assert_small(data.load_cifar10(), folder)


def test_damaged_binaries(bare: Path) -> None:
    pytest.importorskip("torchvision.datasets")
    folder = write_binaries(bare / "data")  # whose md5 sums are not CIFAR-10's
    with pytest.raises(ValueError, match="md5") as error:
        data.load_cifar10()
    assert str(error.value) == (
        f"load_cifar10: {folder}: wanted files with torchvision's md5 sums, "
        "got a missing or damaged one"
    )


def test_binaries_of_another_size(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_any_md5(monkeypatch)
    folder = write_binaries(bare / "data")
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", SMALL + 1)
    with pytest.raises(ValueError, match="images") as error:
        data.load_cifar10()
    assert str(error.value) == (
        f"load_cifar10: {folder}: images: wanted uint8 [35, 3, 32, 32], got uint8 [30, 3, 32, 32]"
    )


def test_binaries_without_torchvision(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    folder = write_binaries(bare / "data")
    loaded = data.load_cifar10(generated_train=3, generated_test=2)
    assert loaded.source == f"generated images (no torchvision to read {folder})"
    with pytest.raises(ImportError) as error:
        data.load_cifar10(bare / "data")
    assert str(error.value).startswith(
        f"load_cifar10: root: wanted torchvision, to read {folder}, got "
    )


def test_generated_where_nothing_is_found(bare: Path) -> None:
    loaded = data.load_cifar10(generated_train=30, generated_test=20)
    folders = ", ".join(str(folder) for folder in cifar10.search_folders())
    assert loaded.source == f"generated images (no CIFAR-10 found in {folders})"
    assert str(bare / "data") in loaded.source
    assert loaded.train_images.shape == (30, 3, 32, 32)
    assert loaded.test_images.shape == (20, 3, 32, 32)
    assert loaded.train_labels.dtype == torch.int64
