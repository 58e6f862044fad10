"""What both super-networks share: set maps, banks, the split, and which rows a batch reads."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwkernels import ops
from cwkernels.nn.bank import Bank, RunningStatistics
from cwkernels.nn.convolution import ConditionalConv, FixedConv, FixedNorm
from cwkernels.nn.measurement import Measurement, update_running
from cwkernels.nn.moments import RunningMoments
from cwkernels.nn.set_map import SetMap
from cwkernels.ops._images import batches_of
from cwkernels.spaces import checks
from cwkernels.spaces.space import Space

_FIXED = (-1, 0)
"""The kind of batch norm that every architecture runs, at row 0, in an `ops.SelectLayout`."""


@dataclass(frozen=True)
class Selection:
    """What the architectures of a forward pass run, known to the host or to the device only.

    Attributes:
        choices: operation code and row of each decision, ``[D, 2]`` or ``[A, D, 2]``: int64 on the
            CPU, or int32 on the device.
        norm_rows: ``[R, A]`` of the same dtype there, the row that each kind of batch norm updates,
            -1 where the architecture does not run it; the last kind is what every one runs.
    """

    choices: Tensor
    norm_rows: Tensor

    @property
    def by_architecture(self) -> Tensor:
        """``choices`` as ``[A, D, 2]``."""
        return self.choices.reshape(-1, *self.choices.shape[-2:])


class SuperNetwork(nn.Module):
    """A super-network whose candidates have a weight set per combination of their predecessors.

    Args:
        space: the search space.
        reserve: allocate all rows of every bank at the start, so that no tensor changes size at a
            split (a captured CUDA graph survives it). Parameters then count the reserved rows.
        norms: decision and operation code of each kind of conditional batch norm.
        edges: source and target of each decision, if they are the edges of a cell.

    Attributes:
        statistics_momentum: weight of a new batch in running statistics, 0.1 as BatchNorm's, or
            None for the exact average of all batches since a reset.
        last_rows: [D, A], the rows that the last forward pass in training read: int64 on the CPU,
            or int32 on the device if the architecture was known there only.
    """

    classifier: nn.Linear

    def __init__(
        self,
        space: Space,
        *,
        reserve: bool,
        norms: Sequence[tuple[int, int]],
        edges: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self.space = space
        self.reserve = reserve
        self.statistics_momentum: float | None = 0.1
        self.last_rows: Tensor | None = None
        self.set_maps = nn.ModuleList(
            SetMap(space.num_candidates, space.combinations(d)) for d in range(space.num_decisions)
        )
        self._layout = ops.SelectLayout(
            codes=tuple(tuple(c.code for c in own.candidates) for own in space.decisions),
            norms=(*norms, _FIXED),
            edges=tuple(edges),
        )
        kinds = torch.tensor(norms, dtype=torch.int64, device="cpu")
        self._norm_decisions, self._norm_codes = kinds.unbind(-1)
        widest = max(space.num_candidates)
        # On the host, as architectures are, whatever the default device.
        self._codes = torch.zeros((space.num_decisions, widest), dtype=torch.int64, device="cpu")
        for d, decision in enumerate(space.decisions):
            for choice, candidate in enumerate(decision.candidates):
                self._codes[d, choice] = candidate.code

    def _maps(self) -> list[SetMap]:
        return [set_map for set_map in self.set_maps if isinstance(set_map, SetMap)]

    def _capacities(self) -> list[int]:
        """The rows to allocate for each decision."""
        decisions = range(self.space.num_decisions)
        return [self.space.combinations(d) if self.reserve else 1 for d in decisions]

    def banks(self) -> dict[str, Bank]:
        """Every bank by name."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Bank)}

    @property
    def num_weight_sets(self) -> int:
        """Weight sets in use, one per weighted candidate and row (paper section 3.3: 12 to 76)."""
        return sum(
            set_map.num_sets * sum(candidate.weighted for candidate in decision.candidates)
            for set_map, decision in zip(self._maps(), self.space.decisions, strict=True)
        )

    def split(self, decisions: Iterable[int] | None = None) -> None:
        """Gives each candidate a weight set per combination of its predecessors' choices.

        Rows and running statistics are copied from the set that the combination read so far, in
        place: parameters stay the same objects, their gradients are dropped, a loss built before
        raises in backward. Decisions that are split already, or have no predecessors, stay.
        `cw.optim.SGD` grows its momentum at its next step; a stock optimizer that holds state
        raises there.

        Args:
            decisions: which to split (paper's path 1 is decision 0); None for all.

        Raises:
            TypeError, ValueError: for what is not decisions of the space.
        """
        for decision in self._chosen(decisions):
            predecessors = self.space.decisions[decision].predecessors
            combinations = self._combinations(predecessors)
            set_map = self._maps()[decision]
            if set_map.num_sets == combinations.shape[0]:
                continue
            sources = set_map.rows(combinations)
            self._grow(decision, sources)
            set_map.assign(predecessors, torch.arange(combinations.shape[0], device="cpu"))

    def _chosen(self, decisions: Iterable[int] | None) -> list[int]:
        total = self.space.num_decisions
        if decisions is None:
            return list(range(total))
        if isinstance(decisions, str) or not isinstance(decisions, Iterable):
            wanted = "an iterable of decisions or None"
            raise TypeError(checks.message("split", "decisions", wanted, repr(decisions)))
        return sorted({checks.decision("split", "decisions", d, total) for d in decisions})

    def _combinations(self, predecessors: Sequence[int]) -> Tensor:
        """Architectures [combinations, D] that make each combination of the predecessors."""
        sizes = [self.space.num_candidates[d] for d in predecessors]
        archs = torch.zeros(
            (prod(sizes), self.space.num_decisions), dtype=torch.int64, device="cpu"
        )
        number = torch.arange(prod(sizes), device="cpu")
        for decision, size in zip(reversed(predecessors), reversed(sizes), strict=True):
            archs[:, decision] = number % size
            number = number // size
        return archs

    def _grow(self, decision: int, sources: Tensor) -> None:
        """Lays out the rows of all banks and statistics of one decision anew."""
        for module in self.modules():
            if isinstance(module, ConditionalConv) and module.convolution.decision == decision:
                for child in module.children():
                    if isinstance(child, Bank | RunningStatistics):
                        child.grow(sources)

    def split_like(self, other: "SuperNetwork") -> None:
        """Splits as `other` has been: an averaged copy follows the network that it averages.

        Each new row copies the row of this network that stood where `other`'s source row did.

        Raises:
            ValueError: if `other` is of another space, or its splits do not continue this one's:
                nobody knows where rows that `load_state_dict` brought came from.
        """
        if not isinstance(other, SuperNetwork) or other.space != self.space:
            wanted = f"a network of the space {self.space.name}"
            got = getattr(getattr(other, "space", None), "name", type(other).__name__)
            raise ValueError(f"split_like: other: wanted {wanted}, got {got}")
        banks, others = self.banks(), other.banks()
        if banks.keys() != others.keys():
            wanted = f"a network with this one's {len(banks)} banks"
            raise ValueError(f"split_like: other: wanted {wanted}, got {len(others)} others")
        steps = {}
        for name, bank in banks.items():
            new = _steps(bank, others[name])
            if new is None:
                wanted = "a network whose splits continue this one's"
                raise ValueError(f"split_like: other: wanted {wanted}, got other splits of {name}")
            steps[bank.decision] = new
        for decision, new_sources in steps.items():
            for sources in new_sources:
                self._grow(decision, sources)
            theirs = other._maps()[decision]
            self._maps()[decision].assign(theirs.reads.tolist(), theirs.set_of.cpu())

    def separate(self, archs: Tensor) -> Self:
        """A copy in which each of some architectures has weight sets of its own, and statistics.

        Every bank gets a row for each architecture, a copy of the one that it reads here, and so do
        the running statistics of all batch norms, the shared ones too. Running the copy in training
        on all of them, ``copy(images, archs)``, then gives each the running statistics that it
        would have alone, and touches nothing of this network. Other architectures read the rows of
        the first.

        Args:
            archs: int64 [A, D], no two the same.

        Raises:
            TypeError, ValueError: for what is not architectures of the space, or repeated ones.
        """
        index = self.space.index(archs)
        if archs.dim() != 2 or not isinstance(index, Tensor) or len(index.unique()) < len(archs):
            wanted = f"int64 [A, {archs.shape[-1]}], no two the same"
            raise ValueError(f"separate: archs: wanted {wanted}, got {list(archs.shape)}")
        rows = self.select(archs)[..., 1].T.contiguous()
        number = torch.zeros(len(self.space), dtype=torch.int64, device="cpu")
        number[index.cpu()] = torch.arange(len(archs), device="cpu")
        own = copy.deepcopy(self)
        for decision, set_map in enumerate(own._maps()):
            own._grow(decision, rows[decision])
            set_map.assign(range(self.space.num_decisions), number)
        for module in own.modules():
            if isinstance(module, FixedNorm):
                module.statistics.grow(torch.zeros(len(archs), dtype=torch.int64, device="cpu"))
        return own

    def select(self, arch: Tensor) -> Tensor:
        """What architectures run: int64 [D] or [A, D] to [D, 2] or [A, D, 2], code and row.

        Raises:
            TypeError, ValueError: for what is not an architecture of the space (`space.check`).
        """
        arch = self.space.check(arch.cpu() if isinstance(arch, Tensor) else arch)
        if arch.dim() > 2 or not arch.numel():
            wanted = f"int64 [{arch.shape[-1]}] or [A, {arch.shape[-1]}], A at least 1"
            raise ValueError(f"forward: arch: wanted {wanted}, got {list(arch.shape)}")
        codes = self._codes[torch.arange(self.space.num_decisions, device="cpu"), arch]
        rows = torch.stack([set_map.rows(arch) for set_map in self._maps()], dim=-1)
        return torch.stack([codes, rows], dim=-1)

    def maps_on_device(self) -> list[Tensor]:
        """The map of each decision as kernels read it; a split writes them in place."""
        return [set_map.on_device for set_map in self._maps()]

    def select_on_device(self, arch: Tensor) -> Selection:
        """The same where `arch` lies, without reading it on the host, in one launch.

        What a forward pass does with an architecture on a GPU. A choice out of range is raised by a
        later call or by `cw.synchronize()`, and runs as code 0, row 0.

        Raises:
            TypeError, ValueError: for what is not int64 [D] or [A, D], A at least 1.
        """
        decisions = self.space.num_decisions
        if not isinstance(arch, Tensor) or arch.dtype != torch.int64:
            got = arch.dtype if isinstance(arch, Tensor) else type(arch).__name__
            raise TypeError(f"forward: arch: wanted an int64 tensor, got {got}")
        if arch.dim() not in (1, 2) or arch.shape[-1] != decisions or not arch.numel():
            wanted = f"int64 [{decisions}] or [A, {decisions}], A at least 1"
            raise ValueError(f"forward: arch: wanted {wanted}, got {list(arch.shape)}")
        return self._look_up(arch)

    def _look_up(self, arch: Tensor) -> Selection:
        choices, norm_rows = ops.select(
            arch.reshape(-1, arch.shape[-1]), self.maps_on_device(), self._layout
        )
        return Selection(choices.reshape(*arch.shape, 2), norm_rows)

    def _selected(self, images: Tensor, arch: Tensor) -> Selection:
        """By value for architectures on the CPU, else on their device."""
        on_gpu = isinstance(images, Tensor) and images.is_cuda
        if isinstance(arch, Tensor) and not arch.is_cpu:
            if not on_gpu or arch.device != images.device:
                wanted = "a tensor on the CPU or on the device of the images"
                raise ValueError(f"forward: arch: wanted {wanted}, got one on {arch.device}")
            return self.select_on_device(arch)
        if (
            on_gpu
            and not torch.compiler.is_compiling()
            and torch.cuda.is_current_stream_capturing()
        ):
            wanted = "a tensor on the device while a CUDA graph is captured"
            raise RuntimeError(f"forward: arch: wanted {wanted}, got one on the CPU")
        choices = self.select(arch)
        return Selection(choices, self._norm_rows(choices.reshape(-1, *choices.shape[-2:])))

    def _norm_rows(self, choices: Tensor) -> Tensor:
        """Which row each kind of batch norm updates: [A, D, 2] to [R, A], -1 where none."""
        codes, rows = choices.unbind(-1)
        runs = (codes[:, self._norm_decisions] == self._norm_codes) & self._live(codes)[
            :, self._norm_decisions
        ]
        kinds = rows[:, self._norm_decisions].where(runs, -1).T
        return torch.cat([kinds, torch.zeros_like(kinds[:1])])

    def _live(self, codes: Tensor) -> Tensor:
        """Which decisions' batch norms run, [A, D]."""
        return torch.ones_like(codes, dtype=torch.bool)

    def _begin(self, images: Tensor, arch: Tensor | Selection) -> tuple[Selection, "Recorder"]:
        """The selection of a forward pass, and the recorder of its statistics."""
        selection = arch if isinstance(arch, Selection) else self._selected(images, arch)
        self._check_images(images, selection.choices)
        if self.training:
            self.last_rows = selection.by_architecture[..., 1].T
        return selection, Recorder(selection.norm_rows[-1], self.statistics_momentum)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor], arch: Tensor | Selection) -> None:
        """Updates the running statistics as forward passes in training do, without their logits.

        For recalibration: what comes after the last batch norm's statistics is not computed, nor,
        where it saves work, the last convolution: its output's statistics follow from its input's
        mean and covariance (`cwkernels.nn.moments`), up to rounding.

        Args:
            batches: of images; each as in a call, and in the end the architectures.

        Raises:
            RuntimeError: in evaluation mode, where batch norms measure nothing.
        """
        if not self.training:
            raise RuntimeError("measure: wanted a network in training mode, got evaluation mode")
        moments: dict[RunningStatistics, RunningMoments] = {}
        for images in batches:
            selection, recorder = self._begin(images, arch)
            recorder.moments = moments
            self._measure(images, selection, recorder)
            recorder.write()
        for own in moments.values():
            own.write()

    @torch.no_grad()
    def predict(self, images: Tensor, arch: Tensor | Selection) -> Tensor:
        """The logits of a call, up to rounding, without a graph.

        For scoring: what the network can do in one step when nothing looks at what lies between is
        done so, and hooks of its modules do not see it. The arguments are those of a call.
        """
        logits: Tensor = self(images, arch)
        return logits

    def _measure(self, images: Tensor, selection: Selection, recorder: "Recorder") -> None:
        """Runs as far as the statistics of the last batch norm."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Global average and the linear layer: [..., N, C, H, W] to [..., N, num_classes].

        An architecture at a time: how a matrix product rounds depends on its number of rows.
        """
        if features.dim() == 5 and not torch.compiler.is_compiling():
            return torch.stack([self.classify(own) for own in features])
        pooled = features.mean((-2, -1))
        # Autocast would do the same for bfloat16, and keep what it made for all steps of a region.
        weight, bias = (p.to(pooled.dtype) for p in (self.classifier.weight, self.classifier.bias))
        if features.dim() == 5:  # in a graph, where a loop would fix their number
            return torch.baddbmm(bias, pooled, weight.T.expand(pooled.shape[0], -1, -1))
        if pooled.dtype == torch.bfloat16:
            return F.linear(pooled, weight, bias)
        logits: Tensor = self.classifier(pooled)
        return logits

    def _check_images(self, images: Tensor, choices: Tensor) -> None:
        def wanted() -> str:  # only where it is needed: a graph would fix the number A in it
            several = f" or [{choices.shape[0]}, N, 3, H, W]" if choices.dim() == 3 else ""
            return "[N, 3, H, W]" + several

        if not isinstance(images, Tensor):
            got = type(images).__name__
            raise TypeError(f"forward: images: wanted a tensor {wanted()}, got {got}")
        if images.dtype != self.classifier.weight.dtype:
            own = f"{self.classifier.weight.dtype}, the network's own"
            raise TypeError(f"forward: images: wanted {own}, got {images.dtype}")
        *lead, n, channels, height, width = images.shape if images.dim() > 3 else (0,) * 4
        fits = not lead or (choices.dim() == 3 and lead == [choices.shape[0]])
        if not fits or channels != 3 or not n * height * width:
            raise ValueError(f"forward: images: wanted {wanted()}, got {list(images.shape)}")


def _steps(bank: Bank, other: Bank) -> list[Tensor] | None:
    """The sources of the splits by which `other` is ahead; None if no such splits made its map."""
    new = other.history[bank.splits :]
    steps = [sources for sources in new if sources is not None]
    rows = steps[-1].shape[0] if steps else bank.set_map.num_sets
    behind = other.splits < bank.splits or len(steps) < len(new)
    return None if behind or rows < other.set_map.num_sets else steps


class Recorder:
    """Collects what batch norms measured in one forward pass of A architectures.

    Args:
        shared_rows: [A] zeros, the rows of a batch norm that every architecture runs.
        momentum: weight of this pass in running statistics; None for the exact average.

    Attributes:
        moments: where batch norms write, the moments of the input of a convolution that does not
            run: the same object for all batches of a recalibration.
    """

    def __init__(self, shared_rows: Tensor, momentum: float | None) -> None:
        self.shared_rows = shared_rows
        self.momentum = momentum
        self.measurements: list[Measurement] = []
        self.moments: dict[RunningStatistics, RunningMoments] = {}

    def fixed(self, norm: FixedNorm, measured: Tensor, count: int) -> None:
        """A shared batch norm: every architecture updates its one row, in order.

        In a network that `SuperNetwork.separate` made each updates the row of its own.
        """
        rows = self._rows(norm)
        statistics = measured.expand(rows.shape[0], *measured.shape[-2:])
        self.measurements.append(Measurement(norm.statistics, statistics, rows, count))

    def convolved(self, norm: FixedNorm, input: Tensor, weight: Tensor) -> None:
        """The same by the input [..., N, C, H, W] of the convolution before the batch norm."""
        target = norm.statistics
        if target not in self.moments:
            self.moments[target] = RunningMoments(target, weight, self.momentum)
        self.moments[target].update(batches_of(input), self._rows(norm).tolist())

    def _rows(self, norm: FixedNorm) -> Tensor:
        rows = self.shared_rows
        if norm.statistics.running_mean.shape[0] > 1:
            rows = torch.arange(rows.shape[0], dtype=rows.dtype, device=rows.device)
        return rows

    def write(self) -> None:
        """Updates the running rows."""
        update_running(self.measurements, self.momentum)


def pixel_count(tensor: Tensor) -> int:
    """N * H * W, the values a channel of images [..., N, C, H, W]."""
    return tensor.shape[-4] * tensor.shape[-2] * tensor.shape[-1]


class ConvNormLayer(nn.Module):
    """A fixed convolution and its affine batch norm: a stem, or the end of Macro.

    Args:
        relu: rectify after the batch norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, relu: bool
    ) -> None:
        super().__init__()
        self.conv = FixedConv(in_channels, out_channels, kernel_size)
        self.norm = FixedNorm(out_channels)
        self.relu = relu

    def forward(self, input: Tensor, recorder: Recorder) -> Tensor:
        """[..., N, C, H, W] to [..., N, K, H, W]."""
        raw, measured = self.convolve(input, recorder)
        return ops.norm_add(
            raw,
            self.norm.used(measured),
            self.norm.weight,
            self.norm.bias,
            relu=self.relu,
            training=self.training,
        )

    def convolve(self, input: Tensor, recorder: Recorder) -> tuple[Tensor, Tensor]:
        """The convolution's raw output and its statistics [..., 2, K]."""
        raw, measured = ops.conv_norm(input, self.conv.weight)
        recorder.fixed(self.norm, measured, pixel_count(raw))
        return raw, measured
