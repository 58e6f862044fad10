"""The stages, in their order: fragments, tests, the same watched, benchmarks, profiles."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu_check import verdicts
from tools.gpu_check.stage import Stage

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 86
"""Exit code of compute-sanitizer for findings; pytest ends with 0 to 5."""
STAND_IN = (sys.executable, "-m", "tools.gpu_check.stand_in")
TESTS_A_PART = 60
"""Under a tool, which slows a test some twentyfold, this many fit into a stage."""
NO_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Each tensor is an allocation of its own, so that an access next to it is one next to nothing."""
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
        sample: the part of the tests that runs under its tools.
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
    return [
        Stage("fragments", (str(setting.fragments),)),
        *(
            _accepted(setting.sanitizer, tool)
            for tool in TOOLS
            if setting.dry and setting.sanitizer
        ),
        *(_tests(setting, file, count) for file, count in files.items()),
        *(
            _watched(setting, tool, file, count, part, parts)
            for tool in TOOLS
            for file, count in files.items()
            for parts in [1 if setting.dry else math.ceil(count * setting.sample / TESTS_A_PART)]
            for part in range(1, parts + 1)
        ),
        *_benchmarks(setting),
    ]


def _pytest(setting: Setting, file: str, report: Path) -> tuple[str, ...]:
    plain = ("-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1")
    device = f"--device={setting.device}"
    return (sys.executable, "-m", "pytest", *plain, device, f"--junitxml={report}", file)


def _part(setting: Setting, count: int, part: int, parts: int) -> str:
    """A dry run asks whether a stage works, not whether the kernels do: three tests are enough."""
    return f"--part=1/{max(1, count // 3)}" if setting.dry else f"--part={part}/{parts}"


def _tests(setting: Setting, file: str, count: int) -> Stage:
    name = f"tests.{_stem(file)}"
    report = setting.folder / f"{name}.xml"
    command = (*_pytest(setting, file, report), _part(setting, count, 1, 1))
    return Stage(name, command, verdicts.of_tests(report), NO_CACHE)


def _watched(setting: Setting, tool: str, file: str, count: int, part: int, parts: int) -> Stage:
    """Tests under one of compute-sanitizer's tools."""
    name = f"{tool}.{_stem(file)}.{part}"
    report = setting.folder / f"{name}.xml"
    if not setting.sanitizer:
        missing = "print('compute-sanitizer is not in the kit'); raise SystemExit(1)"
        return Stage(name, (sys.executable, "-c", missing), verdicts.of_sanitizer(report))
    tests = (*_pytest(setting, file, report), _part(setting, count, part, parts), "--timeout=0")
    if setting.sample < 1 and not setting.dry:
        tests += ("--sample", str(setting.sample), "--sample-seed=0")
    # Without a GPU compute-sanitizer ends before it has started what it is to watch.
    program = STAND_IN if setting.dry else (str(setting.sanitizer),)
    command = (*program, *options_of(tool), *tests)
    return Stage(name, command, verdicts.of_sanitizer(report), NO_CACHE)


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
