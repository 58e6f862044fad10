"""`cwkernels doctor`: what this machine can do, and what is missing for the rest."""

import argparse
from collections.abc import Iterator
from importlib.util import find_spec

from cwkernels.about import build_info
from cwkernels.data.cifar10 import search_folders

PACKAGES = {
    "safetensors": "checkpoints: cwkernels train cannot run without it",
    "tomli_w": "cwkernels train --show-config",
    "tqdm": "progress bars",
    "tensorboard": "cwkernels train with run.tensorboard = true",
    "scipy": "cwkernels evaluate",
    "matplotlib": "the figures of cwkernels report",
    "torchvision": "reading CIFAR-10 from cifar-10-batches-py",
}
"""Optional packages, and what needs each."""

DATA = {
    "cifar10/train_0.npz": "CIFAR-10 (generated images stand in for it)",
    "groundtruth/nas-bench-macro_cifar10.json": "NAS-Bench-Macro, to evaluate a ranking by",
    "groundtruth/nb201_nats_200epochs.csv": "NAS-Bench-201, to evaluate a ranking by",
}
"""Files that are looked for, and what they hold."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """It has no arguments."""


def run(options: argparse.Namespace) -> int:
    """Prints it; 0 also where something optional is missing."""
    print(build_info())
    print("\n".join(["packages", *_packages(), "data", *_data()]))
    return 0


def _packages() -> Iterator[str]:
    width = max(map(len, PACKAGES))
    for name, purpose in PACKAGES.items():
        found = "found" if find_spec(name) is not None else "missing"
        yield f"  {name:{width}}  {found:7}  {purpose}"


def _data() -> Iterator[str]:
    folders = search_folders()
    for name, purpose in DATA.items():
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        yield f"  {purpose}: {found or 'missing: no ' + name}"
    yield f"  looked in {', '.join(map(str, folders))}"
