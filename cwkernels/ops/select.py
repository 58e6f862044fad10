"""select: what architectures run, from choices that lie on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwkernels.ops._library import register_fake
from cwkernels.ops.backend import current_backend
from cwkernels.ops.device_faults import fault_of, raise_faults


@dataclass(frozen=True)
class SelectLayout:
    """What choices mean, the same for all architectures of a network.

    Attributes:
        codes: for each of D decisions, the operation code of each choice.
        norms: kinds of batch norm, decision and code of the candidate that they belong to; those
            that every architecture runs, at row 0, have decision -1.
        edges: source and target node of each decision, sorted by target, if the decisions are the
            edges of a graph in which code 0 carries nothing: a batch norm that nothing reaches from
            the first node, or from which nothing reaches the last, is not run. Else none.
    """

    codes: tuple[tuple[int, ...], ...]
    norms: tuple[tuple[int, int], ...]
    edges: tuple[tuple[int, int], ...] = ()

    def flat(self) -> tuple[list[int], list[int], list[int]]:
        """As the kernel has it: codes [D, most candidates], -1 behind the last; edges; norms."""
        most = max(map(len, self.codes))
        codes = [code for own in self.codes for code in (*own, *(most - len(own)) * (-1,))]
        edges, norms = ([n for pair in pairs for n in pair] for pairs in (self.edges, self.norms))
        return codes, edges, norms


def select(arch: Tensor, maps: Sequence[Tensor], layout: SelectLayout) -> tuple[Tensor, Tensor]:
    """Looks up what architectures run, in one launch; nothing is read on the host.

    Equivalent, for each architecture a and decision d with `number = (arch[a] * maps[d][:D]).sum()`
    to ``code = layout.codes[d][arch[a, d]]; row = maps[d][D + number]``. A choice out of range runs
    as code 0 and row 0, counts as choice 0 in the numbers of other decisions, and is raised by a
    later call or by `cw.synchronize()`.

    Args:
        arch: int64 [A, D].
        maps: int32 [D + combinations] for each decision: how much each decision's choice counts in
            the number of a combination, and the row of each combination.
        layout: codes, batch norms and edges.

    Returns:
        The selection, int32 [A, D, 2], code and row; and int32 [R, A], the row of each kind of
        batch norm, -1 where the architecture does not run it.

    Raises:
        ValueError: if shapes or dtypes do not fit together, and for choices that an earlier call
            found to be out of range.
        NotImplementedError: on a CPU, which has no kernel: the host knows the choices there.
    """
    check_arguments("select", arch, maps, layout)
    fault = fault_of(arch.device)
    raise_faults(arch.device)
    if current_backend() == "reference":
        return reference(arch, list(maps), layout, fault)
    result: tuple[Tensor, Tensor] = torch.ops.cwkernels.select.default(
        arch.contiguous(), list(maps), *layout.flat(), fault
    )
    return result


def check_arguments(
    operation: str, arch: Tensor, maps: Sequence[Tensor], layout: SelectLayout
) -> None:
    """Of `select` and what does the same."""
    if arch.dtype != torch.int64 or arch.dim() != 2 or arch.shape[1] != len(layout.codes):
        wanted = f"int64 [A, {len(layout.codes)}]"
        raise ValueError(f"{operation}: arch: wanted {wanted}, got {arch.dtype} {list(arch.shape)}")
    if len(maps) != len(layout.codes):
        raise ValueError(
            f"{operation}: maps: wanted {len(layout.codes)}, one a decision, got {len(maps)}"
        )


def runs_on(device: torch.device) -> bool:
    """Whether there is a kernel that reads the choices on this device."""
    key = {"cuda": "CUDA"}.get(device.type, "CPU")
    return torch._C._dispatch_has_kernel_for_dispatch_key("cwkernels::select", key)


def reference(
    arch: Tensor, maps: list[Tensor], layout: SelectLayout, fault: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in plain torch, on any device."""
    counts = arch.new_tensor([len(own) for own in layout.codes])
    valid = (arch >= 0) & (arch < counts)
    if not valid.all() and not fault[0]:
        architecture, decision = (~valid).nonzero()[0].tolist()
        fault.copy_(torch.tensor([1, architecture, decision, int(arch[architecture, decision])]))
    choices = arch.where(valid, 0)
    columns = []
    for d, (own, map) in enumerate(zip(layout.codes, maps, strict=True)):
        number = (choices * map[: arch.shape[1]]).sum(-1)
        code = map.new_tensor(own)[choices[:, d]]
        row = map[arch.shape[1] + number]
        columns.append(torch.stack([code, row], -1).where(valid[:, d, None], 0))
    selection = torch.stack(columns, 1)
    live = valid & _live(selection[..., 0], layout.edges)
    norm_rows = [
        selection[:, d, 1].where((selection[:, d, 0] == code) & live[:, d], -1)
        if d >= 0
        else torch.zeros_like(selection[:, 0, 1])
        for d, code in layout.norms
    ]
    return selection, torch.stack(norm_rows) if norm_rows else selection.new_zeros(0, len(arch))


def _live(codes: Tensor, edges: Sequence[tuple[int, int]]) -> Tensor:
    """Which decisions' edges can carry something from the first node to the last, bool [A, D]."""
    if not edges:
        return torch.ones_like(codes, dtype=torch.bool)
    carries = codes != 0
    nodes = 1 + max(target for _, target in edges)
    nothing = torch.zeros_like(carries[:, 0])
    reached = [~nothing] + [nothing] * (nodes - 1)
    useful = [nothing] * (nodes - 1) + [~nothing]
    for d, (source, target) in enumerate(edges):
        reached[target] = reached[target] | (reached[source] & carries[:, d])
    for d, (source, target) in reversed(list(enumerate(edges))):
        useful[source] = useful[source] | (useful[target] & carries[:, d])
    passes = [reached[source] & useful[target] for source, target in edges]
    return carries & torch.stack(passes, -1)


@register_fake("select")
def _(
    arch: Tensor,
    maps: list[Tensor],
    codes: list[int],
    edges: list[int],
    norms: list[int],
    fault: Tensor,
) -> tuple[Tensor, Tensor]:
    selection = arch.new_empty((*arch.shape, 2), dtype=torch.int32)
    return selection, selection.new_empty((len(norms) // 2, arch.shape[0]))
