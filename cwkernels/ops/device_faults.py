"""What kernels found wrong with values that lie on a device, where the host cannot check them."""

from functools import cache

import torch
from torch import Tensor


@cache
def fault_of(device: torch.device) -> Tensor:
    """The flag of a device, int64 [4]: whether there is a fault, architecture, decision, choice.

    It is memory of the host that kernels write, so that it is read without waiting for them.
    """
    pinned = device.type == "cuda"
    with torch.inference_mode(False):
        return torch.zeros(4, dtype=torch.int64, device="cpu", pin_memory=pinned)


def raise_faults(device: torch.device) -> None:
    """Raises for what a kernel on `device` has found by now, once.

    Raises:
        ValueError: naming operation, position and value.
    """
    fault = fault_of(device)
    if not fault[0]:
        return
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the rest of it is written, too
    _, architecture, decision, choice = fault.tolist()
    fault.zero_()
    wanted = "a choice of the decision"
    raise ValueError(
        f"select: arch[{architecture}, {decision}]: wanted {wanted}, got {choice} (it ran as the "
        "operation of code 0, row 0)"
    )


def synchronize(device: torch.device | str | None = None) -> None:
    """Waits for a device's kernels, and raises for what they found wrong.

    An architecture that lies on the device is not read on the host, so a choice that its decision
    does not have shows here, or in a later call: the operations that follow take it for none.

    Args:
        device: None for the current CUDA device, or for the CPU where there is none.

    Raises:
        ValueError: naming operation, position and value.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.synchronize(device)
    raise_faults(device)
