"""GraphedStep beside the eager step by value: on the emulator as it is, on CUDA captured."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import cwkernels as cw
from cwkernels.data.augment import Augmentation, draw_augmentation, make_batch
from cwkernels.networks import SuperNetwork
from cwkernels.ops.device_faults import fault_of
from cwkernels.optim import MomentumBuffers
from cwkernels.testing import assert_bitwise, refused
from cwkernels.testing.emulated import emulated, emulated_launches, why_not_emulated
from cwkernels.training import GraphedStep
from cwkernels.training.graphed import WARM_UP
from cwkernels.training.step import train_batch

OPERATION = "select"
on_gpu = pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
CPU = torch.device("cpu")
N = 2


def network(device: torch.device, cells_per_stage: int = 1) -> SuperNetwork:
    torch.manual_seed(0)
    space = cw.spaces.nb201("full")
    net = cw.networks.nb201(space, cells_per_stage=cells_per_stage, reserve=True)
    return net.to(device)


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return images.to(device), torch.randint(10, (6,), generator=generator).to(device)


class Pair:
    """The same network twice: one trained by the eager step, by value, one by a GraphedStep."""

    def __init__(
        self, device: torch.device, architectures: int | None = None, **recipe: Any
    ) -> None:
        self.images, self.labels = data(device)
        self.nets = [network(device) for _ in range(2)]
        self.optimizers = [cw.optim.SGD(net, lr=0.1, **recipe) for net in self.nets]
        self.graphed = GraphedStep(
            self.nets[1],
            self.optimizers[1],
            self.images,
            self.labels,
            batch_size=N,
            architectures=architectures,
        )

    def split(self) -> None:
        for net in self.nets:
            net.split()

    def train(
        self, arch: Tensor, indices: Tensor, augmentation: Augmentation | None, lr: float
    ) -> None:
        """One step of both, whose losses must agree."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        device = self.images.device
        chosen = indices.to(device)
        own = augmentation and augmentation.to(device)
        batch = make_batch(self.images, chosen, own)
        archs = arch if arch.dim() == 2 else arch[None]
        wanted = train_batch(self.nets[0], self.optimizers[0], batch, self.labels[chosen], archs)
        got = self.graphed.step(arch, indices, augmentation)
        assert_bitwise("loss", got.loss.cpu(), wanted.loss.cpu())
        assert int(got.correct) == int(wanted.correct)

    def assert_same(self) -> None:
        states = [net.state_dict() for net in self.nets]
        for name, value in states[0].items():
            assert torch.equal(states[1][name], value), name
        for ours, theirs in zip(*(net.parameters() for net in self.nets), strict=True):
            wanted = self.optimizers[0].state[ours].get("momentum_buffer")
            got = self.optimizers[1].state[theirs].get("momentum_buffer")
            if wanted is None:  # no architecture has read the bank
                assert got is None or not got.any()
            else:
                assert got is not None
                assert torch.equal(got, wanted)


@on_gpu
@pytest.mark.parametrize("architectures", [None, 2])
def test_trains_as_the_eager_step_does_across_a_split(
    architectures: int | None, device: torch.device
) -> None:
    pair = Pair(device, architectures)
    steps = 3 if device.type == "cpu" else 2 * WARM_UP + 4
    generator = torch.Generator().manual_seed(2)
    archs = pair.nets[0].space.sample(steps * 2, generator=generator).reshape(steps, 2, -1)
    for step, two in enumerate(archs):
        if step == steps // 2:
            pair.split()
        pair.train(
            two if architectures else two[0],
            torch.randint(len(pair.images), (N,), generator=generator),
            draw_augmentation(N, generator) if step else None,
            lr=0.1 / (1 + step),
        )
        pair.assert_same()
    assert pair.graphed.captures == (device.type == "cuda")


@on_gpu
def test_no_architecture_is_like_another(device: torch.device) -> None:
    """Nothing runs, then everything: what the one wrote must not reach the other."""
    pair = Pair(device)
    for choice in (0, 3):
        arch = torch.full((6,), choice)
        pair.train(arch, torch.tensor([0, 1]), None, lr=0.1)
    pair.assert_same()


@on_gpu
def test_autocast_is_part_of_a_step(device: torch.device) -> None:
    """One region has several steps, each of which moves the weights that the next reads."""
    arch, weights = torch.full((6,), 3), []
    for bf16 in (True, False):
        pair = Pair(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for step in range(2 if device.type == "cpu" else WARM_UP + 2):
                pair.train(arch, torch.tensor([step % 2, 5]), None, lr=0.1)
        pair.assert_same()
        weights.append(pair.nets[1].classifier.weight)
    assert not torch.equal(*weights)
    captures = pair.graphed.captures
    with torch.autocast(device.type, torch.bfloat16):
        for _ in range(1 if device.type == "cpu" else WARM_UP + 1):
            pair.train(arch, torch.tensor([0, 1]), None, lr=0.1)
    pair.assert_same()
    assert pair.graphed.captures == 2 * captures


def test_on_the_cpus_kernels_it_is_the_eager_step() -> None:
    pair = Pair(CPU)
    generator = torch.Generator().manual_seed(3)
    for arch in pair.nets[0].space.sample(2, generator=generator):
        pair.train(arch, torch.tensor([4, 4]), draw_augmentation(N, generator), lr=0.1)
        pair.split()
    pair.assert_same()


@pytest.mark.parametrize("reserve", [True, False])
def test_a_graph_notices_what_it_cannot_follow(reserve: bool) -> None:
    """A split that moves tensors, or a state that was loaded; with reserve a split moves none."""
    images, labels = data(CPU)
    net = cw.networks.nb201(cw.spaces.nb201("full"), cells_per_stage=1, reserve=reserve)
    optimizer = cw.optim.SGD(net)
    step = GraphedStep(net, optimizer, images, labels, batch_size=N)
    before = step._bakes()
    net.split()
    assert (step._bakes() == before) is reserve
    step.step(torch.full((6,), 3), torch.tensor([0, 1]))
    before = step._bakes()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert step._bakes() != before


class Stock(TorchDispatchMode):
    """Counts the operations of torch, and refuses those that read a value on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name
        read = name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::_to_copy")
        # The flag of faults lies on the host.
        assert not read or args[0].data_ptr() == fault_of(CPU).data_ptr(), name
        if name.startswith("aten::"):
            self.counts[name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


# What torch itself launches in a step: labels, pooling, the linear layer and the loss, the rows of
# all batch norms side by side, and how many predictions were right.
STOCK = {
    "index_select": 1,
    "mean": 1,
    "addmm": 1,
    "_log_softmax": 1,
    "nll_loss_forward": 1,
    "ones_like": 1,
    "nll_loss_backward": 1,
    "_log_softmax_backward_data": 1,
    "mm": 2,
    "sum": 2,
    "argmax": 1,
    "eq": 1,
    "div": 1,
    "stack": 1,
}


@pytest.mark.skipif(why_not_emulated(OPERATION) is not None, reason="no emulator")
def test_launches_of_a_nas_bench_201_step() -> None:
    """Whatever the architecture is; and nothing of it is read on the host."""
    images, labels = data(CPU)
    net = network(CPU, cells_per_stage=2)
    step = GraphedStep(net, cw.optim.SGD(net), images, labels, batch_size=N)
    with emulated():
        step.step(torch.zeros(6, dtype=torch.int64), torch.tensor([0, 1]))
        before = emulated_launches()
        step._inputs.arch.copy_(torch.tensor([3, 2, 4, 1, 3, 3]))
        with Stock() as stock:
            step._run()
        launches = emulated_launches() - before
    # batch, select with its plan, 6 cells (4 + 4), the stem (1 + 1), 2 reductions (1 + 2 and
    # 1 + 3), 4 batch norms (4 + 8), update_statistics, sgd.
    assert launches == 2 + 48 + 2 + 14 + 12 + 2
    assert {name: stock.counts[name] for name in STOCK} == STOCK
    assert not stock.counts.keys() & {"zeros", "zeros_like", "fill_", "copy_", "cat", "mul"}


@on_gpu
def test_a_choice_out_of_range_is_raised_by_a_later_step(device: torch.device) -> None:
    images, labels = data(device)
    net = network(device)
    step = GraphedStep(net, cw.optim.SGD(net), images, labels, batch_size=N)
    arch = torch.tensor([0, 0, 0, 0, 7, 0])
    step.step(arch, torch.tensor([0, 1]))
    with refused(ValueError, "select: arch[0, 4]: wanted a choice of the decision, got 7"):
        cw.synchronize(device)


@on_gpu
@pytest.mark.parametrize("buffers", ["per_set", "per_candidate"])
def test_candidates_once_trained_coast(buffers: MomentumBuffers, device: torch.device) -> None:
    """ "zero_grad" beside the eager step, which knows all rows on the host, across a split."""
    pair = Pair(device, 2, unselected="zero_grad", momentum_buffers=buffers)
    none, one, three, zero = [1] * 6, [2, 1, 1, 1, 1, 2], [1, 1, 3, 3, 1, 1], [0] * 6
    steps = ([none, none], [one, zero], [three, none], [none, one])
    for step, archs in enumerate(steps * (1 if device.type == "cpu" else WARM_UP)):
        if step == 2:
            pair.split()
        pair.train(torch.tensor(archs), torch.tensor([step, 0]), None, lr=0.1)
        pair.assert_same()
    used = {
        name
        for name, bank in pair.nets[1].banks().items()
        if pair.optimizers[1].has_trained(bank.weight)
    }
    edges = {"edge_0_1.nor_conv_1x1", "edge_2_3.nor_conv_1x1"}
    edges |= {"edge_1_2.nor_conv_3x3", "edge_0_3.nor_conv_3x3"}
    assert {".".join(name.split(".")[2:4]) for name in used} == edges


def test_bad_input_is_refused() -> None:
    images, labels = data(CPU)
    net = network(CPU)
    optimizer = cw.optim.SGD(net)
    for name, change in (
        ("images: wanted uint8", {"images": images.float()}),
        ("labels: wanted int64 [6]", {"labels": labels[:5]}),
        ("batch_size: wanted at least 1, got 0", {"batch_size": 0}),
        ("architectures: wanted None or at least 1, got 0", {"architectures": 0}),
    ):
        arguments = {"images": images, "labels": labels, "batch_size": N} | change
        with refused(ValueError, f"GraphedStep: {name}"):
            GraphedStep(net, optimizer, **arguments)  # type: ignore[arg-type]
    step = GraphedStep(net, optimizer, images, labels, batch_size=N)
    arch, indices = torch.zeros(6, dtype=torch.int64), torch.tensor([0, 1])
    with refused(ValueError, "GraphedStep.step: arch: wanted torch.int64 [6], got int64 [1, 6]"):
        step.step(arch[None], indices)
    with refused(ValueError, "GraphedStep.step: indices: wanted torch.int64 [2], got int64 [3]"):
        step.step(arch, torch.tensor([0, 1, 2]))
    with refused(ValueError, "GraphedStep.step: augmentation.dy: wanted torch.int64 [2]"):
        step.step(arch, indices, draw_augmentation(3, torch.Generator()))
