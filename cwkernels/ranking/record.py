"""The record of an evaluation, which reports read."""

import json
from pathlib import Path
from typing import Any

from cwkernels.files import write_whole
from cwkernels.ranking.evaluate import Evaluation
from cwkernels.ranking.log import read_lines
from cwkernels.spaces import Space, named

SCHEMA = "cwkernels-evaluation-1"


def scored_space(path: Path) -> Space:
    """The space of a file of scores.

    Raises:
        FileNotFoundError, ValueError: if it is not there, or no such file.
    """
    lines, _ = read_lines(path)
    return named(lines[0]["space"])


def write_evaluation(path: Path, evaluation: Evaluation, scores: Path) -> None:
    """Writes an evaluation, with the header of the scores that it is of, as JSON."""
    lines, _ = read_lines(scores)
    content = {"schema": SCHEMA, "scores": lines[0], **evaluation.to_json()}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `write_evaluation` wrote.

    Raises:
        FileNotFoundError, ValueError: if it is not there, or no such file.
    """
    try:
        content = json.loads(path.read_bytes())
        known = content["schema"] == SCHEMA
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"read_evaluation: {path}: wanted an evaluation ({SCHEMA}), got another")
    assert isinstance(content, dict)
    return content
