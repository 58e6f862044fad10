"""The emulator sees each class of bug, in every schedule, and nothing in what is right."""

import os
import subprocess
from pathlib import Path

import pytest

from cwkernels.testing.emulated import LIBRARY

SEEDS = range(12)
ROOT = Path(__file__).parents[2]
FOLDERS = {
    "plain": LIBRARY.parent,
    "address": ROOT / "build" / "emulated" / "address-undefined" / "emulator",
    "thread": ROOT / "build" / "emulated" / "thread" / "emulator",
}
# Where it was is not compared, and takes longest to find out.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:symbolize=0",
    "TSAN_OPTIONS": "halt_on_error=1:symbolize=0",
}
OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
RACE = "ThreadSanitizer: data race"

PLANTS = (
    ("no_sync_block", "thread", RACE),
    ("no_sync_warp", "thread", RACE),
    ("no_copy_wait", "plain", "wanted 1, got -?nan"),
    ("refilled_in_use", "thread", RACE),
    ("shared_overrun", "plain", "wrote beside piece 0 of shared memory, which has 256 bytes"),
    ("shared_overrun", "address", OVERFLOW),
    ("shared_overread", "address", OVERFLOW),
    ("global_overrun", "address", OVERFLOW),
    ("uninitialised", "plain", "wrong value 5: wanted 6, got -?nan"),
    (
        "divergent_shuffle",
        "plain",
        r"block \(\d, 0, 0\), thread \d+: .* a shuffle with mask ffffffff at plants.cu:\d+",
    ),
    ("divergent_barrier", "plain", r"thread \d+: .* sync_block at plants.cu:\d+"),
    ("other_piece", "plain", "thread 7: takes 128 bytes as piece 0 .*, and another .* took 256"),
    ("plain_add", "thread", RACE),
    ("no_fence", "thread", RACE),
    ("ticket_too_early", "thread", RACE),
    ("no_wait", "plain", "thread 3: exits without wait_for_previous"),
    ("read_before_wait", "plain", "wanted 1, got 0"),
    ("read_before_wait", "thread", RACE),
)
"""The bug, the build that sees it, and what it says."""


def run(build: str, *arguments: str) -> tuple[int, str]:
    plants = FOLDERS[build] / "plants"
    if not plants.exists():
        pytest.skip(f"there is no {plants}: `make emulated` builds it")
    result = subprocess.run(
        [plants, *arguments],
        env=os.environ | OPTIONS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout


@pytest.mark.parametrize(("bug", "build", "message"), PLANTS)
def test_a_planted_bug_is_seen_in_every_schedule(bug: str, build: str, message: str) -> None:
    for seed in SEEDS:
        code, output = run(build, bug, "bug", str(seed))
        assert code != 0, f"seed {seed} saw nothing"
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(output)


@pytest.mark.parametrize("build", FOLDERS)
def test_its_twin_is_clean_in_every_schedule(build: str) -> None:
    names = run(build)[1].split()
    assert set(names) == {bug for bug, *_ in PLANTS}
    for name in names:
        code, output = run(build, name, "clean", *map(str, SEEDS))
        assert (code, output) == (0, ""), name
