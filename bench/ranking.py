"""How many architectures a second are ranked, beside stock PyTorch: `python -m bench.ranking`.

Ranking one architecture is recalibration, 20 training batches through a network whose statistics
were reset, and validation. Stock torch does it channels-last, one architecture at a time. Ours
ranks NAS-Bench-201 eight architectures at a time on shared images, and Macro with shared prefixes:
measured is a full subtree, all architectures that agree in the first layers, as `cw.ranking.rank`
runs one chunk by chunk, and the time for all 6561 is extrapolated: so many times as long as there
are such subtrees. What this subtree's architectures have in common are the heaviest layers, so that
the time is rather too long. Stock torch's is that of nine architectures among which every candidate
is chosen equally often in each layer: their mean is that of all, as costs of layers add up.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor, nn

import cwkernels as cw
from bench.contestants import space_of, stock_network
from bench.harness import Action, Interval, Machine, describe_machine, interleave, write_json
from bench.malloc import recorded
from bench.options import Parser, check_file
from bench.stock_networks import StockMacro, StockNB201
from cwkernels.ranking.images import ScoringImages
from cwkernels.ranking.options import WAYS
from cwkernels.ranking.prefix import layer_runs, score_by_prefix
from cwkernels.ranking.tally import Tally
from cwkernels.ranking.together import score_together
from cwkernels.spaces.macro import K5_E6

MODULE = "bench.ranking"
SCHEMA = "cwkernels-ranking-1"
SETTING = "keeping"
OURS, STOCK = "cwkernels", "stock torch, channels-last"
TOGETHER = 8
TARGETS = {"macro": 6.0, "full": 2.5, "no_zero": 2.5, "only_conv": 2.5}
"""How many times stock's rate ours should be."""


def architectures_of(network: str, levels: int) -> Tensor:
    """What ours ranks at once: eight random ones, or a full subtree of Macro with ``levels``."""
    space = space_of(network)
    if network != "macro":
        generator = torch.Generator().manual_seed(0)
        return space.all()[torch.randperm(len(space), generator=generator)[:TOGETHER]]
    below = torch.cartesian_prod(*(torch.arange(3),) * levels).reshape(-1, levels)
    common = torch.full((len(below), space.num_decisions - levels), K5_E6)
    return torch.cat([common, below], dim=1)


def sample_of(network: str, archs: Tensor) -> Tensor:
    """What stock torch ranks: the same architectures, or of Macro nine that stand for all."""
    if network != "macro":
        return archs
    # An orthogonal array: any two of its four columns hold every pair once.
    a, b = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)
    columns = [a, b, (a + b) % 3, (a + 2 * b) % 3]
    return torch.stack([*columns, *reversed(columns)], dim=1)


def scoring_images(batch: int, batches: int, images: int) -> ScoringImages:
    """CIFAR-10, or what stands in for it, as ranking takes it."""
    data = cw.data.Batches(cw.data.load_cifar10(), seed=0, batch_size=batch)
    options = cw.ranking.RankingOptions(batches=batches, images=images)
    return cw.ranking.images.scoring_images(data, options)


@torch.no_grad()
def score_stock(
    net: StockNB201 | StockMacro, archs: Tensor, images: ScoringImages
) -> list[cw.ranking.tally.Score]:
    """The same work in stock torch, one architecture at a time."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    scores = []
    for arch in archs:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the exact average
        net.train()
        for batch in images.recalibration:
            net(batch, arch)
        net.eval()
        tally = Tally()
        for batch, labels in images.validation:
            tally.add(net(batch, arch), labels)
        scores.append(tally.score())
    return scores


def actions_of(
    network: str, archs: Tensor, sample: Tensor, images: ScoringImages
) -> Mapping[str, Action]:
    """Ours on all of the architectures, stock torch on a sample of them."""
    torch.manual_seed(0)
    ours: Action
    if network == "macro":
        macro = cw.networks.macro()
        macro.split()

        def ours() -> object:
            return score_by_prefix(macro, archs, images, WAYS["reset"])

    else:
        cell = cw.networks.nb201(cw.spaces.nb201(network))
        cell.split()

        def ours() -> object:
            return score_together(cell, archs, images, WAYS["reset"])

    stock = stock_network(network)
    stock.to(memory_format=torch.channels_last)
    return {OURS: ours, STOCK: lambda: score_stock(stock, sample, images)}


def measure(network: str, options: Namespace, images: ScoringImages) -> dict[str, Any]:
    """Seconds for each architecture, and how many times stock's ours is as fast."""
    archs = architectures_of(network, options.levels)
    sample = sample_of(network, archs)
    samples = interleave(
        [actions_of(network, archs, sample, images)],
        rounds=options.rounds,
        description=f"{network}, ranking",
    )
    scale = len(archs) / len(sample)
    ratio = samples.ratio(STOCK, OURS)
    counts = {OURS: len(archs), STOCK: len(sample)}
    rates = {who: count / samples.mean_of_medians(who) for who, count in counts.items()}
    record = {
        "architectures": counts,
        "seconds": {who: samples.seconds[who] for who in counts},
        "rate": rates,
        "ratio": asdict(Interval(ratio.value * scale, ratio.low * scale, ratio.high * scale)),
        "target": TARGETS[network],
    }
    if network != "macro":
        return record
    total = len(space_of(network))
    return record | {
        "common": archs[0, : -options.levels].tolist(),
        "layer_runs": layer_runs(archs),
        "all": {
            "subtrees": total // len(archs),
            "layer_runs": layer_runs(archs) * (total // len(archs)),
            "hours": {who: total / rate / 3600 for who, rate in rates.items()},
        },
    }


def text(record: Mapping[str, Any]) -> str:
    """A line for each network, and what was extrapolated."""
    lines = [Machine(**record["machine"]).line(), record["what"]]
    for network, own in record["networks"].items():
        ratio = Interval(**own["ratio"])
        rates = ", ".join(f"{who} {rate:.2f} a second" for who, rate in own["rate"].items())
        lines.append(
            f"{network}: {rates}: ×{ratio.value:.2f} [{ratio.low:.2f}–{ratio.high:.2f}], "
            f"wanted ×{own['target']}"
        )
        if network == "macro":
            lines.append(f"  {extrapolation(own)}")
    return "\n".join(lines)


def extrapolation(own: Mapping[str, Any]) -> str:
    """What of Macro was measured, and what follows for all of it."""
    every, count = own["all"], own["architectures"][OURS]
    hours = ", ".join(f"{who} {hours:.2f} h" for who, hours in every["hours"].items())
    return (
        f"measured: the {count} architectures that begin with {own['common']}, "
        f"{own['layer_runs']} layer runs a batch; extrapolated to all: "
        f"{every['subtrees']} such subtrees, {every['layer_runs']} layer runs, {hours}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON if asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.child is not None:
        write_json(options.child, run_here(options))
        return 0
    record = recorded(SCHEMA, SETTING, MODULE, arguments, options.threads)
    print(text(record))
    if options.json is not None:
        write_json(options.json, record)
    return 0


def parse(arguments: Sequence[str]) -> Namespace:
    """The options; an error is one line and exit code 2."""
    parser = Parser(prog="ranking", description=__doc__, allow_abbrev=False)
    parser.add_networks()
    parser.add_counts(
        (
            ("batch", 64, "images in a batch"),
            ("batches", 20, "batches of the recalibration"),
            ("images", 1280, "validation images"),
            ("levels", 5, "layers of Macro that the subtree varies: 3 to that power architectures"),
            ("rounds", 2, "timed rounds, raised to an even number"),
            ("threads", 2, "threads, pinned"),
        )
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the record there")
    parser.add_argument("--child", type=Path, metavar="FILE", help="measure in this process only")
    options = parser.parse_args(arguments)
    check_file(parser, "--json", options.json)
    if options.levels > len(space_of("macro").decisions) - 1:
        parser.error(f"--levels: wanted at most 7, got {options.levels}")
    return options


def run_here(options: Namespace) -> dict[str, Any]:
    """What this process measures, in plain types."""
    images = scoring_images(options.batch, options.batches, options.images)
    networks = {name: measure(name, options, images) for name in options.networks}
    what = (
        f"{options.batches} batches of {options.batch} images recalibrate, "
        f"{options.images} images validate"
    )
    machine = asdict(describe_machine(torch.device("cpu")))
    return {"machine": machine, "what": what, "networks": networks}


if __name__ == "__main__":
    sys.exit(main())
