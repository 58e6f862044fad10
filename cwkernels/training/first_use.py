"""Weight sets that start at their first use, as in the authors' code."""

import torch
from torch import Tensor

from cwkernels.networks import SuperNetwork
from cwkernels.nn import ConditionalConv, SetMap
from cwkernels.optim import SGD


class FirstUse:
    """Lets a combination that is met for the first time after the split copy what was used last.

    The authors' code keeps, for each edge or layer, one live list of all its candidates, batch-norm
    statistics too; a combination for which nothing is stored yet goes on with the live list as it
    is. Here that is a copy of rows, in every bank of the decision, at the first use.

    Args:
        net: the super-network.
        optimizer: whose momentum is copied with the weights, where each set has one.

    Attributes:
        live: int64 [D], the row that each decision used last; −1 before the first use after its
            split.
        seen: bool [D, S], the rows that have been used since.
    """

    def __init__(self, net: SuperNetwork, optimizer: SGD) -> None:
        decisions = range(net.space.num_decisions)
        most = max(net.space.combinations(d) for d in decisions)
        self._net = net
        self._optimizer = optimizer
        self.live = torch.full((len(decisions),), -1, dtype=torch.int64, device="cpu")
        self.seen = torch.zeros((len(decisions), most), dtype=torch.bool, device="cpu")

    def visit(self, archs: Tensor) -> None:
        """Prepares the rows that architectures, int64 [A, D], are going to read, one by one."""
        maps = enumerate(self._net.set_maps)
        split = [d for d, own in maps if isinstance(own, SetMap) and own.num_sets > 1]
        for rows in self._net.select(archs)[..., 1].tolist():
            for decision in split:
                self._use(decision, rows[decision])

    def _use(self, decision: int, row: int) -> None:
        live = int(self.live[decision])
        if live >= 0 and not self.seen[decision, row]:
            self._copy(decision, live, row)
        self.live[decision] = row
        self.seen[decision, row] = True

    def _copy(self, decision: int, source: int, target: int) -> None:
        for module in self._net.modules():
            if not isinstance(module, ConditionalConv) or module.convolution.decision != decision:
                continue
            tensors = [*module.parameters(), *module.buffers()]
            states = [self._optimizer.state.get(p, {}) for p in module.parameters()]
            tensors += [state["momentum_buffer"] for state in states if "momentum_buffer" in state]
            with torch.no_grad():
                for tensor in tensors:
                    # A buffer that all sets of a candidate share has one row.
                    if tensor.shape[0] > max(source, target):
                        tensor[target].copy_(tensor[source])
