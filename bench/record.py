"""The JSON record of a run of `bench/overhead.py`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.experiment import NetworkResult
from bench.harness import Machine
from cwkernels.report.paper import TABLE_1

SCHEMA = "cwkernels-overhead-1"


def to_json(
    machine: Machine, batch: int, source: str, results: Mapping[str, NetworkResult]
) -> dict[str, Any]:
    """All that was measured, and the overheads that follow from it, in plain types."""
    return {
        "schema": SCHEMA,
        "machine": asdict(machine),
        "batch": batch,
        "data": source,
        "networks": {network: _network_json(network, r) for network, r in results.items()},
    }


def _network_json(network: str, result: NetworkResult) -> dict[str, Any]:
    paper = TABLE_1[network]
    return {
        "epochs": paper.epochs,
        "steps_per_epoch": result.steps_per_epoch,
        "architectures": result.architectures,
        "contestants": {
            name: {
                "step_seconds": asdict(result.step_seconds(name)),
                "ratio_to_ours": asdict(result.step_ratio(name, "ours")),
                "samples": samples,
                "memory": asdict(result.memory[name]),
            }
            for name, samples in result.samples.seconds.items()
        },
        "overheads": {
            name: {
                "baseline_seconds": result.baseline_seconds(name, paper.epochs),
                "memory_percent": result.memory_overhead(name),
                "time_percent": {
                    str(epoch): result.time_overhead(name, epoch, paper.epochs)
                    for epoch in paper.overheads
                },
            }
            for name in ("ours", "authors")
        },
        "paper": asdict(paper),
    }
