"""Pictures: the overhead in time over the split epoch; how costs grow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from bench.experiment import NetworkResult
from bench.scaling import OURS, STOCK
from cwkernels.report.paper import TABLE_1

SERIES = {"ours": ("cwkernels", "o-"), "authors": ("the authors' way", "s--")}


def plot_overheads(results: Mapping[str, NetworkResult], machine: str, path: Path) -> None:
    """Write a PNG with one panel for each network: ours, the authors' way, the paper's figures."""
    figure, panels = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.6), squeeze=False, layout="constrained"
    )
    for panel, (network, result) in zip(panels[0], results.items(), strict=True):
        paper = TABLE_1[network]
        epochs = list(paper.overheads)
        for contestant, (label, style) in SERIES.items():
            overheads = [result.time_overhead(contestant, e, paper.epochs) for e in epochs]
            panel.plot(epochs, overheads, style, label=label)
        panel.plot(
            epochs,
            [time_overhead for time_overhead, _ in paper.overheads.values()],
            "x:",
            color="gray",
            label="paper (GTX 1080 Ti)",
        )
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_title(f"{paper.benchmark}, {paper.title}", fontsize=10)
        panel.set_xlabel(f"split epoch (of {paper.epochs})")
    panels[0][0].set_ylabel("time over the baseline, %")
    panels[0][0].legend(fontsize=8)
    figure.suptitle(machine, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_scaling(record: Mapping[str, Any], path: Path) -> None:
    """Write a PNG with one panel for each quantity of `bench/scaling.py`, both axes logarithmic."""
    panels = record["panels"].values()
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.8 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        sizes = [point["size"] for point in panel["points"]]
        for who, style in ((OURS, "o-"), (STOCK, "s--")):
            seconds = [point["seconds"][who] for point in panel["points"]]
            values = [1000 * s["value"] for s in seconds]
            spread = [
                [1000 * (s["value"] - s["low"]) for s in seconds],
                [1000 * (s["high"] - s["value"]) for s in seconds],
            ]
            axis.errorbar(sizes, values, yerr=spread, fmt=style, label=who, markersize=4)
        start = 1000 * panel["points"][0]["seconds"][OURS]["value"]
        line = [start * (size / sizes[0]) ** panel["slope"] for size in sizes]
        axis.plot(sizes, line, ":", color="gray", label=f"slope {panel['slope']}")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_title(panel["title"], fontsize=8)
        axis.set_xlabel(panel["unit"])
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("ms")
    figure.savefig(path, dpi=150)
    plt.close(figure)
