"""SGD over the selected rows of banks (paper, table 4)."""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import Optimizer

from cwkernels.nn.bank import Bank
from cwkernels.nn.convolution import FixedNorm
from cwkernels.ops import copy_rows
from cwkernels.ops._compact import sum_rows

Unselected = Literal["untouched", "zero_grad"]
MomentumBuffers = Literal["per_set", "per_candidate"]
_NORMS = (FixedNorm, _NormBase, nn.LayerNorm, nn.GroupNorm)


class _Update(NamedTuple):
    """One row, or one whole parameter, to be moved: views of it, its momentum and its gradient."""

    weight: Tensor
    momentum: Tensor
    grad: Tensor


class SGD(Optimizer):
    """`torch.optim.SGD` with momentum for banks: only the rows that a batch selected move.

    For a parameter with an ordinary gradient it does what ``torch.optim.SGD(momentum=...,
    weight_decay=...)`` does. For a bank, whose gradient is compact, it does that to each row that
    has a gradient, with a momentum per row; every other row, its momentum included, stays bitwise
    as it is. Gradients of a row that several batches accumulated are summed. Two groups: the second
    holds the scales and shifts of batch norms and takes no weight decay. Schedulers, `GradScaler`
    and `state_dict` work as with any optimizer.

    After `net.split()` the momentum of a new row starts as a copy of its source's, at the next
    step.

    Args:
        net: the module whose parameters to train: a super-network or any other.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: of all parameters but those of batch norms.
        unselected: "untouched", or "zero_grad" for what the authors' code does: every weighted
            candidate that has once been trained takes a zero gradient in the rows that its decision
            read in the last forward pass, so it keeps decaying and coasting.
        momentum_buffers: "per_set", or "per_candidate" for what the authors' code does: one buffer
            for all sets of a candidate.

    Raises:
        TypeError: for what is not a module.
        ValueError: for a number out of range or an unknown choice.
    """

    grows_with_splits = True  # excused from the check on stock optimizers

    def __init__(
        self,
        net: nn.Module,
        lr: float = 0.025,
        momentum: float = 0.9,
        weight_decay: float = 3e-4,
        unselected: Unselected = "untouched",
        momentum_buffers: MomentumBuffers = "per_set",
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"SGD: net: wanted a torch.nn.Module, got {type(net).__name__}")
        _check_number("lr", lr, inf, "of at least 0")
        _check_number("momentum", momentum, 1, "in [0, 1)")
        _check_number("weight_decay", weight_decay, inf, "of at least 0")
        _check_choice("unselected", unselected, get_args(Unselected))
        _check_choice("momentum_buffers", momentum_buffers, get_args(MomentumBuffers))
        self._net = net
        self._unselected = unselected
        self._momentum_buffers = momentum_buffers
        self._banks = _banks_of(net)
        decayed, norms = _by_decay(net)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": norms, "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]] or groups, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: torch's part, the network and the recipe."""
        own = ("_net", "_unselected", "_momentum_buffers")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Finds the banks of the network that came along."""
        super().__setstate__(state)
        self._banks = _banks_of(self._net)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state of a run; it belongs to the rows as they are in `net` now.

        Raises:
            ValueError: if it is the state of other rows: load the network's state first.
        """
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            if (bank := self._banks.get(id(parameter))) is not None:
                wanted = self._like_momentum(parameter, bank).shape
                got = state["momentum_buffer"].shape
                if got != wanted:
                    raise ValueError(
                        f"SGD.load_state_dict: momentum of {bank.candidate} (decision "
                        f"{bank.decision}): wanted {list(wanted)}, got {list(got)}"
                    )
                state["splits"] = bank.splits

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Moves every parameter, or row of a bank, that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for updates in self._rounds(group["params"]):
                    _move(updates, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _rounds(self, parameters: list[Tensor]) -> Iterator[list[_Update]]:
        """Updates to make together: rows that share a momentum buffer take turns."""
        updates: list[list[_Update]] = [[]]
        for parameter in parameters:
            bank = self._banks.get(id(parameter))
            if bank is not None:
                self._follow_splits(parameter, bank)
            own = (
                self._dense_update(parameter)
                if bank is None or (parameter.grad is not None and not parameter.grad.is_sparse)
                else self._row_updates(parameter, bank)
            )
            shared = self._momentum_buffers == "per_candidate" and bank is not None
            for turn, update in enumerate(own):
                place = turn if shared else 0
                while len(updates) <= place:
                    updates.append([])
                updates[place].append(update)
        yield from (turn for turn in updates if turn)

    def _like_momentum(self, parameter: Tensor, bank: Bank | None) -> Tensor:
        """A tensor of the shape of a parameter's momentum."""
        shared = bank is not None and self._momentum_buffers == "per_candidate"
        return parameter[:1] if shared else parameter

    def _momentum(self, parameter: Tensor, bank: Bank | None) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            like = self._like_momentum(parameter, bank)
            state["momentum_buffer"] = torch.zeros_like(like, memory_format=torch.preserve_format)
            if bank is not None:
                state["splits"] = bank.splits
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _dense_update(self, parameter: Tensor) -> list[_Update]:
        if parameter.grad is None:
            return []
        bank = self._banks.get(id(parameter))
        if bank is not None and self._momentum_buffers == "per_candidate":
            raise RuntimeError(
                "SGD.step: momentum_buffers='per_candidate': wanted compact gradients, got a "
                "dense one: build the network without dense_grad=True"
            )
        return [_Update(parameter, self._momentum(parameter, bank), parameter.grad)]

    def _row_updates(self, parameter: Tensor, bank: Bank) -> list[_Update]:
        """The selected rows of a bank, and with "zero_grad" the live ones of its decision."""
        grads: dict[int, Tensor] = {}
        if parameter.grad is not None:
            rows, values = _summed(parameter.grad)
            grads = dict(zip(rows.tolist(), values, strict=True))
        if self._unselected == "zero_grad" and (grads or parameter in self.state):
            for row in self._live_rows(bank):
                grads.setdefault(row, torch.zeros_like(parameter[row]))
        if not grads:
            return []
        buffer = self._momentum(parameter, bank)
        shared = self._momentum_buffers == "per_candidate"
        return [
            _Update(parameter[row], buffer[0 if shared else row], grad)
            for row, grad in sorted(grads.items())
        ]

    def _live_rows(self, bank: Bank) -> list[int]:
        """The rows that the bank's decision read in the last forward pass in training."""
        last: Tensor | None = getattr(self._net, "last_rows", None)
        return [] if last is None else sorted(set(last[bank.decision].tolist()))

    def _follow_splits(self, parameter: Tensor, bank: Bank) -> None:
        """Grows the momentum of a bank that was split since the last step."""
        state = self.state.get(parameter)
        if not state or state["splits"] == bank.splits:
            return
        buffer: Tensor = state["momentum_buffer"]
        for sources in bank.history[state["splits"] :]:
            if self._momentum_buffers == "per_candidate":
                break
            if sources is None:
                if buffer.shape != parameter.shape:
                    wanted, got = list(parameter.shape), list(buffer.shape)
                    raise RuntimeError(
                        f"SGD.step: momentum of {bank.candidate}: wanted {wanted}, the shape that "
                        f"load_state_dict gave the bank, got {got}: load the optimizer's state too"
                    )
                continue
            grown = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            grown[: sources.shape[0]] = copy_rows(buffer, sources.to(buffer.device))
            buffer = grown
        state["momentum_buffer"] = buffer
        state["splits"] = bank.splits


def _check_number(name: str, value: object, below: float, wanted: str) -> None:
    if not isinstance(value, int | float) or not 0 <= value < below:
        raise ValueError(f"SGD: {name}: wanted a number {wanted}, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        wanted = " or ".join(map(repr, choices))
        raise ValueError(f"SGD: {name}: wanted {wanted}, got {value!r}")


def _banks_of(net: nn.Module) -> dict[int, Bank]:
    """The banks of a network by their parameter's id."""
    return {id(module.weight): module for module in net.modules() if isinstance(module, Bank)}


def _by_decay(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that decay, and those of batch norms, which do not; each once."""
    norms = [
        parameter
        for module in net.modules()
        if isinstance(module, _NORMS) or (isinstance(module, Bank) and module.is_norm)
        for parameter in module.parameters(recurse=False)
    ]
    known = {id(parameter) for parameter in norms}
    return [parameter for parameter in net.parameters() if id(parameter) not in known], norms


def _summed(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted unique rows and their values: accumulation over batches repeats rows."""
    rows, values = grad._indices()[0], grad._values()
    if bool((rows[1:] > rows[:-1]).all()):
        return rows, values
    return sum_rows(rows, values)


def _move(updates: list[_Update], lr: float, momentum: float, weight_decay: float) -> None:
    """torch.optim.SGD's arithmetic, over many tensors at once."""
    weights = [update.weight for update in updates]
    buffers = [update.momentum for update in updates]
    grads = [update.grad for update in updates]
    if weight_decay:
        grads = list(torch._foreach_add(grads, weights, alpha=weight_decay))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    torch._foreach_add_(weights, buffers, alpha=-lr)
