"""The images that stand in for CIFAR-10."""

import pytest
import torch

from cwkernels import data


def test_generated_default_is_cifar10s_size() -> None:
    loaded = data.generate_cifar10()
    assert loaded.train_images.shape == (50_000, 3, 32, 32)
    assert loaded.test_images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(loaded.train_labels).tolist() == [5_000] * 10
    assert torch.bincount(loaded.test_labels).tolist() == [1_000] * 10


def test_generated_follows_its_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = data.generate_cifar10(50, 20, seed=3)
    torch.rand(7)
    same = data.generate_cifar10(90, 20, seed=3)
    torch.random.set_rng_state(state)
    other = data.generate_cifar10(50, 20, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.test_images, same.test_images)
    assert torch.equal(first.test_labels, same.test_labels)
    assert not torch.equal(first.test_images, other.test_images)
    even = data.generate_cifar10(20, 20, seed=3)
    assert not torch.equal(even.train_images, even.test_images)


def test_generated_classes_can_be_learned() -> None:
    """By the mean image of each class, which must not tell shuffled labels apart."""
    made = data.generate_cifar10(2_000, 500)
    images, tests = made.train_images.flatten(1).float(), made.test_images.flatten(1).float()
    shuffled = made.train_labels.roll(1)

    def accuracy(labels: torch.Tensor) -> float:
        means = torch.stack([images[labels == label].mean(0) for label in range(10)])
        return (torch.cdist(tests, means).argmin(1) == made.test_labels).float().mean().item()

    assert accuracy(made.train_labels) > 0.9
    assert accuracy(shuffled) < 0.3


@pytest.mark.parametrize("counts", [(0, 5), (5, 0)])
def test_bad_counts(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"generate_cifar10: t\w+: wanted at least 1 image, got 0"):
        data.generate_cifar10(*counts)


def test_bad_seed() -> None:
    with pytest.raises(ValueError, match="generate_cifar10: seed: wanted at least 0, got -1"):
        data.generate_cifar10(5, 5, seed=-1)


def test_to_moves_every_tensor() -> None:
    moved = data.generate_cifar10(4, 3, source="here").to("meta")
    parts = (moved.train_images, moved.train_labels, moved.test_images, moved.test_labels)
    assert {part.device.type for part in parts} == {"meta"}
    assert moved.source == "here"
