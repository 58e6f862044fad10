"""Banks and the modules that hold them."""

from cwkernels.nn.bank import Bank, RunningStatistics
from cwkernels.nn.convolution import ConditionalConv, FixedConv, FixedNorm
from cwkernels.nn.inverted_bottleneck import MacroLayer
from cwkernels.nn.nb201_cell import MixedEdge, NB201Cell, ResidualReduction
from cwkernels.nn.set_map import SetMap

__all__ = [
    "Bank",
    "ConditionalConv",
    "FixedConv",
    "FixedNorm",
    "MacroLayer",
    "MixedEdge",
    "NB201Cell",
    "ResidualReduction",
    "RunningStatistics",
    "SetMap",
]
