"""`cwkernels rank`: scores architectures by the super-network of a run."""

import argparse
from pathlib import Path
from typing import get_args

import torch

from cwkernels.ops import float32_conv_precision
from cwkernels.ranking import RankingOptions, Recalibration, evaluated_set, rank
from cwkernels.training import Run, load_run

SCORES = "scores.jsonl"
UNTRAINED = "untrained.jsonl"
"""The files in a run's folder."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--untrained", action="store_true", help="the network as the run began with it"
    )
    parser.add_argument(
        "--architectures",
        type=_count,
        default=1000,
        metavar="N",
        help="how many, the same ones in every run, or all (1000)",
    )
    parser.add_argument(
        "--recalibration",
        choices=get_args(Recalibration),
        help="where batch-norm statistics come from (what the run's recipe says)",
    )
    for name, what in (
        ("batches", "training batches of the recalibration (20)"),
        ("images", "validation images, the first of them (all)"),
        ("chunk", "architectures scored together (8, or 243 that share prefixes)"),
        ("threads", "threads (torch's own number)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=what)
    parser.add_argument(
        "--one-by-one", action="store_true", help="share no prefixes: the same scores, more slowly"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"append scores there (RUN/{SCORES})"
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a bar on stderr (where that is a terminal)",
    )


def run(options: argparse.Namespace) -> int:
    """Scores what the file does not hold yet; returns 0."""
    source = load_run(options.run)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    batches = source.batches()
    net = (source.untrained() if options.untrained else source.network()).to(batches.device)
    count = options.architectures or len(net.space)
    out = options.out or options.run / (UNTRAINED if options.untrained else SCORES)
    with float32_conv_precision(source.config.run.precision):
        scores = rank(
            net,
            evaluated_set(net.space, count),
            batches,
            _ranking(source, options),
            log=out,
            progress=options.progress,
        )
    best = int(scores.accuracy.nan_to_num(-1).argmax())
    arch = net.space.format(scores.archs[best])
    print(f"{len(scores.archs)} scores in {out}; the best: {arch}, {scores.accuracy[best]:.2f} %")
    return 0


def _ranking(source: Run, options: argparse.Namespace) -> RankingOptions:
    given = {name: getattr(options, name) for name in ("batches", "images", "chunk")}
    return RankingOptions(
        recalibration=options.recalibration or source.config.recipe.recalibration,
        share_prefixes=not options.one_by_one,
        **{name: value for name, value in given.items() if value is not None},
    )


def _count(text: str) -> int:
    """A number of architectures; 0 for all."""
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a number from 1 on, or all, got {text!r}")
    return int(text)
