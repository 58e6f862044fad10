"""Damaged checkpoints are refused by name, older ones used; a full disk takes none with it."""

import errno
import re
from pathlib import Path

import pytest
import torch
from training_cases import NAMED, assert_same_run, finish, metrics_of, tiny_config

from cwkernels.training import DamagedCheckpoint, create_run, load_run
from cwkernels.training.checkpoint import newest_checkpoint, read_checkpoint, write_checkpoint
from cwkernels.training.records import EpochRecord, keep_records_until, read_records
from cwkernels.training.state import State, environment

pytestmark = pytest.mark.usefixtures("one_thread")


def state_of(value: float) -> State:
    return State({"net.weight": torch.full((4, 3), value)}, {"step": int(value)})


def value_of(state: State) -> float:
    return float(state.tensors["net.weight"][0, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints written, of which two are left."""
    for value in (1, 2, 3):
        write_checkpoint(tmp_path / "checkpoints", state_of(value))
    return tmp_path / "checkpoints"


def test_the_last_two_are_kept(folder: Path) -> None:
    names = {f"00000{number}.{kind}" for number in (2, 3) for kind in ("json", "safetensors")}
    assert {path.name for path in folder.iterdir()} == names
    assert value_of(read_checkpoint(folder / "000002.json")) == 2


def test_nothing_else_in_the_folder_is_touched(folder: Path) -> None:
    for name in ("notes.txt", "best.safetensors"):
        (folder / name).write_text("mine")
    (folder / ".000004.json.123").write_text("left by a kill")
    (folder / "000009.safetensors").write_text("left by a kill")
    write_checkpoint(folder, state_of(4))
    names = {path.name for path in folder.iterdir()}
    assert {"notes.txt", "best.safetensors", "000004.json"} <= names
    assert not {".000004.json.123", "000009.safetensors", "000002.json"} & names


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, alter, empty, Path.unlink])
@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_a_damaged_one_is_named_and_the_older_one_used(
    folder: Path, kind: str, damage: object
) -> None:
    path = folder / f"000003.{kind}"
    damage(path)  # type: ignore[operator]
    if kind == "json" and damage is Path.unlink:
        found = newest_checkpoint(folder)
    else:
        with pytest.warns(UserWarning, match=f"{re.escape(str(path))}: wanted .*; trying the one"):
            found = newest_checkpoint(folder)
    assert found is not None
    assert value_of(found[1]) == 2


def test_altered_facts_are_damage_too(folder: Path) -> None:
    path = folder / "000003.json"
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))
    with pytest.raises(DamagedCheckpoint, match=r"000003\.json: wanted the facts that were"):
        read_checkpoint(path)


def test_if_all_are_damaged_nothing_starts_anew(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        alter(path)
    with (
        pytest.warns(UserWarning, match="another checksum"),
        pytest.raises(DamagedCheckpoint, match=r"000002\.safetensors"),
    ):
        newest_checkpoint(folder)
    assert newest_checkpoint(folder / "none") is None


def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr("cwkernels.files.os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            write_checkpoint(folder, state_of(4))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_goes_on_from_the_older_one_bitwise(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "run"
    for own in (whole, path):
        create_run(own, tiny_config(NAMED["default"]))
        finish(own)
    newest = max((path / "checkpoints").glob("*.safetensors"))
    alter(newest)
    with pytest.warns(UserWarning, match=newest.name):
        finish(path)
    assert_same_run(path, whole)
    assert len(metrics_of(path)) == 4


def test_a_run_without_checkpoints_has_no_network(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", tiny_config(NAMED["default"]))
    with pytest.raises(FileNotFoundError, match="wanted a checkpoint, got none yet"):
        run.network()


def test_the_network_of_a_run_is_the_trained_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    create_run(path, tiny_config(NAMED["default"]))
    finish(path)
    run = load_run(path)
    net, other = run.network(), run.untrained()
    assert (net.num_weight_sets, other.num_weight_sets) == (76, 12)
    assert not torch.equal(net.classifier.weight, other.classifier.weight)
    torch.rand(1)
    assert torch.equal(run.untrained().classifier.weight, other.classifier.weight)


def test_other_code_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    create_run(path, tiny_config(NAMED["default"]))
    finish(path)
    monkeypatch.setattr(torch, "__version__", "2.99")
    with pytest.warns(UserWarning, match=r"maybe not bitwise: torch .* → 2\.99"):
        finish(path)


def test_threads_and_precision_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run"
    create_run(path, tiny_config(NAMED["default"]))
    finish(path)
    found = newest_checkpoint(path / "checkpoints")
    assert found is not None
    assert found[1].facts["environment"] == {**environment(), "threads": 1, "precision": "high"}
    torch.set_num_threads(2)
    finish(path)
    assert torch.get_num_threads() == 1


def record_of(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 3 * epoch, 1.0, 0.1, 2.0, 10.0, 12, 100, 2.1, 11.0)


def test_a_cut_record_is_left_out_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    lines = [record_of(epoch).line() for epoch in (1, 2, 3)]
    path.write_text("".join(lines)[:-9])
    assert read_records(path) == [record_of(1), record_of(2)]
    path.write_text(lines[0] + '{"epoch": 2}\n' + lines[2])
    with pytest.raises(ValueError, match=r"metrics\.jsonl: wanted an epoch's record, got line 2"):
        read_records(path)


def test_records_of_steps_that_are_taken_again_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_records_until(path, 5)
    assert not path.exists()
    path.write_text("".join(record_of(epoch).line() for epoch in (1, 2, 3))[:-1])
    keep_records_until(path, 5)
    assert path.read_text() == record_of(1).line()
