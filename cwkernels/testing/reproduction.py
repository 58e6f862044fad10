"""A pytest plugin: for each test that fails, one line at the end of the run that repeats it."""

import os
import shlex

import pytest

SETTINGS = (
    "CWKERNELS_CPU_ISA",
    "CWKERNELS_EMULATED_LIBRARY",
    "CWKERNELS_EMULATOR",
    "OMP_NUM_THREADS",
)
"""What, set from outside, chooses kernels or the order of a sum."""


def reproduction(nodeid: str) -> str:
    """The shell command that repeats a test, with the settings in force, from pytest's root."""
    given = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    settings = (f"{name}={shlex.quote(value)}" for name, value in given.items())
    return " ".join([*settings, "python -m pytest", shlex.quote(nodeid)])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the lines; not as a section of a report, which --show-capture=no would hide."""
    broken = [
        report.nodeid
        for outcome in ("failed", "error")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    for nodeid in dict.fromkeys(broken):
        terminalreporter.write_line(f"reproduce: {reproduction(nodeid)}")
