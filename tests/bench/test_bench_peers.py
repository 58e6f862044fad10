"""The benchmark beside rivals: what counts, what is reached, what is printed, and the command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import malloc, passes, peers, peers_table
from bench.contestants import PEERS, build, stock_network
from bench.experiment import Batch
from bench.options import command_line
from bench.passes import PASSES, RECALIBRATION_PASS, SCORING_PASS, TRAINING_STEP
from bench.stock_networks import StockNB201
from bench.targets import ALL, CHANNELS_LAST, NCHW, TARGETS, outcomes, setting_for

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {
    "ours": 0.1,
    "ours_split": 0.1005,
    "ours_highest": 0.2,
    NCHW: 0.36,
    CHANNELS_LAST: 0.28,
    "authors_split": 0.5,
}


def measured(seconds: dict[str, float], saved: float = 0.7) -> dict[str, Any]:
    times = {name: [[s, s], [s, s]] for name, s in seconds.items()}
    sizes = {"ours": 2**20 * saved, "ours_split": 2**20 * saved, CHANNELS_LAST: float(2**20)}
    return {
        "architectures": [[0] * 6, [1] * 6],
        "passes": dict.fromkeys(PASSES, times),
        "saved": sizes,
    }


def record(default: dict[str, float], keeping: dict[str, float]) -> dict[str, Any]:
    """One of the full space, with times under both settings of malloc."""
    machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None}
    return {
        "machine": machine | {"torch": "2.14.1", "python": "3.11", "commit": "abc"},
        "batch": 64,
        "rounds": 2,
        "malloc": malloc.SETTINGS,
        "settings": {
            "default": {"networks": {"full": measured(default)}},
            "keeping": {"networks": {"full": measured(keeping)}},
        },
    }


def reached(record: dict[str, Any]) -> dict[str, str]:
    return {outcome.label: outcome.met for outcome in outcomes(record)}


def test_a_rival_counts_under_the_setting_in_which_it_is_faster() -> None:
    both = record(SECONDS, SECONDS | {NCHW: 0.3, CHANNELS_LAST: 0.29, "ours": 0.01})
    assert setting_for(both, "full", TRAINING_STEP, CHANNELS_LAST) == "default"
    assert setting_for(both, "full", TRAINING_STEP, NCHW) == "keeping"
    values = {outcome.label: outcome.measured.value for outcome in outcomes(both)}
    assert values["training step: stock torch, channels-last ÷ cwkernels"] == pytest.approx(2.8)
    assert values["training step: stock torch, NCHW ÷ cwkernels"] == pytest.approx(30)


def test_what_is_reached() -> None:
    met = reached(record(SECONDS, SECONDS))
    assert met == {
        "training step: stock torch, channels-last ÷ cwkernels": "aim",
        "training step: stock torch, NCHW ÷ cwkernels": "yes",
        "scoring pass: stock torch, channels-last ÷ cwkernels": "yes",
        "recalibration pass: stock torch, channels-last ÷ cwkernels": "yes",
        "training step: stock torch, channels-last ÷ cwkernels, precision highest": "yes",
        "saved for backward: cwkernels ÷ stock torch, channels-last": "yes",
        "saved for backward: cwkernels, split ÷ cwkernels": "yes",
        "training step, split: cwkernels, split ÷ cwkernels": "yes",
    }
    slow = {name: s * (1 if name.startswith("stock") else 2) for name, s in SECONDS.items()}
    slow["ours_split"] = 0.21
    met = reached(record(slow, slow))
    assert list(met.values()) == ["no"] * 5 + ["yes", "yes", "no"]


def test_a_split_step_is_as_long_where_the_interval_contains_one() -> None:
    both = record(SECONDS, SECONDS)
    for content in both["settings"].values():
        times = {name: [[s] * 4] * 2 for name, s in SECONDS.items()}
        times["ours_split"] = [[0.08, 0.15, 0.15, 0.08]] * 2
        content["networks"]["full"]["passes"] = dict.fromkeys(PASSES, times)
    (outcome,) = (o for o in outcomes(both) if o.label.startswith("training step, split"))
    assert outcome.measured.value > 1.01
    assert outcome.measured.low <= 1
    assert outcome.met == "yes"


def test_every_network_has_a_target_of_every_kind() -> None:
    for network in ALL:
        asked = {(t.what, t.name, t.base) for t in TARGETS if network in t.networks}
        assert {(what, "ours", CHANNELS_LAST) for what in PASSES} < asked
        assert (TRAINING_STEP, "ours", NCHW) in asked
        assert (TRAINING_STEP, "ours_highest", CHANNELS_LAST) in asked
        assert len(asked) == (9 if network == "macro" else 8)


def test_the_printed_tables() -> None:
    printed = peers_table.text(record(SECONDS, SECONDS | {NCHW: 0.3}))
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "NAS-Bench-201, full training step scoring pass recalibration pass" in lines
    assert "cwkernels 100.0 ms d 100.0 ms d 100.0 ms d" in lines
    assert f"stock torch, NCHW{' ×3.00 [3.00–3.00] k' * 3}" in lines
    assert "stock torch, channels-last 1.0" in lines
    assert any(line.endswith("full ≥ 2.00 ≥ 2.70 2.800 aim") for line in lines)
    assert max(map(len, printed.splitlines())) <= 140


def test_who_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(passes, "runs_bf16", lambda device: False)
    on_gpu = {"ours_graphed", "ours_graphed_bf16", "ours_bf16", "stock_graphed"}
    plain = set(PEERS) - on_gpu - {"stock_bf16", "stock_compiled"}
    assert set(passes.contestants_of("macro", cpu, compiled=False)) == plain
    assert set(passes.contestants_of("full", cpu, compiled=False)) == plain - {"ours_recompute"}
    monkeypatch.setattr(passes, "runs_bf16", lambda device: True)
    assert set(passes.contestants_of("macro", cpu, compiled=True)) == set(PEERS) - on_gpu
    assert set(passes.contestants_of("macro", gpu, compiled=True)) == set(PEERS)


def test_every_candidate_is_one_of_those_to_compile() -> None:
    network = stock_network("full")
    assert isinstance(network, StockNB201)
    assert [len(candidates) for candidates in network.candidates()] == [5] * 6 * 6
    assert [len(candidates) for candidates in stock_network("macro").candidates()] == [3] * 8


def small_batch() -> Batch:
    return Batch(torch.randn(2, 3, 32, 32), torch.arange(2))


def test_all_passes_are_timed_in_their_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: dict[str, set[tuple[bool, bool]]] = {name: set() for name in PEERS}

    def watched(name: str, network: str, device: torch.device) -> Any:
        contestant = build(name, network, device)
        contestant.network.register_forward_pre_hook(
            lambda module, inputs: modes[name].add((module.training, torch.is_grad_enabled()))
        )
        return contestant

    monkeypatch.setattr(passes, "build", watched)
    result = passes.measure("only_conv", [small_batch()], rounds=2, compiled=False)
    assert modes["ours"] == modes[CHANNELS_LAST] == {(True, True), (False, False), (True, False)}
    assert list(result["passes"]) == [TRAINING_STEP, SCORING_PASS, RECALIBRATION_PASS]
    samples = passes.samples_of(json.loads(json.dumps(result)), SCORING_PASS)
    assert (samples.num_cases, samples.num_rounds) == (1, 2)
    assert samples.mean_of_medians("authors_split") > 0
    assert len(result["architectures"][0]) == 6


def test_bytes_saved_are_means_over_architectures() -> None:
    one, two = (passes.count_saved("full", small_batch(), architectures=n) for n in (1, 2))
    for saved in (one, two):
        assert saved["ours"] == saved["ours_split"] > 0
        assert 0 < saved["ours"] < saved[CHANNELS_LAST]
    assert one[CHANNELS_LAST] != two[CHANNELS_LAST]


FAULTS = """
import resource, torch
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(): torch.empty(2**26, dtype=torch.uint8).fill_(1)
for _ in range(24): use()  # the heap grows while small blocks come to lie in what was released
before = faults()
for _ in range(8): use()
print(faults() - before)
"""


@pytest.mark.slow
def test_the_settings_of_malloc_do_what_they_say() -> None:
    """Page faults of 64 MiB that are allocated, written and released again and again."""
    counts = {}
    for setting in malloc.SETTINGS:
        environment = malloc.environment(setting, threads=1)
        result = subprocess.run(
            [sys.executable, "-c", FAULTS], env=environment, check=True, capture_output=True
        )
        counts[setting] = int(result.stdout)
    assert counts["keeping"] < 100
    assert counts["default"] > 8 * 100


def test_a_setting_replaces_the_inherited_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert "MALLOC_MMAP_MAX_" not in malloc.environment("default", threads=3)
    keeping = malloc.environment("keeping", threads=3)
    assert keeping["MALLOC_MMAP_MAX_"] == "0"
    assert (keeping["OMP_NUM_THREADS"], keeping["OMP_PROC_BIND"]) == ("3", "true")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--architectures", "9"], "--architectures: wanted at most 8, got 9"),
        (["--networks", "huge"], "--networks: wanted some of full"),
        (["--batch", "45001"], "--batch: an epoch has 45000 images, got 45001"),
        (["--malloc", "jemalloc"], "--malloc: invalid choice: 'jemalloc'"),
        (["--json", "/no/such/place/a.json"], "--json: no such directory"),
    ],
)
def test_bad_arguments_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        peers.main(arguments)
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_a_recorded_command_names_no_files() -> None:
    arguments = ["--rounds", "2", "--json", "/a b/c.json", "--plot=d.png", "--malloc", "default"]
    command = "python -m bench.peers --rounds 2 --malloc default"
    assert command_line("bench.peers", arguments) == command


@pytest.mark.slow
def test_a_small_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "peers.json"
    small = ["--networks", "only_conv", "--batch", "2", "--architectures", "1", "--rounds", "1"]
    assert peers.main([*small, "--threads", "1", "--malloc", "keeping", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "1 threads" in printed
    assert "Targets" in printed
    content = json.loads(path.read_text())
    assert content["schema"] == peers.SCHEMA
    command = "python -m bench.peers --networks only_conv --batch 2 --architectures 1 --rounds 1"
    assert content["command"] == f"{command} --threads 1 --malloc keeping"
    assert content["rounds"] == 2
    assert list(content["settings"]) == ["keeping"]
    assert [target["met"] for target in content["targets"]]
    assert peers_table.text(content) == printed.rstrip("\n")
