"""The super-networks, and the plain networks that are cut out of them."""

from cwkernels.networks.macro import MacroSuperNetwork, macro
from cwkernels.networks.nb201 import NB201SuperNetwork, nb201
from cwkernels.networks.supernet import Selection, SuperNetwork

__all__ = [
    "MacroSuperNetwork",
    "NB201SuperNetwork",
    "Selection",
    "SuperNetwork",
    "macro",
    "nb201",
]
