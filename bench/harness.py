"""Timing of rivals in one process, the machine's description, and files never half written.

A speed is a ratio of medians. The rivals take turns, in one order and then in the other, so that
drift, a noisy neighbour or what the one before left in the caches meets all of them alike.
"""

import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Action = Callable[[], object]


@dataclass(frozen=True)
class Interval:
    """A value with its 10 and 90 % quantiles, where nothing else is said."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Samples:
    """Seconds of every callable: `seconds[name][case][round]`."""

    seconds: Mapping[str, tuple[tuple[float, ...], ...]]

    def medians(self, name: str) -> list[float]:
        """The median over the rounds, one a case."""
        return [statistics.median(rounds) for rounds in self.seconds[name]]

    def mean_of_medians(self, name: str) -> float:
        """The mean over the cases of the medians over the rounds."""
        return statistics.fmean(self.medians(name))

    def mean(self, name: str) -> Interval:
        """The mean of medians with its bootstrap interval."""
        return self._bootstrap((name,), lambda means: means[0])

    def ratio(self, name: str, base: str, confidence: float = 0.8) -> Interval:
        """How many times `base`'s mean of medians `name`'s is, with its bootstrap interval.

        In each case the same rounds are resampled for both: what disturbs a round disturbs both.
        """
        return self._bootstrap((name, base), lambda means: means[0] / means[1], confidence)

    def paired_ratios(self, name: str, base: str) -> list[float]:
        """The ratio of every pair that ran in the same case and round."""
        return [
            ours / theirs
            for rounds, base_rounds in zip(self.seconds[name], self.seconds[base], strict=True)
            for ours, theirs in zip(rounds, base_rounds, strict=True)
        ]

    @property
    def num_cases(self) -> int:
        """How many cases every callable ran in."""
        return len(next(iter(self.seconds.values())))

    @property
    def num_rounds(self) -> int:
        """How often every callable ran in each case."""
        return len(next(iter(self.seconds.values()))[0])

    def _bootstrap(
        self,
        names: Sequence[str],
        statistic: Callable[[Sequence[float]], float],
        confidence: float = 0.8,
        resamples: int = 200,
    ) -> Interval:
        def evaluate(pick: Callable[[], Sequence[int]]) -> float:
            picked = [pick() for _ in range(self.num_cases)]
            return statistic(
                [
                    statistics.fmean(
                        statistics.median(rounds[i] for i in indices)
                        for rounds, indices in zip(self.seconds[name], picked, strict=True)
                    )
                    for name in names
                ]
            )

        everything = range(self.num_rounds)
        generator = random.Random(0)
        draws = [
            evaluate(lambda: generator.choices(everything, k=self.num_rounds))
            for _ in range(resamples)
        ]
        low, high = quantiles(draws, confidence)
        return Interval(evaluate(lambda: everything), low, high)


def quantiles(values: Sequence[float], confidence: float = 0.8) -> tuple[float, float]:
    """The quantiles between which this part of the values lies: 10 and 90 % for 0.8."""
    if len(values) == 1:
        return values[0], values[0]
    outside = round(2 / (1 - confidence))
    cuts = statistics.quantiles(values, n=outside, method="inclusive")
    return cuts[0], cuts[-1]


FLUSHED = 256 * 2**20
"""Bytes that are overwritten before a call on a GPU: more than the L2 of any."""


@cache
def _flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.empty(FLUSHED, dtype=torch.uint8, device=device)


def seconds_of(action: Action, device: torch.device) -> float:
    """How long one call takes until its work is done.

    On a GPU by events on its stream, and with nothing in L2. While the GPU overwrites L2, the host
    runs ahead: the first launches of the action do not wait for it.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    _flush_buffer(device).zero_()
    begin.record()
    action()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def run_round(
    cases: Sequence[Mapping[str, Action]],
    *,
    backwards: bool,
    device: torch.device,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time every callable once in every case; neighbouring cases take opposite orders."""
    seconds: dict[str, list[float]] = {name: [] for name in cases[0]}
    for index, case in enumerate(cases):
        names = list(case)
        for name in reversed(names) if (index % 2 == 1) != backwards else names:
            seconds[name].append(seconds_of(case[name], device))
            progress()
    return seconds


def interleave(
    cases: Sequence[Mapping[str, Action]],
    *,
    rounds: int | Callable[[float], int],
    device: torch.device | None = None,
    description: str | None = None,
) -> Samples:
    """Time named callables that take turns, in both orders, after one round of warm-up.

    Args:
        cases: for each case (say, an architecture) the callables by name, the same names in each.
            A round runs through all cases, so that a callable meets another case at each turn.
        rounds: how many timed rounds, or what computes it from the warm-up's seconds. An odd
            number is raised by one, so that both orders run equally often.
        device: where the callables compute.
        description: label of a progress bar on stderr; none is shown without.
    """
    device = device or torch.device("cpu")
    start = time.perf_counter()
    turns = len(cases) * len(cases[0])
    with progress_bar(turns, description, "warm-up") as advance:
        run_round(cases, backwards=False, device=device, progress=advance)
    count = rounds if isinstance(rounds, int) else rounds(time.perf_counter() - start)
    count += count % 2
    with progress_bar(turns * count, description, "timed steps") as advance:
        results = [
            run_round(cases, backwards=i % 2 == 1, device=device, progress=advance)
            for i in range(count)
        ]
    return Samples(
        {name: tuple(zip(*(result[name] for result in results), strict=True)) for name in cases[0]}
    )


@contextmanager
def progress_bar(total: int, description: str | None, stage: str) -> Iterator[Callable[[], object]]:
    """A bar on stderr, or nothing without a description; yields what advances it by one."""
    with tqdm(
        total=total,
        desc=f"{description}: {stage}",
        file=sys.stderr,
        leave=False,
        disable=True if description is None else None,  # None: shown on a terminal only
    ) as bar:
        yield bar.update


@dataclass(frozen=True)
class Machine:
    """Where a number was measured."""

    cpu: str
    cores: int
    threads: int
    gpu: str | None
    torch: str
    python: str
    commit: str
    driver: str | None = None
    date: str | None = None

    def line(self) -> str:
        """One line for people."""
        driver = f", driver {self.driver}" if self.driver else ""
        date = f", {self.date}" if self.gpu and self.date else ""
        gpu = f" · {self.gpu}{driver}{date}" if self.gpu else ""
        return (
            f"{self.cpu}, {self.cores} cores, {self.threads} threads{gpu} · "
            f"torch {self.torch} · commit {self.commit}"
        )


def describe_machine(device: torch.device) -> Machine:
    """This machine, as far as it bears on a measurement on `device`."""
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        torch=torch.__version__,
        python=platform.python_version(),
        commit=_commit(),
        driver=_nvidia_smi("driver_version") if device.type == "cuda" else None,
        date=datetime.date.today().isoformat(),
    )


CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")
"""What says at which speed a GPU ran, and what kept it from running faster."""


def clocks(device: torch.device) -> dict[str, str | None]:
    """The GPU's clocks now; empty elsewhere."""
    return {name: _nvidia_smi(name) for name in CLOCKS} if device.type == "cuda" else {}


@contextmanager
def unbound() -> Iterator[None]:
    """Let a child start on all cores: with OMP_PROC_BIND this thread is bound to one."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is either whole or not there: written beside, synced, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, default=asdict)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _nvidia_smi(field: str) -> str | None:
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.check_output(query, text=True, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.strip()


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()
