"""The kernels of one training step, in order of time: `python -m bench.step_profile --device cuda`.

Beside them the kernels of bench.floor with the bytes that each must move, and how fast the step
moved them all. Away from a GPU the operations of the extension stand for kernels.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch.profiler import ProfilerActivity, profile

from bench import experiment, floor
from bench.contestants import build, space_of
from bench.devices import DEVICES, benchmark_device
from bench.harness import Action, clocks, describe_machine, seconds_of, write_json
from bench.options import NETWORKS

TIMED = 20
OURS = "cwkernels::"


@dataclass(frozen=True)
class Kernel:
    """What ran under one name in a step."""

    name: str
    calls: int
    microseconds: float


def kernels_of(action: Action, device: torch.device) -> list[Kernel]:
    """What runs in an action, the longest first."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        action()
        if on_gpu:
            torch.cuda.synchronize(device)
    kernels = [
        Kernel(
            event.key,
            event.count,
            float(event.self_device_time_total if on_gpu else event.cpu_time_total),
        )
        for event in profiled.key_averages()
        if (event.device_type.name == "CUDA" if on_gpu else event.key.startswith(OURS))
    ]
    return sorted(kernels, key=lambda kernel: -kernel.microseconds)


def measure(network: str, batch: int, device: torch.device) -> dict[str, Any]:
    """One architecture's step: its kernels, its median time, and the bytes it must move."""
    torch.manual_seed(experiment.SEED)
    (data, *_), _ = experiment.load_batches(batch, device)
    generator = torch.Generator().manual_seed(experiment.SEED)
    architecture = space_of(network).sample(1, generator=generator)[0]
    ours = build("ours", network, device)

    def step() -> None:
        ours.step(data.images, data.labels, architecture)

    rounds = TIMED if device.type == "cuda" else 1
    seconds_of(step, device)
    median = statistics.median(seconds_of(step, device) for _ in range(rounds))
    launches = floor.step(network, architecture, batch, "tf32")
    least = floor.seconds_of_each(launches, floor.CARDS["H100"], "tf32")
    moved = sum(launch.bytes for launch in launches)
    kernels = kernels_of(step, device)
    return {
        "network": network,
        "batch": batch,
        "architecture": architecture.tolist(),
        "seconds": median,
        "busy_seconds": sum(kernel.microseconds for kernel in kernels) / 1e6,
        "floor_seconds": sum(least),
        "bytes": moved,
        "bytes_per_second": moved / median,
        "kernels": [asdict(kernel) for kernel in kernels],
        "floor": [
            {"name": launch.name, "bytes": launch.bytes, "seconds": seconds}
            for launch, seconds in zip(launches, least, strict=True)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.step_profile")
    parser.add_argument("--networks", choices=NETWORKS, default="full", help="which (full)")
    parser.add_argument("--batch", type=int, default=256, help="images in a step (256)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where (cpu)")
    parser.add_argument("--json", type=Path, help="also write the record to this file")
    options = parser.parse_args(arguments)
    with benchmark_device(options.device) as device:
        before = clocks(device)
        record = measure(options.networks, options.batch, device)
        record |= {"clocks": [before, clocks(device)], "machine": asdict(describe_machine(device))}
    for kernel in record["kernels"]:
        print(f"{kernel['microseconds']:10.1f} us {kernel['calls']:4} × {kernel['name']}")
    print(
        f"{record['seconds'] * 1e3:.3f} ms a step, {record['busy_seconds'] * 1e3:.3f} of them in "
        f"kernels, floor {record['floor_seconds'] * 1e3:.3f} ms; "
        f"{record['bytes'] / 1e6:.1f} MB at {record['bytes_per_second'] / 1e12:.2f} TB/s"
    )
    if options.json is not None:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
