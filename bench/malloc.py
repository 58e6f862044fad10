"""Settings of glibc's malloc that a benchmark runs under, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import unbound
from bench.options import command_line

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    # Blocks of any size come from the heap, and the heap is never given back.
    "keeping": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20),
    },
}
"""By name what the environment says.

By default a block of more than 32 MiB is mapped at its allocation and unmapped at its release, so
every use of one faults all its pages in; so does a heap whose top was given back. glibc reads these
variables once, when a process starts.
"""


def environment(setting: str, threads: int) -> dict[str, str]:
    """This process's environment with a setting of malloc and pinned threads."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    # Unpinned threads stall for milliseconds, now and then.
    pinned = {"OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "true"}
    return inherited | dict(SETTINGS[setting]) | pinned


def measured_under(
    setting: str, module: str, arguments: Sequence[str], threads: int
) -> dict[str, Any]:
    """What `python -m module arguments --child FILE` writes to the file, as JSON.

    Raises:
        CalledProcessError: if it fails.
    """
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "measured.json"
        command = [sys.executable, "-m", module, *arguments, "--child", str(path)]
        with unbound():
            subprocess.run(command, cwd=root, env=environment(setting, threads), check=True)
        measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return measured


def recorded(
    schema: str, setting: str, module: str, arguments: Sequence[str], threads: int
) -> dict[str, Any]:
    """A record of what is measured under one setting: its schema, the command, the setting."""
    measured = measured_under(setting, module, arguments, threads)
    command = command_line(module, arguments)
    return {"schema": schema, "command": command, "malloc": setting, **measured}
