"""Where a training step's time goes, and what its memory costs: `python -m bench.phases`.

Forward pass with loss, backward pass, optimizer, and the forward pass in training mode without
gradients, each with the page faults and the time in the kernel of the operating system that it
takes, of ours and of stock PyTorch, under both settings of malloc. Before that the rates of the
machine: copies that memory bounds and that caches bound, and oneDNN's 1×1 convolution.
"""

import resource
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch.nn import functional as F

from bench.contestants import Contestant, build, space_of
from bench.experiment import Batch, load_batches
from bench.harness import Action, describe_machine, write_json
from bench.malloc import SETTINGS, measured_under
from bench.options import NETWORKS, Parser, check_file, network_names, positive

MODULE = "bench.phases"
SCHEMA = "cwkernels-phases-1"
PHASES = ("forward", "backward", "optimizer", "recalibration")
CONTESTANTS = ("ours", "stock_channels_last")
COPIES = {"copy of 64 MiB": 64 << 20, "copy of 4 MiB": 4 << 20}
"""Bytes read, and as many written: far larger than the caches, and within L3."""
WARM_UP = 2


@dataclass(frozen=True)
class Phase:
    """One phase, the mean over the architectures of the median over the rounds.

    Attributes:
        milliseconds: that pass.
        faults: page faults without I/O.
        system: milliseconds in the operating system, of all threads.
    """

    milliseconds: float
    faults: float
    system: float


def observe(action: Action) -> tuple[float, float, float]:
    """Milliseconds, page faults and milliseconds in the operating system of an action."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    action()
    passed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return (
        1e3 * passed,
        float(after.ru_minflt - before.ru_minflt),
        1e3 * (after.ru_stime - before.ru_stime),
    )


def observe_step(
    contestant: Contestant, batch: Batch, architecture: torch.Tensor
) -> dict[str, tuple[float, float, float]]:
    """A training step and the pass without gradients behind it, phase by phase."""
    loss: list[torch.Tensor] = []
    observed = {
        "forward": observe(
            lambda: loss.append(contestant.loss(batch.images, batch.labels, architecture))
        ),
        "backward": observe(lambda: loss.pop().backward()),
    }
    observed["optimizer"] = observe(contestant.optimizer.step)
    contestant.optimizer.zero_grad()
    observed["recalibration"] = observe(lambda: contestant.infer(batch.images, architecture))
    return observed


def measure_network(network: str, batches: list[Batch], rounds: int) -> dict[str, Any]:
    """The phases of both contestants, by name."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    architectures = space_of(network).sample(len(batches), generator=generator)
    cases = list(zip(batches, architectures, strict=True))
    result = {}
    for name in CONTESTANTS:
        contestant = build(name, network, batches[0].images.device)
        runs = [
            [observe_step(contestant, batch, architecture) for batch, architecture in cases]
            for _ in range(WARM_UP + rounds)
        ]
        result[name] = {phase: asdict(summary(runs[WARM_UP:], phase)) for phase in PHASES}
    return result


def summary(
    runs: Sequence[Sequence[Mapping[str, tuple[float, float, float]]]], phase: str
) -> Phase:
    """Of one phase in `runs[round][architecture]`."""
    each = [
        [statistics.median(run[case][phase][what] for run in runs) for what in range(3)]
        for case in range(len(runs[0]))
    ]
    return Phase(*(statistics.fmean(values) for values in zip(*each, strict=True)))


def rates() -> dict[str, float]:
    """What this process's threads reach: GB/s of copies, read and written, and GFLOP/s."""
    result = {}
    for name, size in COPIES.items():
        source = torch.randn(size // 4)
        seconds = median_seconds(partial(torch.empty_like(source).copy_, source))
        result[f"{name}, GB/s"] = 2 * size / 1e9 / seconds
    images = torch.randn(64, 256, 8, 8).to(memory_format=torch.channels_last)
    weight = torch.randn(1536, 256, 1, 1).to(memory_format=torch.channels_last)
    operations = 2 * images.numel() * len(weight)
    with torch.no_grad():
        seconds = median_seconds(lambda: F.conv2d(images, weight))
    result["stock 1×1 convolution 256→1536 at 8×8, GFLOP/s"] = operations / 1e9 / seconds
    return result


def median_seconds(action: Callable[[], object]) -> float:
    """Of 50 runs."""
    seconds = [observe(action)[0] / 1e3 for _ in range(50)]
    return statistics.median(seconds)


def text(record: Mapping[str, Any]) -> str:
    """The record as a table."""
    machine = record["machine"]
    lines = [f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"]
    lines += [f"  {name}: {rate:.0f}" for name, rate in record["rates"].items()]
    for setting, networks in record["settings"].items():
        lines.append(f"malloc: {setting}; ms (page faults, ms in the operating system)")
        for network, contestants in networks.items():
            for name, phases in contestants.items():
                cells = (
                    f"{phase} {p['milliseconds']:.1f} ({p['faults']:.0f}, {p['system']:.1f})"
                    for phase, p in phases.items()
                )
                lines.append(f"  {network:10} {name:20} " + "  ".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; with --json writes the record too."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.child is not None:
        write_json(options.child, run_here(options))
        return 0
    own = [
        *("--rounds", str(options.rounds), "--batch", str(options.batch)),
        *("--networks", ",".join(options.networks), "--architectures", str(options.architectures)),
    ]
    measured = {name: measured_under(name, MODULE, own, options.threads) for name in SETTINGS}
    first = next(iter(measured.values()))
    record = {
        "schema": SCHEMA,
        "machine": first["machine"],
        "rates": first["rates"],
        "settings": {name: each["networks"] for name, each in measured.items()},
    }
    print(text(record))
    if options.json is not None:
        write_json(options.json, record)
    return 0


def run_here(options: Namespace) -> dict[str, Any]:
    """What this process measures, in plain types."""
    batches = load_batches(options.batch, torch.device("cpu"))[0][: options.architectures]
    return {
        "machine": asdict(describe_machine(torch.device("cpu"))),
        "rates": rates(),
        "networks": {
            network: measure_network(network, batches, options.rounds)
            for network in options.networks
        },
    }


def parse(arguments: Sequence[str]) -> Namespace:
    """The options; an error is one line and exit code 2."""
    parser = Parser(prog="phases", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--networks", type=network_names, default=NETWORKS, metavar="NAMES", help="which (all)"
    )
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="images (64)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="timed rounds (5)")
    parser.add_argument(
        "--architectures", type=positive, default=8, metavar="N", help="random ones (8)"
    )
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="pinned (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record there")
    parser.add_argument("--child", type=Path, metavar="FILE", help="measure in this process only")
    options = parser.parse_args(arguments)
    check_file(parser, "--json", options.json)
    return options


if __name__ == "__main__":
    sys.exit(main())
