"""Bank: all weight sets of one tensor of one candidate, in one contiguous parameter."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from cwkernels.nn.set_map import SetMap
from cwkernels.ops import copy_rows
from cwkernels.spaces import checks

_banks: "weakref.WeakSet[Bank]" = weakref.WeakSet()


class Bank(nn.Module):
    """One parameter `weight` [S, ...] whose row r is weight set r.

    Choosing a set is an address, not a copy: operations read ``weight[row]`` where it lies. Rows
    grow at a split, in place: the parameter object stays the same.

    Args:
        initial: the weights that every set starts from, [...].
        set_map: which row an architecture reads; shared by all banks of a decision.
        decision: the decision that the bank's candidate belongs to.
        candidate: the candidate's name.
        capacity: rows allocated from the start (`reserve`), at least 1; they stay allocated.
        is_norm: the scale or shift of a batch norm, which weight decay leaves alone.

    Raises:
        TypeError, ValueError: for a capacity that is not an int of at least 1.
    """

    def __init__(
        self,
        initial: Tensor,
        set_map: SetMap,
        decision: int,
        candidate: str,
        *,
        capacity: int = 1,
        is_norm: bool = False,
    ) -> None:
        super().__init__()
        self.capacity = checks.integer("Bank", "capacity", capacity, at_least=1)
        self.weight = nn.Parameter(initial.detach().expand(capacity, *initial.shape).clone())
        self._set_map = [set_map]  # in a list: the network owns it, its state appears once
        self.decision = decision
        self.candidate = candidate
        self.is_norm = is_norm
        self.history: list[Tensor | None] = []
        _banks.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Registers a copy or an unpickled bank, too, with the check on stock optimizers."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _banks.add(self)

    @property
    def set_map(self) -> SetMap:
        """Which row an architecture reads."""
        return self._set_map[0]

    def row(self, arch: Tensor) -> int:
        """The row that one architecture, int64 [D], reads.

        Raises:
            TypeError, ValueError: for what is not one architecture.
        """
        sizes = self.set_map.num_candidates
        arch = checks.choices("bank.row", "arch", arch, sizes)
        if arch.dim() != 1:
            wanted = f"of shape [{len(sizes)}]"
            raise ValueError(checks.message("bank.row", "arch", wanted, list(arch.shape)))
        return int(self.set_map.rows(arch.cpu()))

    @property
    def splits(self) -> int:
        """How often the rows have been laid out anew."""
        return len(self.history)

    def grow(self, sources: Tensor) -> None:
        """Lays the rows out anew, row i a copy of the old row `sources[i]`, in place.

        The parameter stays the same object and its gradient is dropped. A loss built before raises
        in backward, as the weights it saved have changed; later ones see the new shape.

        Args:
            sources: int64 [S'], S' at most the rows that are allocated if they were reserved.
        """
        rows = copy_rows(self.weight.detach(), sources.to(self.weight.device))
        replace_rows(self.weight, rows)
        self.weight.grad = None
        self.history.append(sources)

    def extra_repr(self) -> str:
        """Shape, decision and candidate."""
        return f"{list(self.weight.shape)}, decision={self.decision}, candidate={self.candidate}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if make_room(self.weight, state_dict, prefix + "weight", self.capacity):
            self.weight.grad = None
            self.history.append(None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class RunningStatistics(nn.Module):
    """Running mean and variance [S, C] of a batch norm, one row for each weight set.

    Starts as `torch.nn.BatchNorm2d` does: mean 0, variance 1, no batches tracked.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, capacity: int = 1) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("running_mean", torch.zeros(capacity, channels))
        self.register_buffer("running_var", torch.ones(capacity, channels))
        self.register_buffer("num_batches_tracked", torch.zeros(capacity, dtype=torch.int64))

    def grow(self, sources: Tensor) -> None:
        """Lays the rows out anew, row i a copy of the old row `sources[i]`, in place."""
        for buffer in self.buffers():
            replace_rows(buffer, copy_rows(buffer, sources.to(buffer.device)))

    def reset(self) -> None:
        """Forgets every batch, as `torch.nn.BatchNorm2d.reset_running_stats` does."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, buffer in self.named_buffers():
            make_room(buffer, state_dict, prefix + name, self.capacity)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def make_room(tensor: Tensor, state_dict: dict[str, Any], key: str, capacity: int) -> bool:
    """Lets `tensor` [S, ...] load `state_dict[key]` [S', ...]; whether its size has changed.

    Fewer rows than were reserved are completed by the tensor's own, so that these stay allocated.
    """
    loaded = state_dict.get(key)
    if not isinstance(loaded, Tensor) or loaded.dim() != tensor.dim():
        return False
    if loaded.shape == tensor.shape or loaded.shape[1:] != tensor.shape[1:]:
        return False
    if loaded.shape[0] < capacity:
        reserved = tensor.detach()[loaded.shape[0] :]
        state_dict[key] = torch.cat([loaded, reserved.to(loaded)])
        return False
    set_storage(tensor, tensor.new_empty(loaded.shape))
    return True


def replace_rows(tensor: Tensor, rows: Tensor) -> None:
    """Gives `tensor` [S, ...] new rows in place: written where they fit, else a new size."""
    if rows.shape[0] <= tensor.shape[0]:
        with torch.no_grad():
            tensor[: rows.shape[0]].copy_(rows)
    else:
        set_storage(tensor, rows)


def set_storage(tensor: Tensor, source: Tensor) -> None:
    """Makes `tensor` be what `source` is, the same object with another size.

    `set_` is what keeps autograd right: it changes the tensor's version, so a graph that saved the
    old rows refuses to run, and resets its gradient accumulator, so that later gradients may have
    the new shape.
    """
    with torch.no_grad():
        tensor.set_(source)  # type: ignore[call-overload]


_seen: "weakref.WeakKeyDictionary[Optimizer, dict[int, int]]" = weakref.WeakKeyDictionary()


def _check_stock_optimizer(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Before any optimizer's step: refuses state that was made for rows as they were before."""
    if getattr(optimizer, "grows_with_splits", False):
        return
    seen = _seen.setdefault(optimizer, {})
    by_id = {id(bank.weight): bank for bank in _banks}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            bank = by_id.get(id(parameter))
            if bank is None:
                continue
            before = seen.setdefault(id(parameter), bank.splits)
            if before == bank.splits:
                continue
            if optimizer.state.get(parameter):
                raise RuntimeError(
                    f"{type(optimizer).__name__}.step: wanted state made after the last split of "
                    f"the bank of {bank.candidate} (decision {bank.decision}), got state from "
                    "before: use cw.optim.SGD, whose buffers follow a split, or make a new "
                    "optimizer after it"
                )
            seen[id(parameter)] = bank.splits


register_optimizer_step_pre_hook(_check_stock_optimizer)
