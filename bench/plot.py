"""The overhead in time over the split epoch, as a picture."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from bench.experiment import NetworkResult
from bench.paper import TABLE_1

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
