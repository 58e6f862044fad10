"""SetMap: which weight set a decision reads, as data."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Self

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
        combinations: for how many of them the table on the device has room from the start; a larger
            one is another tensor.

    Attributes:
        on_device: int32 ``[D + combinations]`` beside the buffers, the map as `cw.ops.select` reads
            it. Written in place, so that a captured CUDA graph sees a map that has changed.
    """

    reads: Tensor
    set_of: Tensor

    def __init__(self, num_candidates: Sequence[int], combinations: int = 1) -> None:
        super().__init__()
        self.num_candidates = tuple(num_candidates)
        self.on_device = torch.zeros(len(self.num_candidates) + combinations, dtype=torch.int32)
        self.register_buffer("reads", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("set_of", torch.zeros(1, dtype=torch.int64))
        # The map itself is on the host, where rows are looked up without a sync; the buffers show
        # it to `state_dict`, and may lie on a device, or on the meta device with no values.
        self._host_reads: list[int] = []
        self._host_set_of = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._write()

    def _write(self) -> None:
        """Fills the buffers from the map."""
        if not self.set_of.is_meta:
            self.reads.copy_(torch.tensor(self._host_reads, dtype=torch.int64, device="cpu"))
            self.set_of.copy_(self._host_set_of)
        self._write_on_device()

    def _write_on_device(self) -> None:
        """Fills `on_device`: what each decision's choice counts, then the rows."""
        counts = [0] * len(self.num_candidates)
        count = 1
        for decision in reversed(self._host_reads):
            counts[decision] += count
            count *= self.num_candidates[decision]
        values = torch.cat([torch.tensor(counts, device="cpu"), self._host_set_of]).int()
        device = self.set_of.device
        if self.on_device.device != device or len(self.on_device) < len(values):
            size = max(len(self.on_device), len(values))
            self.on_device = torch.zeros(size, dtype=torch.int32, device=device)
        if not self.on_device.is_meta:
            self.on_device[: len(values)].copy_(values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._write()  # `to_empty` brings buffers without values
        return self

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
            ValueError: for a decision that does not exist, or if the table does not have that
                length, or has a negative row.
        """
        if (fault := self._fault(reads, set_of)) is not None:
            raise ValueError(f"SetMap.assign: {fault}")
        self._host_reads = list(reads)
        self._host_set_of = set_of.to("cpu", copy=True)
        self.reads = self.reads.new_empty(len(self._host_reads))
        self.set_of = self.set_of.new_empty(set_of.shape)
        self._write()

    def _fault(self, reads: Sequence[int], set_of: object) -> str | None:
        """What is wrong with a map: argument, wanted, got."""
        decisions = range(len(self.num_candidates))
        if not all(isinstance(d, int) and d in decisions for d in reads):
            return f"reads: wanted decisions in [0, {len(decisions)}), got {list(reads)}"
        combinations = prod(self.num_candidates[decision] for decision in reads)
        wanted = f"int64 [{combinations}] of rows, one for each combination"
        if not isinstance(set_of, Tensor):
            return f"set_of: wanted {wanted}, got {type(set_of).__name__}"
        if set_of.dtype != torch.int64 or set_of.shape != (combinations,):
            return f"set_of: wanted {wanted}, got {set_of.dtype} {list(set_of.shape)}"
        if int(set_of.min()) < 0:
            return f"set_of: wanted rows of at least 0, got {int(set_of.min())}"
        return None

    def rows(self, arch: Tensor) -> Tensor:
        """The rows that architectures read: int64 [..., D] on the CPU to int64 [...]."""
        number = torch.zeros(arch.shape[:-1], dtype=torch.int64, device="cpu")
        for decision in self._host_reads:
            number = number * self.num_candidates[decision] + arch[..., decision]
        # Not an index: a scalar one would read its value, which a compiled graph cannot.
        return self._host_set_of.take(number)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = ("reads", "set_of")
        reads, set_of = (state_dict.get(prefix + name) for name in names)
        if isinstance(reads, Tensor) and isinstance(set_of, Tensor):
            if (fault := self._fault(reads.tolist(), set_of)) is not None:
                error_msgs.append(prefix + fault)
                return
            for name, loaded in zip(names, (reads, set_of), strict=True):
                setattr(self, name, torch.empty_like(loaded, device=self.reads.device))
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if isinstance(reads, Tensor) and isinstance(set_of, Tensor):
            self._host_reads = reads.tolist()
            self._host_set_of = set_of.to("cpu", copy=True)
            self._write_on_device()
