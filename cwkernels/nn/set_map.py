"""SetMap: which weight set a decision reads, as data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SetMap(nn.Module):
    """An index map: the decisions that it reads and a table over their combinations.

    ``set_of[c]`` is the row that combination c reads, c the mixed-radix number of the choices of
    the decisions ``reads``, the first slowest (paper section 3.2). Before a split the table is one
    zero; after it each combination has a row of its own. Partial splits, few-shot sub-networks and
    clusters are other tables.

    Args:
        num_candidates: the number of candidates of each decision of the space.
    """

    reads: Tensor
    set_of: Tensor

    def __init__(self, num_candidates: Sequence[int]) -> None:
        super().__init__()
        self.num_candidates = tuple(num_candidates)
        self.register_buffer("reads", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("set_of", torch.zeros(1, dtype=torch.int64))
        self._refresh()

    def _refresh(self) -> None:
        """Keeps host copies: rows are looked up for architectures on the CPU without a sync."""
        self._host_reads: list[int] = self.reads.tolist()
        self._host_set_of = self.set_of.cpu()

    @property
    def num_sets(self) -> int:
        """The number of rows that the map can give."""
        return int(self._host_set_of.max()) + 1

    def assign(self, reads: Sequence[int], set_of: Tensor) -> None:
        """Replaces the map.

        Args:
            reads: decisions, the slowest first.
            set_of: int64, one row for each of their combinations.

        Raises:
            ValueError: if the table does not have that length, or has a negative row.
        """
        combinations = 1
        for decision in reads:
            combinations *= self.num_candidates[decision]
        if set_of.dtype != torch.int64 or set_of.shape != (combinations,) or int(set_of.min()) < 0:
            got = f"{set_of.dtype} {list(set_of.shape)}"
            wanted = f"int64 [{combinations}] of rows, one for each combination"
            raise ValueError(f"SetMap.assign: set_of: wanted {wanted}, got {got}")
        device = self.reads.device
        self.reads = torch.tensor(list(reads), dtype=torch.int64, device=device)
        self.set_of = set_of.to(device)
        self._refresh()

    def rows(self, arch: Tensor) -> Tensor:
        """The rows that architectures read: int64 [..., D] on the CPU to int64 [...]."""
        number = torch.zeros(arch.shape[:-1], dtype=torch.int64)
        for decision in self._host_reads:
            number = number * self.num_candidates[decision] + arch[..., decision]
        return self._host_set_of[number]

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("reads", "set_of"):
            loaded = state_dict.get(prefix + name)
            if isinstance(loaded, Tensor):
                setattr(self, name, torch.empty_like(loaded, device=self.reads.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._refresh()
