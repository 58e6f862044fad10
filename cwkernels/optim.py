"""SGD over the selected rows of banks (paper, table 4)."""

from collections.abc import Callable
from math import inf
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import Optimizer

from cwkernels.nn.bank import Bank
from cwkernels.nn.convolution import FixedNorm
from cwkernels.ops import SGDGroup, copy_rows, sgd_groups
from cwkernels.ops.sgd import WHOLE

Unselected = Literal["untouched", "zero_grad"]
MomentumBuffers = Literal["per_set", "per_candidate"]
_NORMS = (FixedNorm, _NormBase, nn.LayerNorm, nn.GroupNorm)


class _Gathered(NamedTuple):
    """What `cw.ops.sgd` moves: its four lists."""

    weights: list[Tensor]
    momenta: list[Tensor]
    grads: list[Tensor]
    rows: list[Tensor]

    def add(self, weight: Tensor, momentum: Tensor, grad: Tensor, rows: Tensor) -> None:
        self.weights.append(weight)
        self.momenta.append(momentum)
        self.grads.append(grad)
        self.rows.append(rows)


class _Slots(NamedTuple):
    """A bank whose gradient has a row for each architecture, or -1."""

    parameter: Tensor
    bank: Bank
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
        lr: learning rate. That of a group may be replaced by a float64 tensor on its device, which
            kernels of a GPU read there.
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
                if "trained" in state:  # torch gives what it loads the parameter's dtype
                    state["trained"] = state["trained"].bool()

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
            sgd_groups(
                [
                    SGDGroup(
                        *self._gathered(group["params"]),
                        lr=group["lr"],
                        momentum=group["momentum"],
                        weight_decay=group["weight_decay"],
                    )
                    for group in self.param_groups
                ]
            )
        return loss

    def follow_splits(self) -> None:
        """Grows the momentum of banks that were split since the last step now, not at the next.

        Nothing else changes by it; what is saved between a split and a step needs it.

        Raises:
            RuntimeError: as `step`, if `load_state_dict` gave the network other rows.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if (bank := self._banks.get(id(parameter))) is not None:
                    self._follow_splits(parameter, bank)

    def has_trained(self, parameter: Tensor) -> bool:
        """Whether a parameter has had a gradient in a step so far; until then it has no momentum.

        Where only the device knows, this waits for it.
        """
        if not (state := self.state.get(parameter)):
            return False
        return bool(state.get("trained", True))

    def _gathered(self, parameters: list[Tensor]) -> _Gathered:
        """All that moves, of one group."""
        gathered = _Gathered([], [], [], [])
        live: dict[int, Tensor] = {}
        on_device = self._unselected == "zero_grad" and _is_of_device(self._last_rows)
        slots: list[_Slots] = []
        for parameter in parameters:
            grad = parameter.grad
            bank = self._banks.get(id(parameter))
            if bank is not None:
                self._follow_splits(parameter, bank)
            if bank is None or (grad is not None and not grad.is_sparse):
                if grad is not None:
                    gathered.add(parameter, self._dense_momentum(parameter, bank), grad, WHOLE)
            elif not on_device:
                self._gather_rows(gathered, parameter, bank, live)
            elif grad is not None:
                slots.append(_Slots(parameter, bank, grad))
        if slots:
            self._gather_slots(gathered, slots)
        return gathered

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

    def _dense_momentum(self, parameter: Tensor, bank: Bank | None) -> Tensor:
        if bank is not None and self._momentum_buffers == "per_candidate":
            raise RuntimeError(
                "SGD.step: momentum_buffers='per_candidate': wanted compact gradients, got a "
                "dense one: build the network without dense_grad=True"
            )
        return self._momentum(parameter, bank)

    def _gather_rows(
        self, gathered: _Gathered, parameter: Tensor, bank: Bank, live: dict[int, Tensor]
    ) -> None:
        """The selected rows of a bank, and with "zero_grad" the live ones of its decision.

        `live` is filled by decision.
        """
        grad = parameter.grad
        idle_too = self._unselected == "zero_grad"
        if grad is not None and grad._nnz():
            rows, values = grad._indices(), grad._values()
        elif idle_too and self.has_trained(parameter):
            rows, values = WHOLE[None, :0], parameter[:0]
        else:
            return
        momentum = self._momentum(parameter, bank)
        if idle_too:
            if "trained" in self.state[parameter]:
                self.state[parameter]["trained"].fill_(True)
            if bank.decision not in live:
                live[bank.decision] = self._live_rows(bank).to(rows.device)
            # Behind those that have gradients: these have none.
            rows = torch.cat([rows[0], live[bank.decision]])
        gathered.add(parameter, momentum, values, rows)

    def _gather_slots(self, gathered: _Gathered, slots: list[_Slots]) -> None:
        """The same with "zero_grad" where only the device knows the rows: none is read here.

        A slot without a row is -1, so whether a candidate was ever trained lies on the device, too.
        """
        sizes = sorted({own.grad._nnz() for own in slots})
        if len(sizes) > 1:
            raise RuntimeError(
                "SGD.step: unselected='zero_grad': wanted gradients of the same passes in all "
                f"banks, got {sizes} slots"
            )
        flags = [self._trained_flag(own.parameter) for own in slots]
        momenta = [self._momentum(own.parameter, own.bank) for own in slots]
        selected = torch.stack([own.grad._indices()[0] for own in slots])
        trained = torch.stack(flags) | (selected >= 0).any(1)
        torch._foreach_copy_(flags, list(trained.unbind()))
        live = torch.stack([self._live_rows(own.bank) for own in slots])
        # Behind those that have gradients, as above.
        rows = torch.cat([selected, torch.where(trained[:, None], live, -1)], 1).unbind()
        for i, own in enumerate(slots):
            gathered.add(own.parameter, momenta[i], own.grad._values(), rows[i])

    def _trained_flag(self, parameter: Tensor) -> Tensor:
        """Whether a bank was ever trained, a bool on the device."""
        state = self.state[parameter]
        known = bool(state)
        if "trained" not in state:
            state["trained"] = torch.full((), known, dtype=torch.bool, device=parameter.device)
        flag: Tensor = state["trained"]
        return flag

    @property
    def _last_rows(self) -> Tensor | None:
        """The rows [D, A] that decisions read in the last forward pass in training."""
        last: Tensor | None = getattr(self._net, "last_rows", None)
        return last

    def _live_rows(self, bank: Bank) -> Tensor:
        """Those of the bank's decision."""
        last = self._last_rows
        return WHOLE[:0] if last is None else last[bank.decision]

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
            rows = copy_rows(buffer, sources.to(buffer.device))
            if buffer.shape != parameter.shape:
                buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            # In place where rows were reserved: a captured CUDA graph holds the buffer.
            buffer[: sources.shape[0]] = rows
            buffer[sources.shape[0] :] = 0
        state["momentum_buffer"] = buffer
        state["splits"] = bank.splits


def _check_number(name: str, value: object, below: float, wanted: str) -> None:
    if not isinstance(value, int | float) or not 0 <= value < below:
        raise ValueError(f"SGD: {name}: wanted a number {wanted}, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        wanted = " or ".join(map(repr, choices))
        raise ValueError(f"SGD: {name}: wanted {wanted}, got {value!r}")


def _is_of_device(rows: Tensor | None) -> bool:
    """Whether the host does not know them: see `SuperNetwork.last_rows`."""
    return rows is not None and rows.dtype == torch.int32


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
