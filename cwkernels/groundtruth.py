"""What the architectures of a benchmark reach when each is trained alone.

Two published tables: NAS-Bench-Macro (Su et al., 2021) and NAS-Bench-201 as NATS-Bench has it
(Dong et al., 2021). They are data that a user has or has not; nothing ships with the package.
"""

import csv
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cwkernels.data.cifar10 import search_folders
from cwkernels.spaces import NB201, Macro, Space, nb201

MACRO_FILE = "nas-bench-macro_cifar10.json"
NB201_FILE = "nb201_nats_200epochs.csv"
CHECKSUMS = {
    MACRO_FILE: "686dee8363cc21cca8c1f321ad5749454f2d9b9ca5972682e137e539bc522297",
    NB201_FILE: "28a019ac84b3342ada03c3a761f468acf8e4cd091421b74f570bb16fb79044cc",
}
"""SHA-256 of the files."""

DATASETS = ("cifar10", "cifar100", "imagenet16_120")
"""The data sets of NAS-Bench-201's test accuracies."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A benchmark's table of a space, rows in the order of ``space.index``.

    Attributes:
        space: the space.
        accuracy: float64 ``[len(space)]``, test accuracy in percent, averaged over trainings.
        parameters: int64 ``[len(space)]``, of the benchmark's own network.
        flops: int64 ``[len(space)]``, multiply-adds of it for one image.
        trials: float64 ``[len(space), T]``, the accuracy of each training; None if unpublished.
        source: the file, in one line that reports print.
    """

    space: Space
    accuracy: Tensor
    parameters: Tensor
    flops: Tensor
    trials: Tensor | None
    source: str


def load(space: Space, root: str | os.PathLike[str] | None = None) -> GroundTruth:
    """The CIFAR-10 table of a space: `load_macro` or `load_nb201`.

    Raises:
        TypeError: for another space.
        FileNotFoundError, ValueError: theirs.
    """
    if isinstance(space, Macro):
        return load_macro(space, root)
    if isinstance(space, NB201):
        return load_nb201(space, root)
    got = getattr(space, "name", type(space).__name__)
    raise TypeError(f"groundtruth.load: space: wanted nb201 or macro, got {got}")


def load_macro(space: Macro, root: str | os.PathLike[str] | None = None) -> GroundTruth:
    """NAS-Bench-Macro: CIFAR-10, three trainings of each of the 6561 architectures.

    Args:
        space: `cw.spaces.macro()`.
        root: the folder of the file, or the one above ``groundtruth``; None searches the folders of
            `cw.data.load_cifar10`.

    Raises:
        FileNotFoundError: if the file is in none of them.
        ValueError: if its checksum is not that of the published table.
    """
    path, content = _read("groundtruth.load_macro", MACRO_FILE, root)
    table = json.loads(content)
    rows = [table[space.format(arch)] for arch in space]
    return GroundTruth(
        space,
        accuracy=torch.tensor([row["mean_acc"] for row in rows], dtype=torch.float64),
        parameters=torch.tensor([row["params"] for row in rows]),
        flops=torch.tensor([row["flops"] for row in rows]),
        trials=torch.tensor([row["test_acc"] for row in rows], dtype=torch.float64),
        source=f"NAS-Bench-Macro ({path})",
    )


def load_nb201(
    space: NB201, root: str | os.PathLike[str] | None = None, *, dataset: str = "cifar10"
) -> GroundTruth:
    """NAS-Bench-201 after 200 epochs (NATS-Bench, topology), averaged over its trainings.

    Parameters and FLOPs are those of the benchmark's network: 16 channels, 5 cells a stage.

    Args:
        space: `cw.spaces.nb201(...)`, any of the three.
        root: as `load_macro`'s.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet16_120"``.

    Raises:
        FileNotFoundError: if the file is in none of the folders.
        ValueError: for another data set, or if the file's checksum is not the known one.
    """
    operation = "groundtruth.load_nb201"
    if dataset not in DATASETS:
        raise ValueError(f"{operation}: dataset: wanted one of {DATASETS}, got {dataset!r}")
    path, content = _read(operation, NB201_FILE, root)
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    codes = torch.tensor([[int(digit) for digit in row["ops"]] for row in rows])
    # In the full space a code is its choice, so the index of each row sorts the table.
    place = torch.empty(len(rows), dtype=torch.int64)
    place[nb201("full").index(codes)] = torch.arange(len(rows))
    chosen = place[nb201("full").index(space.codes(space.all()))]

    def column(name: str, dtype: torch.dtype) -> Tensor:
        values = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
        return values[chosen].to(dtype)

    return GroundTruth(
        space,
        accuracy=column(f"{dataset}_test", torch.float64),
        parameters=column("params", torch.int64),
        flops=column("flops", torch.int64),
        trials=None,
        source=f"NAS-Bench-201, {dataset} ({path})",
    )


def _read(operation: str, name: str, root: str | os.PathLike[str] | None) -> tuple[Path, bytes]:
    folders = search_folders() if root is None else [Path(root).expanduser().absolute()]
    places = [folder / inner / name for folder in folders for inner in ("", "groundtruth")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(str(folder) for folder in folders)
        raise FileNotFoundError(f"{operation}: wanted {name} in {looked}, got nothing there")
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != CHECKSUMS[name]:
        wanted = CHECKSUMS[name][:12]
        raise ValueError(f"{operation}: {path}: wanted SHA-256 {wanted}…, got {got[:12]}…")
    return path, content
