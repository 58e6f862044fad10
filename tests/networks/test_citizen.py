"""Networks as any other module: copies, pickles, the meta device, hooks of training loops."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from network_cases import (
    Network,
    assert_same_state,
    build,
    built_split,
    busy_arch,
    every_network,
    gradients,
    images_for,
    logits_in_evaluation,
    snapshot,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import cwkernels as cw
from cwkernels.testing import assert_within, refused


def pickled(net: Network) -> Network:
    copied: Network = pickle.loads(pickle.dumps(net))
    return copied


def saved(net: Network) -> Network:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded: Network = torch.load(file, weights_only=False)
    return loaded


def a_step_on(net: Network, optimizer: torch.optim.Optimizer, images: Tensor, arch: Tensor) -> None:
    optimizer.zero_grad()
    net(images, arch).square().mean().backward()
    optimizer.step()


def a_step(net: Network, optimizer: torch.optim.Optimizer, arch: Tensor) -> None:
    a_step_on(net, optimizer, images_for(), arch)


@every_network
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_a_copy_goes_on_by_itself(name: str, duplicate: Callable[[Network], Network]) -> None:
    net, arch = build(name), busy_arch(name)
    net.split(decisions=[2])
    twin = duplicate(net)
    assert_same_state(snapshot(net), snapshot(twin))
    before = snapshot(net)
    twin.split()
    assert twin.num_weight_sets > net.num_weight_sets
    a_step(twin, cw.optim.SGD(twin, lr=0.1), arch)
    assert_same_state(snapshot(net), before)
    net.split()
    a_step(net, cw.optim.SGD(net, lr=0.1), arch)
    assert_same_state(snapshot(net), snapshot(twin))


@every_network
@pytest.mark.parametrize("assign", [False, True])
def test_a_network_made_on_the_meta_device_loads_a_state(name: str, assign: bool) -> None:
    net = built_split(name)
    with torch.device("meta"):
        made = build(name)
        made.split(decisions=[2])
    assert all(tensor.is_meta for tensor in made.state_dict().values())
    if not assign:
        made.to_empty(device="cpu")
    made.load_state_dict(net.state_dict(), assign=assign)
    assert_same_state(snapshot(net), snapshot(made))
    images, arch = images_for(), busy_arch(name)
    assert torch.equal(
        logits_in_evaluation(made, images, arch), logits_in_evaluation(net, images, arch)
    )


@every_network
def test_the_meta_device_gives_shapes(name: str) -> None:
    net = built_split(name).to("meta")
    archs = net.space.sample(3)
    with torch.no_grad():
        assert net(images_for().to("meta"), busy_arch(name)).shape == (4, 10)
        assert net.eval()(images_for().to("meta"), archs).shape == (3, 4, 10)


@pytest.fixture
def default_device() -> Iterator[Callable[[str | None], None]]:
    yield torch.set_default_device
    torch.set_default_device(None)


@every_network
def test_index_maps_stay_on_the_host_whatever_the_default_device(
    name: str, default_device: Callable[[str | None], None]
) -> None:
    """The meta device stands for "cuda", as a machine without one has it too."""
    results = []
    for device in (None, "meta"):
        net, images = built_split(name), images_for()
        optimizer = cw.optim.SGD(net, lr=0.1)
        archs = net.space.sample(2, generator=torch.Generator().manual_seed(0))
        default_device(device)
        a_step_on(net, optimizer, images, archs)
        made = build(name)
        made.split()
        assert next(made.parameters()).is_meta == (device == "meta")
        assert made.select(archs).device.type == "cpu"
        default_device(None)
        results.append(snapshot(net))
    assert_same_state(*results)


@every_network
def test_deterministic_algorithms_are_what_runs_anyway(name: str) -> None:
    states = []
    for deterministic in (True, False):
        net = built_split(name)
        optimizer = cw.optim.SGD(net, lr=0.1, momentum=0.9)
        torch.use_deterministic_algorithms(deterministic)
        try:
            for arch in net.space.sample(3, generator=torch.Generator().manual_seed(0)):
                a_step(net, optimizer, arch)
        finally:
            torch.use_deterministic_algorithms(False)
        states.append(snapshot(net))
    assert_same_state(*states)


@every_network
@pytest.mark.parametrize("foreach", [None, False, True])
def test_clipping_sees_compact_gradients(name: str, foreach: bool | None) -> None:
    """Also where several batches were accumulated and rows repeat."""
    images, archs = images_for().double(), build(name).space.sample(4)
    net, ordinary = build(name).double(), build(name, dense_grad=True).double()
    for one in (net, ordinary):
        one.split()
        for arch in (busy_arch(name), archs, busy_arch(name)):
            one(images, arch).square().mean().backward()
    norms = [
        torch.nn.utils.clip_grad_norm_(one.parameters(), 0.01, foreach=foreach)
        for one in (net, ordinary)
    ]
    assert float(norms[0]) > 0.01
    assert_within("float64 network", "norm", *norms)
    clipped = gradients(net)
    for key, gradient in gradients(ordinary).items():
        assert_within("float64 network", key, clipped[key], gradient)


@every_network
@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_any_number_of_threads_gives_the_same_network(name: str, count: int) -> None:
    results = []
    before = torch.get_num_threads()
    for threads in (1, count):
        net = built_split(name).double()
        archs = net.space.sample(2, generator=torch.Generator().manual_seed(4))
        torch.set_num_threads(threads)
        try:
            logits = net(images_for(2).double(), archs)
            logits.square().mean().backward()
        finally:
            torch.set_num_threads(before)
        results.append({"logits": logits.detach()} | gradients(net) | snapshot(net))
    for key, wanted in results[0].items():
        assert_within("float64 network", key, results[1][key], wanted)


@every_network
def test_double_backward_is_a_named_error(name: str) -> None:
    net, images = build(name), images_for().requires_grad_()
    logits = net(images, busy_arch(name))
    with refused(RuntimeError, "norm_add: backward: wanted create_graph=False, got True"):
        torch.autograd.grad(logits.square().mean(), images, create_graph=True)


class Scored(Dataset[Tensor]):
    """Logits of an architecture, computed where the loader's worker is."""

    def __init__(self, net: Network, archs: Tensor) -> None:
        self.net = net
        self.archs = archs

    def __len__(self) -> int:
        return len(self.archs)

    def __getitem__(self, index: int) -> Tensor:
        return logits_in_evaluation(self.net, images_for(2), self.archs[index])


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this machine cannot fork"
)
@every_network
def test_it_runs_in_forked_workers_of_a_loader(name: str) -> None:
    net = built_split(name)
    archs = net.space.sample(6, generator=torch.Generator().manual_seed(5))
    net(images_for(), archs).square().mean().backward()  # the parent's threads have started
    loader = DataLoader(
        Scored(net, archs), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    results = list(loader)
    assert len(results) == 6
    for arch, logits in zip(archs, results, strict=True):
        own = logits_in_evaluation(net, images_for(2), arch)
        assert_within("float32 network", str(arch.tolist()), logits, own)
