"""A run that is killed at any moment goes on bitwise as if it had not been."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed import AfterSplit, AtStep, AtSync, Moment, run_until, start
from training_cases import (
    NAMED,
    STEPS,
    TINY,
    assert_same_run,
    finish,
    tiny_batches,
    tiny_config,
)

from cwkernels.training import Trainer, create_run, load_run
from cwkernels.training.state import capture, restore

KILLED = -9
every_recipe = pytest.mark.parametrize("recipe", NAMED)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each recipe that was never cut."""
    paths = {name: tmp_path_factory.mktemp(name) / "run" for name in NAMED}
    for name, path in paths.items():
        create_run(path, tiny_config(NAMED[name]))
        finish(path)
    return paths


MOMENTS: list[tuple[str, Moment]] = [
    # A checkpoint of this run syncs four times: tensors, folder, JSON, folder. Two of them, then
    # the record of the first epoch (8) and its checkpoint (9), the split's (13), …
    *(("default", AtSync(number)) for number in (0, 2, 8, 9, 14, 26, 37)),
    *(("default", AtStep(step)) for step in (1, STEPS, 4 * STEPS)),
    ("default", AfterSplit(STEPS)),
    ("default", AfterSplit(2 * STEPS)),
    ("paper", AtSync(20)),
    ("paper", AtStep(2 * STEPS + 1)),
    ("paper", AfterSplit(2 * STEPS)),
]


@pytest.mark.parametrize(("recipe", "moment"), MOMENTS, ids=str)
def test_a_killed_run_goes_on_bitwise(
    recipe: str, moment: Moment, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    create_run(path, tiny_config(NAMED[recipe]))
    assert run_until(moment, path) == KILLED
    if isinstance(moment, AfterSplit):
        assert load_run(path).network().num_weight_sets == (28 if moment.step == STEPS else 76)
    finish(path)
    assert_same_run(path, uninterrupted[recipe])
    left = {file.suffix for file in (path / "checkpoints").iterdir()}
    assert left == {".json", ".safetensors"}


@every_recipe
def test_steps_since_the_last_checkpoint_are_taken_again(
    recipe: str, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    """With checkpoints after epochs and splits only."""
    path = tmp_path / "run"
    create_run(path, tiny_config(NAMED[recipe], checkpoint_seconds=1e9))
    for moment in (AtStep(2), AtStep(STEPS + 2), AfterSplit(2 * STEPS), AtStep(4 * STEPS - 1)):
        assert run_until(moment, path) == KILLED
    finish(path)
    assert_same_run(path, uninterrupted[recipe])


def test_a_run_killed_from_outside_goes_on_bitwise(
    uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    create_run(path, tiny_config(NAMED["default"]))
    delays = random.Random(0)
    kills = 0
    while kills < 5 and len(load_run(path).metrics()) < 4:
        process = start(finish, path)
        process.join(delays.uniform(0.05, 0.5))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills
    finish(path)
    assert_same_run(path, uninterrupted["default"])


def test_torchs_generator_goes_on(one_thread: None) -> None:
    """Of what a module of a user's may draw in a forward pass."""
    cut, going_on = (Trainer(TINY.build(), tiny_batches(), NAMED["default"]) for _ in range(2))
    torch.manual_seed(1)
    torch.rand(5)
    state = capture(cut)
    wanted = torch.rand(5)
    torch.manual_seed(2)
    restore(going_on, state)
    assert torch.equal(torch.rand(5), wanted)


def test_another_seed_or_recipe_is_another_run(
    uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    """What the comparison above can tell apart."""
    config = tiny_config(NAMED["default"])
    path = tmp_path / "run"
    create_run(path, replace(config, recipe=replace(config.recipe, momentum=0.8)))
    finish(path)
    with pytest.raises(AssertionError):
        assert_same_run(path, uninterrupted["default"])


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", tiny_config(NAMED["default"]))
    with run.locked(), pytest.raises(RuntimeError, match="one that another trains"), run.locked():
        pass
    with run.locked():
        pass


def test_a_finished_run_has_nothing_left_to_do(uninterrupted: dict[str, Path]) -> None:
    path = uninterrupted["default"]
    files = {file: file.stat().st_mtime_ns for file in (path / "checkpoints").iterdir()}
    finish(path)
    assert {file: file.stat().st_mtime_ns for file in (path / "checkpoints").iterdir()} == files
