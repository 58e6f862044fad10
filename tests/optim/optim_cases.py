"""A module with banks whose gradients are chosen row by row, and SGD by hand to compare with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cwkernels.nn import Bank, FixedNorm, SetMap
from cwkernels.ops import copy_rows

LR, MOMENTUM, DECAY = 0.1, 0.9, 0.02


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Toy(nn.Module):
    """A candidate's weight and scale of `rows` sets, beside ordinary layers of every kind.

    `last_rows` [2, A] says, as a super-network does, which rows the decisions read last.
    """

    def __init__(self, rows: int = 3, capacity: int | None = None) -> None:
        super().__init__()
        self.set_map = SetMap((rows, 2))
        self.set_map.assign([0], torch.arange(rows))
        capacity = rows if capacity is None else capacity
        self.weight = Bank(noise(2, 3, seed=1), self.set_map, 1, "conv", capacity=capacity)
        self.scale = Bank(torch.ones(3), self.set_map, 1, "conv", capacity=capacity, is_norm=True)
        self.batch_norm = nn.BatchNorm1d(3)
        self.fixed_norm = FixedNorm(3)
        self.linear = nn.Linear(3, 2)
        with torch.no_grad():
            self.weight.weight.copy_(noise(capacity, 2, 3, seed=2))
            self.linear.weight.copy_(noise(2, 3, seed=3))
            self.linear.bias.copy_(noise(2, seed=4))
        self.last_rows: Tensor | None = None

    def forward(self, rows: Tensor, seed: int) -> Tensor:
        """A loss; the gradient of a bank's row is `row_gradient`, once for each time it is read."""
        self.last_rows = torch.stack([rows, rows])
        total: Tensor = self.batch_norm(noise(4, 3, seed=seed)) * self.fixed_norm.weight
        loss: Tensor = self.linear(total + self.fixed_norm.bias).square().mean()
        for number, bank in enumerate((self.weight, self.scale)):
            read = copy_rows(bank.weight, rows)
            for place in range(len(rows)):
                loss = loss + (read[place] * row_gradient(bank, seed, number, place)).sum()
        return loss


def row_gradient(bank: Bank, seed: int, number: int, place: int) -> Tensor:
    """The gradient of the row that `Toy.forward` reads at a place."""
    return noise(*bank.weight.shape[1:], seed=seed * 100 + number * 10 + place)


@dataclass
class HandSGD:
    """SGD with momentum on the rows of one bank, a buffer for each or one for all.

    `used` says whether the candidate has ever had a gradient.
    """

    weight: Tensor
    decay: float
    shared: bool = False
    zero_grad: bool = False
    used: bool = False
    momentum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.momentum = torch.zeros_like(self.weight[:1] if self.shared else self.weight)

    def step(self, gradients: Mapping[int, Tensor], live: Iterable[int] = ()) -> None:
        """`gradients` by row; `live` are the rows that the decision read."""
        self.used |= bool(gradients)
        nothing = torch.zeros_like(self.weight[0])
        idle = set(live) - set(gradients) if self.zero_grad and self.used else set()
        for row in sorted(set(gradients) | idle):
            gradient = gradients.get(row, nothing) + self.decay * self.weight[row]
            buffer = self.momentum[0 if self.shared else row]
            buffer.mul_(MOMENTUM).add_(gradient)
            self.weight[row] -= LR * buffer
