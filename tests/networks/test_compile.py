"""torch.compile: one graph of a whole network for every architecture of a rank."""

from collections.abc import Iterator

import pytest
import torch
from network_cases import Network, build, dense, every_network, images_for, randomize, snapshot
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from cwkernels.testing import assert_within


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def two_alike(name: str, dense_grad: bool = False) -> tuple[Network, Network]:
    """Split networks in float64, where a graph's sums differ from eager ones by rounding only."""
    nets = tuple(build(name, dense_grad=dense_grad).double() for _ in range(2))
    for net in nets:
        net.split()
        randomize(net)
    return nets[0], nets[1]


def draws(net: Network) -> Iterator[Tensor]:
    """200 random architectures, one by one, alone in a batch and several in a batch."""
    generator = torch.Generator().manual_seed(0)
    yield from net.space.sample(80, generator=generator)
    yield from net.space.sample(40, generator=generator)[:, None]
    for size in (4, 5, 2, 6, 3) * 4:
        arch = net.space.sample(size, generator=generator)
        torch._dynamo.mark_dynamic(arch, 0)
        yield arch


def assert_alike(name: str, value: Tensor, wanted: Tensor) -> None:
    assert_within("float64 network", name, value, wanted)


def assert_same_gradients(net: Network, plain: Network) -> None:
    """What a graph reads no row of gets an empty compact gradient, where eager mode gives None."""
    for (name, parameter), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        own, wanted = parameter.grad, other.grad
        if own is not None and wanted is not None and wanted.is_sparse:
            assert own._indices().tolist() == wanted._indices().tolist(), name
        assert_alike(name, dense(own, parameter), dense(wanted, other))


@pytest.mark.slow
@every_network
@pytest.mark.parametrize("training", [True, False])
def test_one_graph_serves_all_architectures_of_a_rank(name: str, training: bool) -> None:
    net, plain = (net.train(training) for net in two_alike(name))
    counter = CompileCounterWithBackend("eager")  # it is Dynamo that decides to compile again
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    images = images_for(2, size=16).double()
    graphs = []
    with torch.set_grad_enabled(training):
        for number, arch in enumerate(draws(net)):
            logits, wanted = compiled(images, arch), plain(images, arch)
            assert_alike(str(arch.tolist()), logits.detach(), wanted.detach())
            graphs.append(counter.frame_count)
            if training and number % 20 == 0:
                net.zero_grad()
                plain.zero_grad()
                logits.square().mean().backward()
                wanted.square().mean().backward()
                assert_same_gradients(net, plain)
    assert len(graphs) == 140
    assert (graphs[0], graphs[79]) == (1, 1), "one architecture: one graph"
    assert (graphs[80], graphs[119]) == (2, 2), "a batch of one: one graph"
    assert (graphs[120], graphs[-1]) == (3, 3), "a batch of several: one graph"
    for key, value in snapshot(net).items():
        assert_alike(key, value, plain.state_dict()[key])


@pytest.mark.slow
@every_network
def test_inductor_compiles_a_training_step(name: str) -> None:
    net, plain = two_alike(name)
    compiled = torch.compile(net, fullgraph=True)
    images = images_for(2, size=16).double()
    archs = net.space.sample(5, generator=torch.Generator().manual_seed(1))
    for number, arch in enumerate(archs):
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            logits = compiled(images, arch)
        wanted = plain(images, arch)
        assert_alike("logits", logits.detach(), wanted.detach())
        net.zero_grad()
        plain.zero_grad()
        logits.square().mean().backward()
        wanted.square().mean().backward()
        assert_same_gradients(net, plain)


def test_one_traced_step_serves_any_number_of_architectures() -> None:
    net, plain = two_alike("nb201")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    images = images_for(2, size=16).double()
    for number in (4, 2, 5):
        arch = net.space.sample(number, generator=torch.Generator().manual_seed(number))
        torch._dynamo.mark_dynamic(arch, 0)
        net.zero_grad()
        plain.zero_grad()
        for module in (compiled, plain):
            module(images, arch).square().mean().backward()
        assert_same_gradients(net, plain)
    assert counter.frame_count == 1


def test_a_split_is_seen() -> None:
    net, plain = build("nb201"), build("nb201")
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    images, arch = images_for(2), torch.tensor([3, 2, 3, 1, 3, 4])
    for _ in range(2):
        assert torch.equal(compiled(images, arch), plain(images, arch))
        for one in (net, plain):
            one.split()
            randomize(one)
    assert torch.equal(compiled(images, arch), plain(images, arch))


@pytest.mark.parametrize("choice", [-1, 5])
def test_a_graph_refuses_a_choice_that_does_not_exist(choice: int) -> None:
    net = build("nb201")
    net.split()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    images, arch = images_for(2), torch.tensor([3, 2, 3, 1, 3, 4])
    compiled(images, arch)
    before = snapshot(net)
    arch[2] = choice
    with pytest.raises(RuntimeError, match=r"space\.check: arch must be in range"):
        compiled(images, arch)
    for key, value in snapshot(net).items():
        assert torch.equal(value, before[key]), key


def test_a_graph_keeps_ordinary_gradients_ordinary() -> None:
    net, plain = two_alike("nb201", dense_grad=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    images, arch = images_for(2).double(), torch.tensor([3, 2, 3, 1, 3, 4])
    for module in (compiled, plain):
        module(images, arch).square().mean().backward()
    for (name, parameter), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is None or not parameter.grad.is_sparse
        assert_alike(name, dense(parameter.grad, parameter), dense(other.grad, other))
