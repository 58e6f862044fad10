"""The plugin that runs the tests of one device, or a part of them."""

import re
from itertools import chain

import pytest

TESTS = """
import pytest

@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    return request.param

@pytest.mark.parametrize("number", range(10))
def test_on_a_device(device, number):
    pass

def test_on_none():
    pass

@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_on_one(device):
    pass
"""


def ran(pytester: pytest.Pytester, *arguments: str) -> list[str]:
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(test_some=TESTS)
    plugins = [f"-pcwkernels.testing.{name}" for name in ("partition", "sampling")]
    result = pytester.runpytest_inprocess("-v", "-pno:cacheprovider", *plugins, *arguments)
    assert result.ret == 0
    return re.findall(r"test_some.py::(\S+) PASSED", str(result.stdout))


def test_a_device_has_its_own_tests_only(pytester: pytest.Pytester) -> None:
    on_cuda = ran(pytester, "--device=cuda")
    assert len(on_cuda) == 11
    assert all("cuda" in name for name in on_cuda)
    assert len(ran(pytester, "--device=cpu")) == 10
    assert len(ran(pytester)) == 22


def test_parts_make_up_the_whole(pytester: pytest.Pytester) -> None:
    parts = [ran(pytester, "--device=cuda", f"--part={i}/3") for i in (1, 2, 3)]
    assert sorted(chain.from_iterable(parts)) == sorted(ran(pytester, "--device=cuda"))
    assert {len(part) for part in parts} == {3, 4}


def test_parts_are_of_a_sample(pytester: pytest.Pytester) -> None:
    sample = ("--sample=0.5", "--sample-seed=3")
    parts = [ran(pytester, *sample, f"--part={i}/2") for i in (1, 2)]
    assert sorted(chain.from_iterable(parts)) == sorted(ran(pytester, *sample))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_a_wrong_part_is_refused(part: str, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\n")
    result = pytester.runpytest_inprocess("-pcwkernels.testing.partition", f"--part={part}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
