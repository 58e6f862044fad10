"""Search spaces as data: decisions, candidates, predecessors, strings, indices, sampling, counts.

``nb201`` and ``macro`` are, in this package, the functions that give the spaces. What else their
modules hold is imported from there: ``from cwkernels.spaces.macro import LAYERS, parameters``.
"""

from cwkernels.spaces.catalogue import named
from cwkernels.spaces.macro import Macro, macro
from cwkernels.spaces.nb201 import NB201, nb201
from cwkernels.spaces.space import Candidate, Decision, Space

__all__ = ["NB201", "Candidate", "Decision", "Macro", "Space", "macro", "named", "nb201"]
