"""`cwkernels evaluate`: whether to believe the scores of a run."""

import argparse
from pathlib import Path

from cwkernels import groundtruth
from cwkernels.ranking import evaluate, load_scores, text
from cwkernels.ranking.record import scored_space, write_evaluation

SCORES, UNTRAINED, EVALUATION = "scores.jsonl", "untrained.jsonl", "evaluation.json"


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, once ranked")
    for name, default, what in (
        ("scores", SCORES, "its scores"),
        ("untrained", UNTRAINED, "those of the untrained network, if they are there"),
        ("out", EVALUATION, "write the record there"),
    ):
        text = f"{what} (RUN/{default})"
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "--groundtruth", type=Path, metavar="FOLDER", help="of the benchmarks' tables (searched)"
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (1000)"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the table and writes the record; returns 0."""
    scores_file = options.scores or options.run / SCORES
    untrained_file = options.untrained or options.run / UNTRAINED
    space = scored_space(scores_file)
    untrained = None
    if options.untrained is not None or untrained_file.exists():
        untrained = load_scores(space, untrained_file)
    evaluation = evaluate(
        load_scores(space, scores_file),
        groundtruth.load(space, options.groundtruth),
        untrained=untrained,
        resamples=options.resamples,
    )
    print(text(evaluation))
    write_evaluation(options.out or options.run / EVALUATION, evaluation, scores_file)
    return 0
