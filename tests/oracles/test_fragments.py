"""The emulator's matrix units, ldmatrix and conversions are as the PTX manual says."""

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "build" / "cmake" / "emulator" / "fragments"


@pytest.mark.skipif(not PROGRAM.exists(), reason=f"there is no {PROGRAM}: `make emulated`")
def test_fragments_of_the_emulator_are_those_of_the_manual() -> None:
    result = subprocess.run([PROGRAM], capture_output=True, text=True, check=False)
    assert result.stdout == "fragments: as the tables say\n"
    assert result.returncode == 0
