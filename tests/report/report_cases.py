"""Run folders without any training: records as `cwkernels train` and `evaluate` leave them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import cwkernels as cw
from cwkernels.ranking import Scores, evaluate
from cwkernels.ranking.record import write_evaluation
from cwkernels.training import Config, EpochRecord

BASELINE: dict[str, Any] = {}
SPLIT = {"splits": [{"epoch": 12}]}
STOP = {"stop_epoch": 8}


def made_run(
    folder: Path,
    network: dict[str, Any],
    recipe: dict[str, Any],
    *,
    seed: int = 0,
    noise: float = 1.0,
    seconds: float = 10.0,
    evaluated: bool = True,
) -> Path:
    """A run of 20 epochs; the smaller the noise, the better its ranking."""
    tables = {"network": network, "recipe": {"epochs": 20, **recipe}, "run": {"seed": seed}}
    config = Config.from_mapping(tables)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    lines = [record(epoch, seconds).line() for epoch in range(1, config.recipe.last_epoch + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    if evaluated:
        write_scores(folder, config, noise, seed)
    return folder


def record(epoch: int, seconds: float) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        step=10 * epoch,
        seconds=seconds,
        lr=0.1,
        train_loss=2 / epoch,
        train_accuracy=4.0 * epoch,
        weight_sets=12,
        peak_memory_bytes=2**20 * (100 + epoch),
        validation_loss=3 / epoch if epoch % 2 == 0 else None,
        validation_accuracy=3.0 * epoch if epoch % 2 == 0 else None,
    )


def write_scores(folder: Path, config: Config, noise: float, seed: int) -> None:
    """Scores of every 9th architecture, which are a made-up truth and noise, evaluated."""
    space = config.network.build().space
    archs = space.all()[:: max(len(space) // 64, 1)]
    area = space.kernel_area(space.all()).sum(-1).double()
    truth = cw.groundtruth.GroundTruth(space, area, area.long(), area.long(), None, "made up")
    generator = torch.Generator().manual_seed(seed)
    own = area[space.index(archs)]
    drawn = own + noise * torch.randn(len(archs), generator=generator, dtype=torch.float64)
    header = {"schema": "cwkernels-scores-1", "space": space.name, "about": {}}
    (folder / "scores.jsonl").write_text(json.dumps(header) + "\n")
    evaluation = evaluate(Scores(space, archs, drawn, -drawn), truth, resamples=5)
    write_evaluation(folder / "evaluation.json", evaluation, folder / "scores.jsonl")
