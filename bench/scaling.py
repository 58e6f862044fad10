"""How cost grows with the batch and with channels, beside stock PyTorch: `python -m bench.scaling`.

A training step of the full NAS-Bench-201 network with 3×3 convolutions on every edge, and a 3×3
convolution forward and backward. Costs should be linear in images and in the channels on one side
of a convolution; a network's channels grow on both sides, so there the line has the slope 2. malloc
keeps memory, threads are pinned, all in a process of its own.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor
from torch.nn import functional as F

import cwkernels as cw
from bench.contestants import Contestant, heaviest_architecture, stock_optimizer
from bench.harness import Action, Interval, Machine, describe_machine, interleave, write_json
from bench.malloc import recorded
from bench.options import Parser, check_file, positive
from bench.stock_networks import StockNB201

MODULE = "bench.scaling"
SCHEMA = "cwkernels-scaling-1"
OURS, STOCK = "cwkernels", "stock torch, channels-last"
SETTING = "keeping"
Actions = Callable[[int], Mapping[str, Action]]


@dataclass(frozen=True)
class Panel:
    """One quantity that grows.

    Attributes:
        title: what is timed.
        unit: what grows.
        sizes: the values it takes.
        reference: the size from which on a cost is said to grow linearly.
        slope: the expected one, in a picture whose axes are both logarithmic.
        actions: both contestants at a size.
    """

    title: str
    unit: str
    sizes: tuple[int, ...]
    reference: int
    slope: int
    actions: Actions


def step_actions(*, images: int, channels: int) -> Mapping[str, Action]:
    """A training step of ours and of stock torch."""
    space = cw.spaces.nb201("full")
    ours = cw.networks.nb201(space, channels=channels)
    stock = StockNB201("full", channels=channels)
    stock.to(memory_format=torch.channels_last)
    contestants = {
        OURS: Contestant(ours, cw.optim.SGD(ours)),
        STOCK: Contestant(stock, stock_optimizer(stock)),
    }
    batch = channels_last(images, 3, 32)
    labels = torch.arange(images) % 10
    architecture = heaviest_architecture("full")

    def action(contestant: Contestant) -> Action:
        return lambda: contestant.step(batch, labels, architecture)

    return {name: action(contestant) for name, contestant in contestants.items()}


def convolution_actions(*, images: int, outputs: int) -> Mapping[str, Action]:
    """A 3×3 convolution of 64 channels at 16×16 pixels, forward and backward."""
    input = channels_last(images, 64, 16).requires_grad_()
    bank = torch.randn(1, outputs, 64, 3, 3, requires_grad=True)
    weight = bank.detach()[0].contiguous(memory_format=torch.channels_last).requires_grad_()
    grad, row = channels_last(images, outputs, 16), torch.tensor(0)

    def both(forward: Callable[[], Tensor], weights: Tensor) -> Action:
        return lambda: torch.autograd.grad(forward(), [input, weights], grad)

    return {
        OURS: both(lambda: cw.ops.gather_conv(input, bank, row), bank),
        STOCK: both(lambda: F.conv2d(input, weight, padding=1), weight),
    }


def channels_last(images: int, channels: int, size: int) -> Tensor:
    """Random images, channels-last."""
    drawn = torch.randn(images, channels, size, size)
    return drawn.contiguous(memory_format=torch.channels_last)


PANELS: Mapping[str, Panel] = {
    "step_images": Panel(
        "training step, full network",
        "images",
        (16, 32, 64, 128, 256, 512),
        64,
        1,
        lambda n: step_actions(images=n, channels=16),
    ),
    "step_channels": Panel(
        "training step, full network, 16 images",
        "channels of the last stage",
        (32, 64, 128, 256),
        64,
        2,
        lambda n: step_actions(images=16, channels=n // 4),
    ),
    "convolution_images": Panel(
        "3×3 convolution 64→64, 16×16 pixels",
        "images",
        (8, 16, 32, 64, 128, 256, 512),
        64,
        1,
        lambda n: convolution_actions(images=n, outputs=64),
    ),
    "convolution_channels": Panel(
        "3×3 convolution, 64 channels in, 16×16 pixels, 64 images",
        "channels out",
        (16, 32, 64, 128, 256),
        64,
        1,
        lambda n: convolution_actions(images=64, outputs=n),
    ),
}


def measure_panel(name: str, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """The points of one panel: at each size the seconds of both."""
    panel = PANELS[name]
    points = []
    for size in sizes:
        torch.manual_seed(0)
        samples = interleave([panel.actions(size)], rounds=rounds, description=f"{name} {size}")
        points.append(
            {
                "size": size,
                "seconds": {who: asdict(samples.mean(who)) for who in (OURS, STOCK)},
                "ratio": asdict(samples.ratio(STOCK, OURS)),
            }
        )
    about = {"title": panel.title, "unit": panel.unit, "slope": panel.slope}
    return about | {"reference": panel.reference, "points": points}


def growth(panel: Mapping[str, Any], who: str) -> float:
    """The cost of a unit at the greatest size, as a multiple of that at the reference size.

    1 is linear growth; where the slope is 2, a unit is a square.
    """

    def unit_cost(point: Mapping[str, Any]) -> float:
        return float(point["seconds"][who]["value"] / point["size"] ** panel["slope"])

    (reference,) = (p for p in panel["points"] if p["size"] == panel["reference"])
    return unit_cost(panel["points"][-1]) / unit_cost(reference)


def text(record: Mapping[str, Any]) -> str:
    """A table for each panel."""
    lines = [Machine(**record["machine"]).line()]
    for panel in record["panels"].values():
        lines += ["", f"{panel['title']}; slope {panel['slope']}"]
        lines.append(f"{panel['unit']:>28}{OURS:>16}{STOCK:>30}{'stock ÷ ours':>24}")
        for point in panel["points"]:
            ours, stock = (1000 * point["seconds"][who]["value"] for who in (OURS, STOCK))
            ratio = Interval(**point["ratio"])
            spread = f"×{ratio.value:.2f} [{ratio.low:.2f}–{ratio.high:.2f}]"
            lines.append(f"{point['size']:>28}{ours:>13.2f} ms{stock:>27.2f} ms{spread:>24}")
        ours, stock = (growth(panel, who) for who in (OURS, STOCK))
        label = f"a unit at the end ÷ at {panel['reference']}"
        lines.append(f"{label:>28}{ours:>16.2f}{stock:>30.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON and a picture if asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.child is not None:
        write_json(options.child, run_here(options))
        return 0
    record = recorded(SCHEMA, SETTING, MODULE, arguments, options.threads)
    print(text(record))
    if options.json is not None:
        write_json(options.json, record)
    if options.plot is not None:
        from bench.plot import plot_scaling  # matplotlib is needed for nothing else

        plot_scaling(record, options.plot)
    return 0


def parse(arguments: Sequence[str]) -> Namespace:
    """The options; an error is one line and exit code 2."""
    parser = Parser(prog="scaling", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=4, metavar="N", help="timed rounds (4)")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="pinned (2)")
    parser.add_argument("--largest", type=positive, metavar="N", help="leave out greater sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the points there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw them")
    parser.add_argument("--child", type=Path, metavar="FILE", help="measure in this process only")
    options = parser.parse_args(arguments)
    check_file(parser, "--json", options.json)
    check_file(parser, "--plot", options.plot)
    return options


def run_here(options: Namespace) -> dict[str, Any]:
    """What this process measures, in plain types."""
    panels = {}
    for name, panel in PANELS.items():
        most = max(options.largest or panel.sizes[-1], panel.reference)
        sizes = [size for size in panel.sizes if size <= most]
        panels[name] = measure_panel(name, sizes, options.rounds)
    machine = asdict(describe_machine(torch.device("cpu")))
    return {"machine": machine, "rounds": options.rounds, "panels": panels}


if __name__ == "__main__":
    sys.exit(main())
