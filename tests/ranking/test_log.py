"""Score files: a ranking that is cut goes on, and only with the same of everything."""

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from network_cases import built_split, randomize
from ranking_cases import archs_of, assert_same_scores, data, options

import cwkernels as cw
from cwkernels.ranking import RankingOptions, load_scores, rank
from cwkernels.ranking import rank as rank_function
from cwkernels.testing import refused

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = options(chunk=2)


def ranked(log: Path, count: int = 7, chosen: RankingOptions = SMALL, seed: int = 1) -> Any:
    net = built_split("nb201")
    randomize(net, seed)
    return rank(net, archs_of(net, count), data(), chosen, log=log, progress=False)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many architectures each chunk scores."""
    module = __import__("cwkernels.ranking.rank", fromlist=["rank"])
    score, sizes = module.score_together, []

    def counting(net: Any, archs: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(archs))
        return score(net, archs, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "score_together", counting)
        yield sizes


def test_a_file_has_a_header_and_a_line_for_each_architecture(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    scores = ranked(log)
    header, *lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert header["schema"] == "cwkernels-scores-1"
    assert header["space"] == "nb201_full"
    assert header["about"]["batches"] == 3
    assert header["about"]["validation_images"] == 40
    assert len(lines) == 7  # of 8: one is repeated
    space = cw.spaces.nb201("full")
    found = {line["arch"]: line["loss"] for line in lines}
    expected = zip(scores.archs, scores.loss, strict=True)
    assert found == {space.format(arch): float(loss) for arch, loss in expected}


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_what_is_there_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """Cut after the third line or within it: a line without its end is lost."""
    log = tmp_path / "scores.jsonl"
    expected = ranked(log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4])[: -cut or None])
    with counted(monkeypatch) as sizes:
        assert_same_scores(ranked(log), expected)
    assert sum(sizes) == 7 - 3 + (cut > 0)
    assert sorted(log.read_bytes().splitlines()) == sorted(b"".join(lines).splitlines())
    with counted(monkeypatch) as sizes:
        assert_same_scores(ranked(log), expected)
    assert sizes == []


def test_more_architectures_join_a_file(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    ranked(log, count=3)
    assert_same_scores(ranked(log, count=7), ranked(tmp_path / "another.jsonl", count=7))


def test_a_file_of_anything_else_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    ranked(log, count=2)
    content = log.read_bytes()
    with refused(ValueError, f"rank: {log}: network: wanted "):
        ranked(log, seed=2)
    with refused(ValueError, f"rank: {log}: images: wanted "):
        ranked(log, chosen=options(images=39))
    with refused(ValueError, f'rank: {log}: recalibration: wanted "batch" to go on with it, got'):
        ranked(log, chosen=options(recalibration="batch"))
    with cw.float32_conv_precision("highest"), refused(ValueError, f"rank: {log}: precision"):
        ranked(log)
    assert log.read_bytes() == content
    ranked(log, chosen=options(chunk=1))  # how many at once changes no score


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    ranked(log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], b'{"arch": "|no\n', *lines[2:]]))
    with refused(ValueError, f'rank: {log}: line 2: wanted a score, got b\'{{"arch"'):
        ranked(log)
    log.write_bytes(b"")
    with refused(ValueError, f"rank: {log}: wanted a file of scores (cwkernels-scores-1), got"):
        ranked(log)
    log.write_bytes(b"accuracy,loss\n")
    with refused(ValueError, f"rank: {log}: line 1: wanted a score, got b'accuracy,loss'"):
        ranked(log)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond a size: what a full disk does, as far as a write can tell."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    expected = ranked(tmp_path / "whole.jsonl")
    with (
        full_disk((tmp_path / "whole.jsonl").stat().st_size - 40),
        refused(OSError, f"rank: {log}: wanted room for 1 scores, got: File too large"),
    ):
        ranked(log)
    assert not log.read_bytes().endswith(b"\n")
    assert_same_scores(ranked(log), expected)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        ranked(tmp_path / "no_such_folder" / "scores.jsonl")


def test_scores_are_read_back(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    scores = ranked(log)
    space = cw.spaces.nb201("full")
    loaded = load_scores(space, log)
    index = space.index(loaded.archs)
    assert isinstance(index, torch.Tensor)
    assert (index.diff() > 0).all()
    own = space.index(scores.archs)
    assert isinstance(own, torch.Tensor)
    assert dict(zip(index.tolist(), loaded.loss.tolist(), strict=True)) == dict(
        zip(own.tolist(), scores.loss.tolist(), strict=True)
    )
    with refused(ValueError, f"load_scores: {log}: wanted macro, got nb201_full"):
        load_scores(cw.spaces.macro(), log)
    header = log.read_text().splitlines(keepends=True)[0]
    log.write_text(header)
    with refused(ValueError, f"load_scores: {log}: wanted at least one score, got none"):
        load_scores(space, log)


def test_nan_is_written_and_read(tmp_path: Path) -> None:
    log = tmp_path / "scores.jsonl"
    net = built_split("nb201")
    with torch.no_grad():
        net.classifier.bias[0] = torch.nan
    rank_function(net, archs_of(net, 2), data(), SMALL, log=log, progress=False)
    assert '"accuracy": null, "loss": null' in log.read_text()
    assert load_scores(net.space, log).accuracy.isnan().all()
