"""Networks inside `torch.autocast` to bfloat16, beside stock torch's there."""

import copy
from collections.abc import Callable

import torch
from network_cases import (
    Network,
    build,
    busy_arch,
    every_network,
    images_for,
    keys_by_value,
    randomize,
)
from torch import Tensor, nn
from torch.nn import functional as F

import cwkernels as cw
from cwkernels.testing import assert_bitwise, assert_close_to_reference, refused

OPERATION = "conv_norm"
LABELS = torch.arange(8) % 10


def network(name: str = "nb201") -> Network:
    """With the real channels of NAS-Bench-201, whose cells then run by tiles, or a small Macro."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nb201 = cw.networks.nb201(cw.spaces.nb201("full"), cells_per_stage=1)
    net = nb201 if name == "nb201" else build(name)
    randomize(net)
    return net


def step(module: nn.Module, forward: Callable[[], Tensor]) -> Tensor:
    """Logits of a forward pass, whose loss has gone back."""
    module.zero_grad()
    logits = forward()
    F.cross_entropy(logits, LABELS.to(logits.device)).backward()
    return logits.detach().cpu()


def gradients_of(alone: nn.Module) -> Tensor:
    """Those of all parameters behind each other."""
    return torch.cat([torch.as_tensor(p.grad).flatten() for p in alone.parameters()])


def own_gradients(net: Network, alone: nn.Module) -> Tensor:
    """The super-network's of the same parameters, which are found by their values."""
    keys, own = keys_by_value(net.cpu()), []
    for parameter in alone.parameters():
        key, row = keys[parameter.detach().numpy().tobytes()]
        gradient = torch.as_tensor(net.get_parameter(key).grad)
        own.append((gradient if row is None else gradient.to_dense()[row]).flatten())
    return torch.cat(own)


@every_network
def test_a_step_is_as_close_as_stock_autocast(name: str, gpu: torch.device) -> None:
    net, images = network(name), images_for(8, size=16)
    arch = busy_arch(name)
    alone = net.standalone(arch)
    exact = copy.deepcopy(alone).double()
    reference = step(exact, lambda: exact(images.double()))
    with torch.autocast("cpu", torch.bfloat16):
        stock = step(alone, lambda: alone(images))
    net.to(gpu)
    with torch.autocast(gpu.type, torch.bfloat16):
        logits = step(net, lambda: net(images.to(gpu), arch))
    assert_close_to_reference("logits", logits, reference, stock, terms=1)
    assert_close_to_reference(
        "gradients", own_gradients(net, alone), gradients_of(exact), gradients_of(alone), terms=1
    )


def test_each_step_of_a_region_reads_the_weights_as_they_are(gpu: torch.device) -> None:
    net, images, arch = network().to(gpu), images_for(2).to(gpu), busy_arch("nb201")
    net.eval()
    with torch.autocast(gpu.type, torch.bfloat16):
        first = net(images, arch)
        with torch.no_grad():
            net.classifier.weight.neg_()
            net.classifier.bias.neg_()
        assert_bitwise("logits of the negative weights", net(images, arch), -first)


def test_float16_is_refused(gpu: torch.device) -> None:
    net, images = network().to(gpu), images_for(2).to(gpu)
    line = "conv_norm: autocast: wanted torch.bfloat16, got torch.float16"
    with refused(ValueError, line), torch.autocast(gpu.type, torch.float16):
        net(images, busy_arch("nb201"))
