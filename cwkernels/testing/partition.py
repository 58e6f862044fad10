"""A pytest plugin: `--device cuda` runs the tests of one device, `--part 2/5` a fifth of them.

A test belongs to a device if it uses the fixture `device` with that parameter.
"""

import re

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("cwkernels")
    group.addoption(
        "--device", metavar="NAME", help="only tests of this parameter of the fixture `device`"
    )
    group.addoption(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="I/N",
        help="only every N-th of the tests, from the I-th on",
    )


@pytest.hookimpl(trylast=True)  # parts are of what the other options leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what is not of the device or not in the part."""
    device: str | None = config.option.device
    index, parts = config.option.part
    of_device = [item for item in items if device is None or _device_of(item) == device]
    chosen = of_device[index - 1 :: parts]
    kept = set(chosen)
    if dropped := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=dropped)
        items[:] = chosen


def _device_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("device") if callspec is not None else None


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"wanted a part such as 2/5, got {text}")
    return int(match[1]), int(match[2])
