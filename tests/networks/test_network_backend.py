"""The whole networks on the plain-torch references: the same numbers in float64."""

import pytest
import torch
from network_cases import (
    Network,
    archs_of,
    built_split,
    every_network,
    gradients,
    images_for,
    snapshot,
)
from torch import Tensor

import cwkernels as cw
from cwkernels.ops.backend import Backend
from cwkernels.testing import assert_within

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS: tuple[Backend, ...] = ("kernels", "reference")

VARIANTS: list[tuple[str, dict[str, bool]]] = [
    ("nb201", {}),
    ("nb201", {"skip_projection": True, "count_include_pad": True, "dense_grad": True}),
    ("macro", {}),
    ("macro", {"recompute": True, "dense_grad": True}),
]


def run(net: Network, images: Tensor, arch: Tensor, backend: Backend) -> dict[str, Tensor]:
    """Logits, the gradient of the images and of every parameter, and the state afterwards."""
    state = snapshot(net)
    net.zero_grad()
    images = images.clone().requires_grad_()
    with cw.backend(backend):
        logits = net(images, arch)
    logits.square().mean((-2, -1)).sum().backward()
    assert images.grad is not None
    by_parameter = {f"gradient of {key}": gradient for key, gradient in gradients(net).items()}
    after = snapshot(net)
    net.load_state_dict(state)
    return {"logits": logits.detach(), "images": images.grad} | by_parameter | after


def assert_agree(net: Network, images: Tensor, arch: Tensor) -> None:
    kernels, reference = (run(net, images, arch, backend) for backend in BACKENDS)
    assert list(kernels) == list(reference)
    for key, tensor in kernels.items():
        assert_within("float64 network", key, tensor, reference[key])


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_one_architecture(name: str, options: dict[str, bool], training: bool) -> None:
    net = built_split(name, **options).double().train(training)
    for arch in archs_of(name)[:3]:
        assert_agree(net, images_for().double(), arch)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_several_architectures(
    name: str, options: dict[str, bool], training: bool, shared: bool
) -> None:
    net = built_split(name, **options).double().train(training)
    archs = torch.stack([*archs_of(name), archs_of(name)[0]])
    images = images_for(3) if shared else images_for(len(archs), 3)
    assert_agree(net, images.double(), archs)


@every_network
def test_compact_gradients_hold_the_same_rows(name: str) -> None:
    net = built_split(name)
    archs = torch.stack([*archs_of(name), archs_of(name)[0]])
    rows = []
    for backend in BACKENDS:
        net.zero_grad()
        with cw.backend(backend):
            net(images_for(), archs).sum().backward()
        rows.append(
            {
                key: sorted(set(bank.weight.grad._indices()[0].tolist()))
                for key, bank in net.banks().items()
                if bank.weight.grad is not None
            }
        )
    assert rows[0] == rows[1]
    assert rows[0]
