"""The plugins of pytest: what fails says how to repeat it, and a sample can be run again."""

import re
import shlex
from collections.abc import Callable

import pytest

from cwkernels.testing.reproduction import reproduction
from cwkernels.testing.sampling import in_sample

Run = Callable[..., str]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs pytest in a folder of its own, with the plugins and with this checkout's options."""
    pytester.makeini("[pytest]\naddopts = --show-capture=no")

    def command(*arguments: str, expected: int) -> str:
        plugins = [f"-pcwkernels.testing.{name}" for name in ("reproduction", "sampling")]
        result = pytester.runpytest_inprocess("-pno:cacheprovider", *plugins, *arguments)
        assert result.ret == expected
        return str(result.stdout)

    return command


FAILING = """
import pytest

@pytest.fixture
def broken():
    raise RuntimeError

def test_passes():
    pass

@pytest.mark.parametrize("message", ["it's [A, N] $HOME", "plain"])
def test_fails(message):
    assert message == "plain"

class TestThings:
    def test_errors(self, broken):
        pass
"""


def test_what_fails_says_how_to_repeat_it(pytester: pytest.Pytester, run: Run) -> None:
    folder = pytester.mkdir("a folder")
    (folder / "test_failing.py").write_text(FAILING)
    for options in ((), ("-q", "--tb=no")):
        output = run(*options, expected=1)
        lines = re.findall("^reproduce: (.*)$", output, re.MULTILINE)
        commands = [shlex.split(line) for line in lines]
        assert [command[-4:-1] for command in commands] == [["python", "-m", "pytest"]] * 2
        nodes = [command[-1] for command in commands]
        assert nodes == [
            "a folder/test_failing.py::test_fails[it's [A, N] $HOME]",
            "a folder/test_failing.py::TestThings::test_errors",
        ]
    assert "1 failed in" in run(nodes[0], expected=1)
    assert "1 error in" in run(nodes[1], expected=1)
    assert "reproduce" not in run(f"{folder.name}/test_failing.py::test_passes", expected=0)


def test_settings_in_force_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CWKERNELS_CPU_ISA", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert reproduction("t.py::test[a]") == "python -m pytest 't.py::test[a]'"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CWKERNELS_CPU_ISA", "avx2")
    command = "CWKERNELS_CPU_ISA=avx2 OMP_NUM_THREADS=3 python -m pytest t.py::test"
    assert reproduction("t.py::test") == command


MANY = """
import pytest

@pytest.mark.parametrize("number", range(200))
def test_one(number):
    pass
"""


def chosen(output: str) -> list[str]:
    return re.findall(r"test_one\[(\d+)\] PASSED", output)


def test_a_sample_is_random_and_repeatable(pytester: pytest.Pytester, run: Run) -> None:
    pytester.makepyfile(test_many=MANY)
    first = run("-v", "--sample", "0.1", expected=0)
    assert 5 <= len(chosen(first)) <= 40
    assert f"{200 - len(chosen(first))} deselected" in first
    options = re.findall("^sample: (.*)$", first, re.MULTILINE)
    assert len(options) == 2
    assert options[0] == options[1]
    again = run("-v", *shlex.split(options[0]), expected=0)
    assert chosen(again) == chosen(first)
    other = run("-v", "--sample=0.1", "--sample-seed=1", expected=0)
    assert chosen(other) != chosen(run("-v", "--sample=0.1", "--sample-seed=2", expected=0))
    whole = run("-v", "--sample-seed=1", expected=0)
    assert len(chosen(whole)) == 200
    assert "sample:" not in whole


@pytest.mark.parametrize("fraction", ["0", "1.5", "some"])
def test_a_sample_is_a_part_of_the_whole(fraction: str, run: Run) -> None:
    run("--sample", fraction, expected=4)


def test_a_larger_sample_holds_the_smaller_one() -> None:
    ids = [f"test[{i}]" for i in range(1000)]
    tenth, half = ({i for i in ids if in_sample(i, part, 7)} for part in (0.1, 0.5))
    assert 70 < len(tenth) < 130
    assert 450 < len(half) < 550
    assert tenth < half
