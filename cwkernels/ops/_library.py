"""Loads the extension, once, with errors that name what is wrong."""

import inspect
import json
import platform
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from cwkernels._version import __version__

LIBRARY = Path(__file__).parents[1] / "_C.so"
MINIMUM_TORCH = (2, 10)
MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64", 21: "ppc64le"}
"""ELF's numbers of processors, under `platform.machine()`'s names."""
REBUILD = "build it here with `pip install --force-reinstall --no-deps .` (`make build` in a clone)"

Fake = TypeVar("Fake", bound=Callable[..., object])


def check_torch(version: str) -> None:
    """Raises ImportError if `version` is older than the stable ABI that the extension targets."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or tuple(map(int, found.groups())) < MINIMUM_TORCH:
        raise ImportError(f"cwkernels: wanted torch >= 2.10, got {version}")


def load(library: Path) -> None:
    """Registers the operations of the compiled extension with torch.

    Raises:
        ImportError: if there is no such file, or it does not fit this machine, this torch or this
            version of the package.
    """
    if not library.exists():
        raise ImportError(
            f"cwkernels: no compiled extension at {library}: "
            "build it with `pip install .` (or `make build` in a checkout)"
        )
    reason = file_fault(library)
    if reason is None:
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            # torch names the file, and the loader's own words are the cause of that.
            reason = f"torch {torch.__version__}: {error.__cause__ or error}"
    if reason is not None:
        raise ImportError(f"cwkernels: {library} does not load: {reason}: {REBUILD}")
    check_version(library)


def file_fault(library: Path) -> str | None:
    """Why the loader must not see a file: it dies of a truncated one, and of another processor's
    it says that there is none."""
    head = library.read_bytes()[:64]
    if len(head) < 64 or not head.startswith(b"\x7fELF\x02\x01"):
        return "it is not a 64-bit little-endian ELF file"
    (number,) = struct.unpack_from("<H", head, 18)
    machine = MACHINES.get(number, f"processor {number}")
    if machine != platform.machine():
        return f"it is for {machine}, and this machine is {platform.machine()}"
    (sections,) = struct.unpack_from("<Q", head, 40)
    size, count = struct.unpack_from("<HH", head, 58)
    wanted, got = sections + size * count, library.stat().st_size
    return f"it is truncated: wanted {wanted} bytes, got {got}" if got < wanted else None


def check_version(library: Path) -> None:
    """Raises ImportError if the extension was built from another version of this package."""
    built = build_config()["version"] if arguments("build_config") is not None else "unknown"
    if built != __version__:
        raise ImportError(
            f"cwkernels: {library}: wanted version {__version__}, got {built}: {REBUILD}"
        )


def build_config() -> dict[str, str]:
    """What the build found and chose; csrc/binding/build_config.h.in says what there is."""
    config: dict[str, str] = json.loads(torch.ops.cwkernels.build_config())
    return config


def register_fake(name: str) -> Callable[[Fake], Fake]:
    """`torch.library.register_fake` for an operation of the extension.

    Raises:
        ImportError: if the extension lacks the operation, or has it with another number of
            arguments than the fake, as one does that was built from older sources.
    """

    def register(fake: Fake) -> Fake:
        wanted, got = list(inspect.signature(fake).parameters), arguments(name)
        if got is None or len(got) != len(wanted):
            found = "no such operation" if got is None else f"{name}({', '.join(got)})"
            raise ImportError(
                f"cwkernels: {LIBRARY} was built from other sources than this package's: "
                f"wanted {name}({', '.join(wanted)}), got {found}: {REBUILD}"
            )
        torch.library.register_fake(f"cwkernels::{name}", fake)
        return fake

    return register


def arguments(name: str) -> list[str] | None:
    """The names of an operation's arguments; None if the extension has no such operation."""
    operation = getattr(torch.ops.cwkernels, name, None)
    return operation and [argument.name for argument in operation.default._schema.arguments]


check_torch(torch.__version__)
load(LIBRARY)
