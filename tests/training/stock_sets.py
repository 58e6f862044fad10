"""What the recipes' switches say, in stock torch: every weight set a module of its own.

Deep copies of modules, `torch.optim.SGD` and dictionaries: nothing of it is fast, and nothing of it
is shared with what it is compared to.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.stock_networks import NB201_PREDECESSORS, NB201Cell, StockNB201, candidate_lists
from cwkernels.training import Recipe

Combination = tuple[int, ...]


@dataclass
class Edge:
    """An edge of a cell with its sets, one list of candidates for each combination."""

    cell: NB201Cell
    number: int
    sets: dict[Combination, nn.ModuleList]
    live: Combination = ()
    seen: set[Combination] = field(default_factory=set)
    used: set[int] = field(default_factory=set)

    def combination(self, choices: list[int]) -> Combination:
        if len(self.sets) == 1:
            return ()
        return tuple(choices[d] for d in NB201_PREDECESSORS[self.number])


class StockSets:
    """A stock super-network whose edges exchange modules, trained as a recipe says."""

    def __init__(self, net: StockNB201, recipe: Recipe) -> None:
        self.net = net
        self._recipe = recipe
        self.edges = [
            Edge(cell, number, {(): edge})
            for cell in net.body
            if isinstance(cell, NB201Cell)
            for number, edge in enumerate(candidate_lists(cell.edges))
        ]
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
        own = [p for norm in norms for p in norm.parameters()]
        known = set(own)
        rest = [p for p in net.parameters() if p not in known]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": own, "weight_decay": 0.0}]
        self._optimizer = torch.optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    def split(self) -> None:
        """A deep copy of the candidates for each combination, with copies of their momenta."""
        for edge in self.edges:
            for _ in NB201_PREDECESSORS[edge.number]:
                edge.sets = {
                    (*key, choice): self._copy(own)
                    for key, own in edge.sets.items()
                    for choice in range(self.net.num_choices)
                }

    def step(self, images: Tensor, labels: Tensor, arch: Tensor, lr: float) -> Tensor:
        """One training step; the loss."""
        choices = arch.tolist()
        for edge in self.edges:
            self._bring(edge, edge.combination(choices), choices)
        loss = F.cross_entropy(self.net(images, arch), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._recipe.unselected == "zero_grad":
            self._zero_gradients(choices)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        return loss.detach()

    def _bring(self, edge: Edge, combination: Combination, choices: list[int]) -> None:
        """Makes the edge run a combination's candidates."""
        first = combination not in edge.seen
        if self._recipe.new_sets == "on_first_use" and edge.live and first:
            self._assign(edge.sets[combination], edge.sets[edge.live])
        if combination:
            edge.live = combination
            edge.seen.add(combination)
        edge.used.add(choices[edge.number])
        edge.cell.edges[edge.number] = edge.sets[combination]

    def _zero_gradients(self, choices: list[int]) -> None:
        for edge in self.edges:
            candidates = edge.sets[edge.combination(choices)]
            for choice in edge.used - {choices[edge.number]}:
                for parameter in candidates[choice].parameters():
                    parameter.grad = torch.zeros_like(parameter)

    def _copy(self, candidates: nn.ModuleList) -> nn.ModuleList:
        copied = deepcopy(candidates)
        for old, new in zip(candidates.parameters(), copied.parameters(), strict=True):
            new.grad = None
            self._optimizer.add_param_group({"params": [new]})
            if old in self._optimizer.state:
                buffer = self._optimizer.state[old]["momentum_buffer"]
                shared = self._recipe.momentum_buffers == "per_candidate"
                own = buffer if shared else buffer.clone()
                self._optimizer.state[new]["momentum_buffer"] = own
            elif self._recipe.momentum_buffers == "per_candidate":
                raise AssertionError("the test trains every candidate before the split")
        return copied

    def _assign(self, target: nn.ModuleList, source: nn.ModuleList) -> None:
        target.load_state_dict(source.state_dict())
        if self._recipe.momentum_buffers == "per_candidate":
            return
        for old, new in zip(source.parameters(), target.parameters(), strict=True):
            buffer = self._optimizer.state[old]["momentum_buffer"]
            self._optimizer.state[new]["momentum_buffer"] = buffer.clone()
