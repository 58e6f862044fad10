"""The fixtures and options of cwkernels.testing, and what must be set before torch is imported."""

import os

from hypothesis import settings

# Threads that wait for work by spinning make tests five times slower where others use the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples in every run: what fails here fails wherever its line is repeated.
settings.register_profile("cwkernels", derandomize=True, deadline=None)
settings.load_profile("cwkernels")

pytest_plugins = [
    "pytester",
    "cwkernels.testing.fixtures",
    "cwkernels.testing.partition",
    "cwkernels.testing.reproduction",
    "cwkernels.testing.sampling",
]
