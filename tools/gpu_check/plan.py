"""The stages, in their order: fragments, tests, the same watched, benchmarks, profiles."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tools.gpu_check import verdicts
from tools.gpu_check.stage import Stage

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 86
"""Exit code of compute-sanitizer for findings; pytest ends with 0 to 5."""
STAND_IN = (sys.executable, "-m", "tools.gpu_check.stand_in")
MOST_TESTS, MOST_WATCHED = 100, 60
"""Tests of a stage; under a tool, which slows a test some twentyfold."""
LEAST_WATCHED = 8
"""Tests of a file that a sample has on average at least: one that drew none would prove nothing."""
NO_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Each tensor is an allocation of its own, so that an access next to it is one next to nothing."""
CAPTURED = ("tests/training/test_graphed.py",)
"""Tests that capture a CUDA graph, whose memory comes from torch's allocator."""
NETWORKS = ("full", "only_conv", "macro")
BATCHES = (64, 256)


@dataclass(frozen=True)
class Setting:
    """What a run is asked for.

    Attributes:
        folder: where records go.
        device: "cuda", or "emulated" on a dry run: tiny shapes, and no tool watches.
        fragments: the program of the fragment tables.
        sanitizer: compute-sanitizer; None if it is not there.
        sample: the part of the tests that runs under its tools; of small files a larger one.
    """

    folder: Path
    device: str
    fragments: Path
    sanitizer: Path | None
    sample: float

    @property
    def dry(self) -> bool:
        """Whether the emulator stands in for a GPU."""
        return self.device == "emulated"


def environment(setting: Setting) -> Stage:
    """What must pass before all others, and says what they are."""
    record = setting.folder / "environment.facts.json"
    module = "tools.gpu_check.environment"
    command = (sys.executable, "-m", module, setting.device, str(record))
    return Stage("environment", command, verdicts.of_record(record))


def stages(setting: Setting, facts: Mapping[str, Any]) -> list[Stage]:
    """All others, from what the first one found."""
    files: Mapping[str, int] = facts["tests"]
    # One shows on a dry run what all would, and each takes seconds to start.
    watched = dict(list(files.items())[:1]) if setting.dry else files
    return [
        Stage("fragments", (str(setting.fragments),)),
        *(
            _accepted(setting.sanitizer, tool)
            for tool in TOOLS
            if setting.dry and setting.sanitizer
        ),
        *chain.from_iterable(_tests(setting, file, count) for file, count in files.items()),
        *chain.from_iterable(
            _watched(setting, tool, file, count)
            for tool in TOOLS
            for file, count in watched.items()
        ),
        *_benchmarks(setting),
    ]


def shares(stage: Stage) -> bool:
    """Whether a stage measures nothing, so that others may run beside it."""
    return stage.name.partition(".")[0] in ("tests", *TOOLS)


def _pytest(setting: Setting, file: str, report: Path) -> tuple[str, ...]:
    plain = ("-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1")
    device = f"--device={setting.device}"
    return (sys.executable, "-m", "pytest", *plain, device, f"--junitxml={report}", file)


def _parts(setting: Setting, count: float, most: int) -> list[str]:
    """Options of pytest that share out tests into parts of at most so many.

    A dry run asks whether a stage works, not whether the kernels do: three tests are enough.
    """
    if setting.dry:
        return [f"--part=1/{max(1, int(count) // 3)}"]
    parts = max(1, math.ceil(count / most))
    return [f"--part={part}/{parts}" for part in range(1, parts + 1)]


def _tests(setting: Setting, file: str, count: int) -> Iterator[Stage]:
    for number, part in enumerate(_parts(setting, count, MOST_TESTS), 1):
        name = f"tests.{_stem(file)}.{number}"
        report = setting.folder / f"{name}.xml"
        command = (*_pytest(setting, file, report), part)
        yield Stage(name, command, verdicts.of_tests(report), _memory(file))


def _memory(file: str) -> Mapping[str, str]:
    return {} if file in CAPTURED else NO_CACHE


def _watched(setting: Setting, tool: str, file: str, count: int) -> Iterator[Stage]:
    """Tests under one of compute-sanitizer's tools."""
    share = min(max(setting.sample, LEAST_WATCHED / max(count, 1)), 1.0)
    for number, part in enumerate(_parts(setting, count * share, MOST_WATCHED), 1):
        name = f"{tool}.{_stem(file)}.{number}"
        report = setting.folder / f"{name}.xml"
        if setting.sanitizer is None:
            missing = "print('compute-sanitizer is not in the kit'); raise SystemExit(1)"
            command: tuple[str, ...] = (sys.executable, "-c", missing)
        else:
            # Without a GPU compute-sanitizer ends before it has started what it is to watch.
            program = STAND_IN if setting.dry else (str(setting.sanitizer),)
            sample = ("--sample", f"{share:.3f}", "--sample-seed=0")
            tests = (*_pytest(setting, file, report), part, "--timeout=0")
            tests += sample if share < 1 and not setting.dry else ()
            command = (*program, *options_of(tool), *tests)
        yield Stage(name, command, verdicts.of_sanitizer(report), _memory(file))


def options_of(tool: str) -> tuple[str, ...]:
    """Of compute-sanitizer."""
    options = ("--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20")
    # torch's own kernels are not what is looked at, and watching them takes most of the time. What
    # initcheck does not watch it takes for never written.
    return options if tool == "initcheck" else (*options, "--kernel-name", "kns=cwkernels")


def _accepted(program: Path, tool: str) -> Stage:
    """On a dry run: whether compute-sanitizer knows these options."""
    command = (str(program), *options_of(tool), "--require-cuda-init", "no", "/bin/true")
    return Stage(f"options.{tool}", command)


def _benchmarks(setting: Setting) -> Iterator[Stage]:
    tiny = ("--batch", "2", "--rounds", "2")
    calls = (*tiny, "--only", "copy_rows") if setting.dry else ("--batch", "256")
    yield _measured(setting, "kernels", "bench.kernels", *calls)
    networks, batches = (("full",), (2,)) if setting.dry else (NETWORKS, BATCHES)
    few = ("--architectures", "1", "--rounds", "2") if setting.dry else ("--compile",)
    for network in networks:
        for batch in batches:
            what = ("--networks", network, "--batch", str(batch))
            name = f"peers.{network}.{batch}"
            yield _measured(setting, name, "bench.peers", *what, *few)
            name = f"profile.{network}.{batch}"
            yield _measured(setting, name, "bench.step_profile", *what)
        name, steps = f"overhead.{network}", ("--batch", "2", "--steps", "2") if setting.dry else ()
        yield _measured(setting, name, "bench.overhead", "--networks", network, *steps)


def _measured(setting: Setting, name: str, module: str, *arguments: str) -> Stage:
    record = setting.folder / f"{name}.record.json"
    device = ("--device", setting.device, "--json", str(record))
    command = (sys.executable, "-m", module, *arguments, *device)
    return Stage(name, command, verdicts.of_record(record))


def _stem(file: str) -> str:
    return Path(file).stem.removeprefix("test_")
