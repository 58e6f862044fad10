"""Readers of CIFAR-10."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cwkernels.data.checks import require
from cwkernels.data.dataset import Cifar10
from cwkernels.data.generated import generate_cifar10

IMAGES_PER_FILE = 10_000
CHECKOUT = Path(__file__).resolve().parents[2]

_TRAIN_FILES = tuple(f"train_{part}.npz" for part in range(5))
_TEST_FILE = "test.npz"
_BINARIES = "cifar-10-batches-py"

_Bytes = npt.NDArray[np.uint8]
_Labels = npt.NDArray[np.int64]


def search_folders() -> list[Path]:
    """The folders in which ``load_cifar10`` looks, first to last.

    ``$CWKERNELS_DATA``; ``../shared/data`` beside the checkout; ``../shared/data`` and ``data``
    as seen from the working directory.
    """
    named = os.environ.get("CWKERNELS_DATA")
    folders = [Path(named).expanduser()] if named else []
    beside = Path("shared", "data")
    folders += [CHECKOUT.parent / beside, Path.cwd().parent / beside, Path.cwd() / "data"]
    return list(dict.fromkeys(folder.absolute() for folder in folders))


def load_cifar10(
    root: str | os.PathLike[str] | None = None,
    *,
    generated_train: int = 50_000,
    generated_test: int = 10_000,
) -> Cifar10:
    """Loads CIFAR-10, or generates images in its place; ``source`` says which.

    Looked for, the first found wins:

    1. ``cifar10/train_{0..4}.npz`` and ``cifar10/test.npz`` in each of ``search_folders()``, with
       ``images`` uint8 ``[10000, 3, 32, 32]`` and ``labels`` uint8 ``[10000]`` each;
    2. torchvision's ``cifar-10-batches-py`` in each of them, if torchvision can be imported;
    3. neither: ``generate_cifar10(generated_train, generated_test)``.

    Args:
        root: the only folder to look in. It holds the npz files, or a ``cifar10`` folder with
            them, or ``cifar-10-batches-py``; nothing is generated in their place.
        generated_train: number of training images where they are generated.
        generated_test: number of test images where they are generated.

    Raises:
        FileNotFoundError: ``root`` is no folder or holds none of these, or one of the six npz
            files is missing.
        ImportError: ``root`` holds only ``cifar-10-batches-py``, and torchvision cannot be
            imported.
        ValueError: a damaged file, or arrays of another type or shape; a count below 1.
    """
    folders = search_folders() if root is None else [_existing(root)]
    direct = [] if root is None else folders
    npz = _first_with((*_TRAIN_FILES, _TEST_FILE), [*direct, *(f / "cifar10" for f in folders)])
    if npz is not None:
        return _read_npz(npz)
    binaries = _first_with((_BINARIES,), folders)
    if binaries is not None and _torchvision_works():
        return _read_binaries(binaries)
    if root is not None:
        if binaries is not None:
            raise ImportError(
                f"load_cifar10: root: wanted torchvision, to read {binaries / _BINARIES}, "
                "got an installation that cannot import it"
            )
        raise FileNotFoundError(
            f"load_cifar10: root: wanted {_TRAIN_FILES[0]} … {_TEST_FILE} or {_BINARIES} "
            f"in {folders[0]}, got neither"
        )
    return generate_cifar10(generated_train, generated_test, source=_why(folders, binaries))


def _existing(root: str | os.PathLike[str]) -> Path:
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise FileNotFoundError(f"load_cifar10: root: wanted a folder at {folder}, got {got}")
    return folder


def _first_with(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The first folder that holds any of the names: a partial copy is an error, not absence."""
    return next((f for f in folders if any((f / name).exists() for name in names)), None)


def _why(folders: Sequence[Path], binaries: Path | None) -> str:
    if binaries is not None:
        return f"generated images (no torchvision to read {binaries / _BINARIES})"
    return f"generated images (no CIFAR-10 found in {', '.join(map(str, folders))})"


def _read_npz(folder: Path) -> Cifar10:
    files = [folder / name for name in (*_TRAIN_FILES, _TEST_FILE)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"load_cifar10: {file}: wanted a file, got nothing there")
    images = np.empty((len(_TRAIN_FILES), IMAGES_PER_FILE, 3, 32, 32), np.uint8)
    labels = np.empty((len(_TRAIN_FILES), IMAGES_PER_FILE), np.int64)
    for part, file in enumerate(files[:-1]):
        images[part], labels[part] = _read_npz_file(file)
    return _dataset(
        (images.reshape(-1, 3, 32, 32), labels.reshape(-1)), _read_npz_file(files[-1]), folder
    )


def _read_npz_file(file: Path) -> tuple[_Bytes, _Labels]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    # Of a damaged archive NumPy and zipfile raise nearly anything, from zlib.error to KeyError.
    except Exception as error:
        raise ValueError(
            f"load_cifar10: {file}: wanted a whole npz file with images and labels, "
            f"got {type(error).__name__}"
        ) from error
    return _checked(file, images, labels, IMAGES_PER_FILE)


def _torchvision_works() -> bool:
    try:
        importlib.import_module("torchvision.datasets")
    except (ImportError, OSError, RuntimeError):  # the last two: built for another torch
        return False
    return True


def _read_binaries(root: Path) -> Cifar10:
    from torchvision.datasets import CIFAR10

    folder = root / _BINARIES
    parts = []
    for train, count in ((True, len(_TRAIN_FILES) * IMAGES_PER_FILE), (False, IMAGES_PER_FILE)):
        try:
            stored = CIFAR10(root, train=train, download=False)
        except RuntimeError as error:
            raise ValueError(
                f"load_cifar10: {folder}: wanted files with torchvision's md5 sums, "
                "got a missing or damaged one"
            ) from error
        images = np.ascontiguousarray(stored.data.transpose(0, 3, 1, 2))
        parts.append(_checked(folder, images, np.asarray(stored.targets), count))
    return _dataset(parts[0], parts[1], folder)


def _checked(
    file: Path, images: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], count: int
) -> tuple[_Bytes, _Labels]:
    operation = f"load_cifar10: {file}"
    ok = images.dtype == np.uint8 and images.shape == (count, 3, 32, 32)
    got = f"{images.dtype} {list(images.shape)}"
    require(ok, operation, "images", f"uint8 [{count}, 3, 32, 32]", got)
    ok = np.issubdtype(labels.dtype, np.integer) and labels.shape == (count,)
    got = f"{labels.dtype} {list(labels.shape)}"
    require(ok, operation, "labels", f"integers [{count}]", got)
    values = labels.astype(np.int64)
    got = f"{values.min()} … {values.max()}"
    require(values.min() >= 0 and values.max() <= 9, operation, "labels", "0 … 9", got)
    return images.astype(np.uint8, copy=False), values


def _dataset(train: tuple[_Bytes, _Labels], test: tuple[_Bytes, _Labels], folder: Path) -> Cifar10:
    tensors = (torch.from_numpy(array) for array in (*train, *test))
    train_images, train_labels, test_images, test_labels = tensors
    source = f"CIFAR-10 ({folder})"
    return Cifar10(train_images, train_labels, test_images, test_labels, source)
