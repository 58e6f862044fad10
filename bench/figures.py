"""Renews the tables of README.md and docs from the records in bench/results: `make figures`.

A table stands between `<!-- figures: NAME -->` and `<!-- /figures -->`; what is between them is
written anew from the records, and from nothing else, so that a second run changes nothing.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import floor, gpu_tables, peers_table, ranking, scaling
from bench.contestants import PEERS
from bench.gpu_tables import table
from bench.harness import Interval, Machine, write_json
from bench.options import NETWORKS
from bench.passes import PASSES
from bench.targets import outcomes
from cwkernels.report.paper import TABLE_1

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("bench/results")
GPU = "gpu.json"
DOCUMENTS = (Path("README.md"), Path("docs/performance.md"), Path("docs/ranking.md"))
MIB = 2**20
Record = Mapping[str, Any]

_SECTION = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)


def renew(text: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """The document with each of its marked sections written anew.

    Raises:
        ValueError: for a section that nobody writes, or a mark without its end.
    """
    unknown = [name for _, name, _ in _SECTION.findall(text) if name not in sections]
    if unknown:
        raise ValueError(f"figures: wanted sections of {', '.join(sections)}, got {unknown[0]}")
    if text.count("<!-- figures: ") != len(_SECTION.findall(text)):
        raise ValueError("figures: a mark `<!-- figures: NAME -->` has no `<!-- /figures -->`")
    return _SECTION.sub(lambda m: f"{m[1]}{sections[m[2]]().strip()}\n{m[3]}", text)


def sections(root: Path) -> dict[str, Callable[[], str]]:
    """What writes each section, from the records below `root`."""

    def writer(write: Callable[[Record], str], name: str) -> Callable[[], str]:
        return lambda: write(json.loads((root / RESULTS / f"{name}.json").read_text()))

    path = root / RESULTS / GPU
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return {
        "overhead": writer(overhead, "overhead_cpu"),
        "speed": writer(speed, "peers_cpu"),
        "peers": writer(peers, "peers_cpu"),
        "targets": writer(targets, "peers_cpu"),
        "kernels": writer(kernels, "kernels_cpu"),
        "scaling": writer(scaling_tables, "scaling_cpu"),
        "ranking": writer(ranking_rates, "ranking_cpu"),
        "floor": lambda: table(floor.HEADER, [floor.row(each) for each in floor.floors()]),
        "gpu_verified": lambda: gpu_tables.verified(report),
        "gpu_steps": lambda: gpu_tables.steps(report),
        "gpu_kernels": lambda: gpu_tables.kernels(report),
    }


def overhead(record: Record) -> str:
    """What conditional weights cost: the time of a step and a training, the peak of memory."""
    networks = {name: record["networks"][name] for name in NETWORKS}

    def row(label: str, cell: Callable[[str, Record], str]) -> list[str]:
        return [label, *(cell(name, network) for name, network in networks.items())]

    def ratio(contestant: str) -> Callable[[str, Record], str]:
        return lambda _, n: f"{n['contestants'][contestant]['ratio_to_ours']['value']:.2f}"

    def training(name: str, network: Record) -> str:
        return _percent(network["overheads"]["ours"]["time_percent"][str(_split_epoch(name))])

    def peaks(base: str) -> Callable[[str, Record], str]:
        def cell(_: str, network: Record) -> str:
            before, after = (
                network["contestants"][name]["memory"]["peak"] / MIB
                for name in (base, f"{base}_split")
            )
            return f"{before:.0f} → {after:.0f} MiB"

        return cell

    rows = [
        row(
            "a step before the split, t₀",
            lambda _, n: f"{1000 * n['contestants']['ours']['step_seconds']['value']:.0f} ms",
        ),
        row(
            "after ÷ before the split, t₁/t₀",
            lambda _, n: _spread(n["contestants"]["ours_split"]["ratio_to_ours"]),
        ),
        row("time of a training split at 150 of 250 (Macro: 40 of 50)", training),
        row(
            "the paper, on a GTX 1080 Ti",
            lambda name, _: _percent(TABLE_1[name].overheads[_split_epoch(name)][0]),
        ),
        row("peak memory of a step, before → after the split", peaks("ours")),
        row("the same, the authors' way", peaks("authors")),
        row("the authors' way, split: a step ÷ our t₀", ratio("authors_split")),
        row("stock torch without sets, NCHW: a step ÷ our t₀", ratio("stock_nchw")),
        row(
            "stock torch without sets, channels-last: a step ÷ our t₀", ratio("stock_channels_last")
        ),
    ]
    samples = networks["full"]["contestants"]["ours"]["samples"]
    counted = f"{len(samples)} random architectures × {len(samples[0])} rounds"
    source = record["data"].split(" (")[0]
    command = f"`python -m bench.overhead`, {counted}, batch {record['batch']}, {source}"
    titles = [_short(name) for name in networks]
    return f"{_where(record)}; {command}.\n\n{table(['', *titles], rows)}"


def speed(record: Record) -> str:
    """How many times as long as cwkernels stock PyTorch takes."""
    networks = peers_table.networks_of(record)
    rows = [
        [f"{what}, {PEERS[rival]}"]
        + [peers_table.cell(record, network, what, rival).rsplit(" ", 1)[0] for network in networks]
        for what in PASSES
        for rival in ("stock_nchw", "stock_channels_last")
    ]
    caption = f"{_where(record)}, batch {record['batch']}; `{record['command']}`."
    return f"{caption}\n\n{table(['', *map(_short, networks)], rows)}"


def peers(record: Record) -> str:
    """Every contestant on every network, and what each saves for backward."""
    parts = [f"{_where(record)}, batch {record['batch']}; `{record['command']}`."]
    parts.append(peers_table.basis(record))
    for network in peers_table.networks_of(record):
        saved = peers_table.saved_bytes(record, network)
        rows = [
            [
                PEERS[name],
                *(peers_table.cell(record, network, what, name) for what in PASSES),
                f"{saved[name] / MIB:.1f} MiB" if name in saved else "",
            ]
            for name in peers_table.contestants_of(record, network)
        ]
        header = [peers_table.title(network), *PASSES, "saved for backward"]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def targets(record: Record) -> str:
    """What must be reached, and is or is not."""
    rows = [
        [o.label, _short(o.network), o.must, o.aim, peers_table.measured(o), o.met]
        for o in outcomes(record)
    ]
    return table(["", "network", "must", "aim", "measured", "reached"], rows)


def kernels(record: Record) -> str:
    """Each operation at the networks' shapes."""
    rows = [
        [
            row["shape"],
            row["direction"],
            f"{row['milliseconds']:.2f} ms",
            f"×{_spread(row['ratio'])}",
            f"{row['rate']:.0f} {row['unit']}",
        ]
        for row in record["rows"]
    ]
    caption = f"{_where(record)}, batch {record['batch']}; `python -m bench.kernels`."
    header = ["operation and shape", "direction", "ours", "ours ÷ stock channels-last", "rate"]
    return f"{caption}\n\n{table(header, rows)}"


def scaling_tables(record: Record) -> str:
    """The picture, and how far from linear the last point is."""
    rows = [
        [
            panel["title"],
            f"{panel['unit']}, {panel['reference']} → {panel['points'][-1]['size']}",
            *(f"{scaling.growth(panel, who):.2f}" for who in (scaling.OURS, scaling.STOCK)),
            f"×{_spread(panel['points'][-1]['ratio'])}",
        ]
        for panel in record["panels"].values()
    ]
    header = ["", "from → to", "ours: a unit's cost", "stock's", "stock ÷ ours at the end"]
    picture = "![cost over images and channels](../bench/results/scaling_cpu.png)"
    caption = f"{_where(record)}; `{record['command']}`. A unit's cost at the end ÷ at the start: "
    caption += "1.00 is linear (quadratic where both sides of the convolutions grow)."
    return f"{caption}\n\n{picture}\n\n{table(header, rows)}"


def ranking_rates(record: Record) -> str:
    """Architectures a second, and what all of Macro would take."""
    rows = [
        [
            peers_table.title(network),
            *(f"{own['rate'][who]:.2f}" for who in (ranking.OURS, ranking.STOCK)),
            f"×{_spread(own['ratio'])}",
            f"×{own['target']:.1f}",
        ]
        for network, own in record["networks"].items()
    ]
    header = ["architectures a second", "ours", "stock channels-last", "ours ÷ stock", "wanted"]
    caption = f"{_where(record)}; `{record['command']}`: {record['what']}."
    extrapolated = ranking.extrapolation(record["networks"]["macro"])
    return f"{caption}\n\n{table(header, rows)}\n\nMacro, {extrapolated}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the documents anew."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.figures")
    parser.add_argument(
        "--gpu", type=Path, metavar="REPORT", help="a report of tools.gpu_check, to be kept"
    )
    options = parser.parse_args(arguments)
    if options.gpu is not None:
        write_json(ROOT / RESULTS / GPU, without_tails(json.loads(options.gpu.read_text())))
    for document in DOCUMENTS:
        path = ROOT / document
        before = path.read_text(encoding="utf-8")
        after = renew(before, sections(ROOT))
        if after != before:
            path.write_text(after, encoding="utf-8")
        print(f"{document}: {'renewed' if after != before else 'as it was'}")
    return 0


def without_tails(report: Record) -> Record:
    """A report without what its stages printed, and only if a GPU has made it."""
    if report["environment"]["device"] != "cuda":
        raise ValueError("figures: wanted the report of a GPU, got that of a dry run")
    stages = {
        name: {key: value for key, value in stage.items() if key != "tail"}
        for name, stage in report["stages"].items()
    }
    return {**report, "stages": stages}


def _split_epoch(network: str) -> int:
    return 40 if network == "macro" else 150


def _short(network: str) -> str:
    return peers_table.title(network).removeprefix("NAS-Bench-201, ")


def _where(record: Record) -> str:
    return Machine(**record["machine"]).line().replace(" · ", ", ")


def _spread(interval: Record) -> str:
    value = Interval(**interval)
    return f"{value.value:.2f} [{value.low:.2f}–{value.high:.2f}]"


def _percent(value: float) -> str:
    return f"{value:+.1f} %".replace("-", "−")


if __name__ == "__main__":
    sys.exit(main())
