"""The rate of ranking: which architectures, the same work on both sides, and the arithmetic."""

import json
from argparse import Namespace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import cwkernels as cw
from bench import ranking
from bench.harness import Samples
from bench.ranking import OURS, STOCK, architectures_of
from cwkernels.ranking.images import ScoringImages
from cwkernels.ranking.options import WAYS
from cwkernels.ranking.together import score_together
from cwkernels.testing import assert_within


def images(count: int = 4) -> ScoringImages:
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(3, count, 3, 8, 8, generator=generator)
    labels = torch.arange(count) % 10
    return ScoringImages([batches[0], batches[1]], [(batches[2], labels)])


def test_the_architectures() -> None:
    subtree = architectures_of("macro", 2)
    space = cw.spaces.macro()
    assert [space.format(arch) for arch in subtree[:4]] == [
        "22222200",
        "22222201",
        "22222202",
        "22222210",
    ]
    assert len(subtree) == 9
    assert len(architectures_of("macro", 4)) == 81
    cells = architectures_of("full", 4)
    assert len(cells.unique(dim=0)) == 8
    cw.spaces.nb201("full").check(cells)


def test_stock_torch_ranks_architectures_that_stand_for_all() -> None:
    sample = ranking.sample_of("macro", architectures_of("macro", 4))
    cw.spaces.macro().check(sample)
    assert len(sample.unique(dim=0)) == 9
    counts = [torch.bincount(column, minlength=3).tolist() for column in sample.T]
    assert counts == [[3, 3, 3]] * 8
    cells = architectures_of("full", 4)
    assert torch.equal(ranking.sample_of("full", cells), cells)


def test_stock_torch_does_the_same_work() -> None:
    """With ours' weights, which a stock network takes as its own, the losses are the same."""
    net = cw.networks.nb201(cw.spaces.nb201("full"), channels=4, cells_per_stage=1)
    archs = architectures_of("full", 4)[:3]
    ours = score_together(net, archs, images(), WAYS["reset"])

    class Plain(torch.nn.Module):
        """All of them, as networks of stock modules."""

        def __init__(self) -> None:
            super().__init__()
            self.networks = torch.nn.ModuleList(net.standalone(arch) for arch in archs)

        def forward(self, batch: torch.Tensor, arch: torch.Tensor) -> torch.Tensor:
            (number,) = (archs == arch).all(1).nonzero().flatten().tolist()
            logits: torch.Tensor = self.networks[number](batch)
            return logits

    stock = ranking.score_stock(Plain(), archs, images())  # type: ignore[arg-type]
    for own, other in zip(ours, stock, strict=True):
        pair = (torch.tensor(value) for value in (own.loss, other.loss))
        assert_within("float32 network", "loss", *pair)


def test_rates_and_what_is_extrapolated() -> None:
    """81 architectures in 27 s against 9 in 18 s: three a second, half of one."""
    samples = Samples({OURS: ((27.0, 27.0),), STOCK: ((18.0, 18.0),)})
    with (
        patch.object(ranking, "interleave", lambda *_, **__: samples),
        patch.object(ranking, "actions_of", lambda *_: {}),
    ):
        options = Namespace(levels=4, rounds=2)
        own = ranking.measure("macro", options, images())
        cell = ranking.measure("full", options, images())
    assert own["rate"] == {OURS: 3.0, STOCK: 0.5}
    assert own["ratio"]["value"] == pytest.approx(6)
    assert own["architectures"] == {OURS: 81, STOCK: 9}
    assert own["layer_runs"] == 4 + 3 + 9 + 27 + 81
    assert own["all"]["subtrees"] == 81
    assert own["all"]["hours"][OURS] == pytest.approx(6561 / 3 / 3600)
    assert cell["architectures"] == {OURS: 8, STOCK: 8}
    assert cell["ratio"]["value"] == pytest.approx(18 / 27)
    machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None, "torch": "2"}
    record = {
        "machine": machine | {"python": "3", "commit": "abc"},
        "what": "20 batches",
        "networks": {"full": cell, "macro": own},
    }
    lines = ranking.text(record).splitlines()
    assert lines[3].startswith("macro: cwkernels 3.00 a second, stock torch, channels-last 0.50")
    assert "×6.00" in lines[3]
    assert "extrapolated to all: 81 such subtrees, 10044 layer runs" in lines[4]


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "ranking.json"
    small = ["--batch", "2", "--batches", "2", "--images", "2", "--levels", "1"]
    arguments = [*small, "--rounds", "2", "--threads", "1", "--networks", "only_conv,macro"]
    assert ranking.main([*arguments, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["command"] == f"python -m bench.ranking {' '.join(arguments)}"
    assert content["networks"]["macro"]["all"]["layer_runs"] == 2187 * (7 + 3)
    assert len(content["networks"]["only_conv"]["seconds"][OURS][0]) == 2


def test_bad_arguments_get_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--levels", "8"], ["--json", "/no/such/place/a.json"]):
        with pytest.raises(SystemExit):
            ranking.main(arguments)
        assert capsys.readouterr().err.count("\n") == 1
