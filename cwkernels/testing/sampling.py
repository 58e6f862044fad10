"""A pytest plugin: `--sample 0.1` runs a random tenth of the tests, `--sample-seed` the same again.

Whether a test is in the sample depends on the seed and on its own id alone, not on what else is
collected: a test of a sample can be looked for in a run of one file.
"""

import hashlib
import secrets

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("cwkernels")
    group.addoption(
        "--sample",
        type=_fraction,
        default=1.0,
        metavar="FRACTION",
        help="run a random part of the tests, 0.1 is a tenth",
    )
    group.addoption(
        "--sample-seed", type=int, metavar="N", help="which part (default: another one each time)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Chooses a seed where none is given."""
    if config.option.sample_seed is None:
        config.option.sample_seed = secrets.randbelow(1_000_000)


def pytest_report_header(config: pytest.Config) -> str | None:
    """The options that run the same sample again."""
    return _options(config)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The same at the end, as -q has no header."""
    if (options := _options(config)) is not None:
        terminalreporter.write_line(options)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what is not in the sample."""
    fraction, seed = config.option.sample, config.option.sample_seed
    chosen = [item for item in items if in_sample(item.nodeid, fraction, seed)]
    dropped = [item for item in items if not in_sample(item.nodeid, fraction, seed)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = chosen


def in_sample(nodeid: str, fraction: float, seed: int) -> bool:
    """Whether a test is in the sample of a seed; one in a smaller sample is in a larger one."""
    digest = hashlib.sha256(f"{seed} {nodeid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _options(config: pytest.Config) -> str | None:
    if config.option.sample == 1:
        return None
    return f"sample: --sample {config.option.sample} --sample-seed {config.option.sample_seed}"


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError(f"wanted a part of 1, got {text}")
    return value
