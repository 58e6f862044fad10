"""Does the installed cwkernels compute? `python tools/smoke.py`, from any folder.

Convolutions and both networks, forward and backward, against their plain-torch references.
"""

import torch
from torch import Tensor

import cwkernels as cw
from cwkernels.ops.backend import Backend

TOLERANCE = 1e-4


def main() -> None:
    """Raises AssertionError if anything is wrong, and says what was right."""
    torch.manual_seed(0)
    checked = {"gather_conv 3×3": convolution(1), "gather_conv 5×5, depthwise": convolution(24)}
    space = cw.spaces.nb201("full")
    checked["nb201"] = step(cw.networks.nb201(space), space.sample(1)[0])
    checked["macro"] = step(cw.networks.macro(), cw.spaces.macro().sample(1)[0])
    for name, error in checked.items():
        assert error <= TOLERANCE, f"{name}: wanted a relative error up to {TOLERANCE}, got {error}"
    errors = ", ".join(f"{name} {error:.0e}" for name, error in checked.items())
    print(f"smoke test: right on torch {torch.__version__}, relative errors: {errors}")


def convolution(groups: int) -> float:
    """The largest relative error of gather_conv's output and gradients."""
    images = torch.randn(4, 24, 9, 9)
    size = 3 if groups == 1 else 5
    bank = torch.randn(3, 24, 24 // groups, size, size)

    def run(backend: Backend) -> list[Tensor]:
        inputs = images.clone().requires_grad_(), bank.clone().requires_grad_()
        with cw.backend(backend):
            output = cw.ops.gather_conv(*inputs, torch.tensor(2), stride=2, groups=groups)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]

    return worst(run("kernels"), run("reference"))


def step(network: cw.networks.SuperNetwork, architecture: Tensor) -> float:
    """The relative error of the logits. The network takes steps before and after its split."""
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    with cw.backend("reference"):
        wanted = network(images, architecture).detach()
    error = worst([network(images, architecture).detach()], [wanted])
    optimizer = cw.optim.SGD(network, lr=0.01, momentum=0.9, weight_decay=3e-4)
    for when in ("before", "after"):
        loss = torch.nn.functional.cross_entropy(network(images, architecture), labels)
        loss.backward()
        read = [parameter for parameter in network.parameters() if parameter.grad is not None]
        old = [parameter.detach().clone() for parameter in read]
        optimizer.step()
        optimizer.zero_grad()
        moved = [not torch.equal(a, b.detach()) for a, b in zip(old, read, strict=True)]
        assert torch.isfinite(loss), f"the loss {when} the split is {loss}"
        assert moved.count(True) > len(moved) // 2, f"most parameters stayed {when} the split"
        if when == "before":
            network.split()
    return error


def worst(results: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error of the pairs, relative to the largest number that was wanted."""
    pairs = [(a.to_dense(), b.to_dense()) for a, b in zip(results, wanted, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


if __name__ == "__main__":
    main()
