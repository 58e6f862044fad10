"""Scores of architectures by a trained super-network."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cwkernels import requires
from cwkernels._version import __version__
from cwkernels.data import Batches
from cwkernels.networks import MacroSuperNetwork, SuperNetwork
from cwkernels.ops.precision import current_float32_conv_precision
from cwkernels.ranking.images import ScoringImages, scoring_images
from cwkernels.ranking.log import SCHEMA, ScoreLog, digest, parse, read_lines
from cwkernels.ranking.options import RankingOptions
from cwkernels.ranking.prefix import score_by_prefix
from cwkernels.ranking.tally import Score
from cwkernels.ranking.together import score_together
from cwkernels.spaces import Space

TOGETHER = 8
"""Architectures side by side: beyond it the stem that they share is no cost any more."""
TREE = 243
"""Architectures in a tree: of all of Macro the 27 subtrees below the third layer, 9882 layer runs
instead of the 9840 of one tree, and a cut loses one of them."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What a super-network predicts of architectures.

    Attributes:
        space: of the architectures.
        archs: int64 ``[M, D]``.
        accuracy: float64 ``[M]``, percent of the validation images; NaN where the network's logits
            were not finite.
        loss: float64 ``[M]``, mean cross entropy.
    """

    space: Space
    archs: Tensor
    accuracy: Tensor
    loss: Tensor


def rank(
    net: SuperNetwork,
    archs: Tensor,
    data: Batches,
    options: RankingOptions | None = None,
    *,
    log: Path | None = None,
    progress: bool | None = None,
) -> Scores:
    """Scores architectures by the accuracy that they reach in a super-network.

    For each architecture batch-norm statistics are recalibrated and validation images classified.
    Equivalent, for one, to this with the network's stand-alone copy in stock torch::

        plain = net.standalone(arch)
        for norm in batch_norms(plain): norm.reset_running_stats(); norm.momentum = None
        for images, _ in data.recalibration(20): plain.train()(images)
        correct = [plain.eval()(images).argmax(1) == labels for images, labels in data.validation()]

    The network is left as it is, bit for bit, and a score depends neither on the other
    architectures nor on how many are scored together.

    Args:
        net: a super-network, on the device of ``data``.
        archs: int64 ``[M, D]``; a repeated one is scored once.
        data: the run's images: ``recalibration`` and ``validation`` are read.
        options: what to do; by default the paper's 20 batches, reset and averaged.
        log: a file to which scores are appended as they come. If it is there, what it holds is not
            scored again.
        progress: whether a bar is shown on stderr, by tqdm; None: on a terminal.

    Returns:
        The scores in the order of ``archs``.

    Raises:
        TypeError, ValueError: for what is not architectures of the network's space, none at all,
            images that the data do not have, or a log of another network, other data or options.
        OSError: if the log cannot be written.
        ImportError: without tqdm, unless ``progress`` is False.
    """
    options = options or RankingOptions()
    space = net.space
    wanted = _unique(space, archs)
    images = scoring_images(data, options)
    known: dict[str, Score] = {}
    scores = ScoreLog(log, _header(net, data, images, options)) if log is not None else None
    if scores is not None:
        known |= scores.scores
    missing = [arch for arch in wanted if space.format(arch) not in known]
    with _bar(len(wanted), len(wanted) - len(missing), progress) as advance:
        for chunk, found in _score(net, missing, images, options):
            named = {space.format(a): s for a, s in zip(chunk, found, strict=True)}
            known |= named
            if scores is not None:
                scores.append(named)
            advance(len(named))
    return collect(space, archs, known)


def collect(space: Space, archs: Tensor, scores: dict[str, Score]) -> Scores:
    """Scores by string as tensors, in the order of ``archs``."""
    found = [scores[space.format(arch)] for arch in archs]
    return Scores(
        space,
        archs,
        torch.tensor([score.accuracy for score in found], dtype=torch.float64),
        torch.tensor([score.loss for score in found], dtype=torch.float64),
    )


def load_scores(space: Space, path: Path) -> Scores:
    """The scores of a log, in the order of ``space.index``.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no log, is of another space, or holds no score.
    """
    lines, _ = read_lines(path)
    if lines[0]["space"] != space.name:
        raise ValueError(f"load_scores: {path}: wanted {space.name}, got {lines[0]['space']}")
    scores = dict(map(parse, lines[1:]))
    if not scores:
        raise ValueError(f"load_scores: {path}: wanted at least one score, got none")
    archs = torch.stack([space.parse(string) for string in scores])
    return collect(space, _unique(space, archs), scores)


def _unique(space: Space, archs: Tensor) -> Tensor:
    """Each architecture once, in the order of the index, which keeps prefixes together."""
    index = space.index(archs)
    if not isinstance(index, Tensor) or index.dim() != 1 or not len(index):
        wanted = f"int64 [M, {space.num_decisions}], at least one"
        raise ValueError(f"rank: archs: wanted {wanted}, got {list(archs.shape)}")
    return torch.stack([space[int(i)] for i in index.unique()])


def _score(
    net: SuperNetwork, archs: list[Tensor], images: ScoringImages, options: RankingOptions
) -> Iterator[tuple[Tensor, list[Score]]]:
    """Chunk by chunk."""
    tree = options.share_prefixes and isinstance(net, MacroSuperNetwork)
    size = options.chunk or (TREE if tree else TOGETHER)
    for start in range(0, len(archs), size):
        chunk = torch.stack(archs[start : start + size])
        if isinstance(net, MacroSuperNetwork) and tree:
            yield chunk, score_by_prefix(net, chunk, images, options.way)
        else:
            yield chunk, score_together(net, chunk, images, options.way)


def _header(
    net: SuperNetwork, data: Batches, images: ScoringImages, options: RankingOptions
) -> dict[str, Any]:
    """What scores depend on; chunks and shared prefixes change none. Below it, what people ask."""
    return {
        "schema": SCHEMA,
        "space": net.space.name,
        "network": digest(net),
        "recalibration": options.recalibration,
        "images": images.digest(),
        "precision": current_float32_conv_precision(),
        "version": __version__,
        "about": {
            "data": data.source,
            "seed": data.seed,
            "batch_size": data.batch_size,
            "batches": len(images.recalibration),
            "validation_images": sum(len(labels) for _, labels in images.validation),
            "threads": torch.get_num_threads(),
        },
    }


@contextlib.contextmanager
def _bar(total: int, done: int, progress: bool | None) -> Iterator[Callable[[int], object]]:
    if progress is False:
        yield lambda count: None
        return
    tqdm = requires.module("tqdm", "rank")
    disable = None if progress is None else False  # None: shown on a terminal only
    with tqdm.tqdm(total=total, initial=done, desc="rank", unit="arch", disable=disable) as bar:
        yield bar.update
