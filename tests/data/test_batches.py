"""Division, order and reproducibility of the batches."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cwkernels import data
from cwkernels.data import Batches, Cifar10
from cwkernels.testing import assert_within

COUNT, VALIDATION, BATCH = 230, 30, 64  # 200 training images: 3 batches, 8 images dropped

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def numbered() -> Cifar10:
    """Image n is a plain colour that spells n, so a batch tells which images it holds."""
    number = torch.arange(COUNT, dtype=torch.uint8)
    images = number[:, None, None, None].expand(COUNT, 3, 32, 32).contiguous()
    labels = number.long() % 10
    return Cifar10(images, labels, images[:5], labels[:5], "numbered images")


def numbers(images: Tensor) -> Tensor:
    """Which images of ``numbered`` these are; the centre is never shifted away."""
    return (images[:, 0, 16, 16].double() * 0.2470 + 0.4914).mul(255).round().long()


def make(numbered: Cifar10, seed: int = 0) -> Batches:
    return Batches(numbered, seed=seed, batch_size=BATCH, validation=VALIDATION)


def assert_same(first: Iterator[Batch], second: Iterator[Batch]) -> None:
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_division_is_disjoint_and_complete() -> None:
    training, validation = data.training_validation_indices(50_000, 5_000, seed=0)
    assert (training.shape, validation.shape) == ((45_000,), (5_000,))
    assert training.dtype == validation.dtype == torch.int64
    assert torch.equal(torch.cat((training, validation)).sort().values, torch.arange(50_000))
    assert not torch.equal(training.sort().values, training)


def test_validation_images_are_the_last_of_one_permutation() -> None:
    training, validation = data.training_validation_indices(1_000, 100, seed=4)
    longer_training, longer_validation = data.training_validation_indices(1_000, 300, seed=4)
    assert torch.equal(longer_validation, torch.cat((training[-200:], validation)))
    assert torch.equal(longer_training, training[:-200])


def test_division_follows_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = data.training_validation_indices(1_000, 100, seed=7)[1]
    torch.manual_seed(1)
    assert torch.equal(first, data.training_validation_indices(1_000, 100, seed=7)[1])
    torch.random.set_rng_state(state)
    seeds = [data.training_validation_indices(1_000, 100, seed=s)[1] for s in range(10)]
    assert len({tuple(s.tolist()) for s in seeds}) == 10


def test_epoch_takes_each_training_image_once_and_drops_the_rest(numbered: Cifar10) -> None:
    batches = make(numbered)
    assert batches.steps_per_epoch == 3
    seen = []
    for images, labels in batches.epoch(0):
        assert images.shape == (BATCH, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
        assert torch.equal(labels, numbers(images) % 10)
        seen.append(numbers(images))
    drawn = torch.cat(seen)
    assert len(drawn) == len(set(drawn.tolist())) == 192
    assert torch.isin(drawn, batches.training_indices).all()
    assert not torch.isin(drawn, batches.validation_indices).any()


def test_epochs_and_seeds_differ(numbered: Cifar10) -> None:
    orders = [
        torch.cat([numbers(images) for images, _ in make(numbered, seed).epoch(epoch)])
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 6


def test_order_within_the_training_images_follows_the_seed(numbered: Cifar10) -> None:
    def positions(seed: int) -> Tensor:
        batches = make(numbered, seed)
        drawn = torch.cat([numbers(images) for images, _ in batches.epoch(0)])
        return (drawn[:, None] == batches.training_indices).int().argmax(1)

    assert not torch.equal(positions(0), positions(1))


def test_augmentation_differs_between_images_steps_epochs_and_seeds() -> None:
    """Of one image, repeated, every batch and nearly every image is another."""
    pixels = torch.Generator().manual_seed(0)
    one = torch.randint(256, (3, 32, 32), generator=pixels, dtype=torch.uint8)
    one = one.expand(COUNT, 3, 32, 32)
    labels = torch.zeros(COUNT, dtype=torch.int64)
    same = Cifar10(one, labels, one, labels, "one image")
    runs = [make(same, seed).epoch(epoch) for seed in (0, 1) for epoch in (0, 1)]
    batches = [images.flatten(1) for run in runs for images, _ in run]
    assert len({tuple(images.sum(1).tolist()) for images in batches}) == 12
    assert all(len(set(images.sum(1).tolist())) > BATCH / 2 for images in batches)


def test_half_of_the_images_are_flipped_by_the_epoch() -> None:
    images = torch.zeros(2_000, 3, 32, 32, dtype=torch.uint8)
    images[:, :, :, :16] = 255
    split = Cifar10(images, torch.zeros(2_000).long(), images[:1], torch.zeros(1).long(), "")
    batches = Batches(split, seed=0, batch_size=1_500, validation=500)
    ((drawn, _),) = batches.epoch(0)
    flipped = int((drawn[:, 0, 16, 22] > 0).sum())  # right of the edge, whatever the shift
    assert abs(flipped - 750) < 5 * 375**0.5


def test_epoch_is_reproducible_whatever_was_drawn_before(numbered: Cifar10) -> None:
    fresh, used = make(numbered), make(numbered)
    for _ in used.epoch(0):
        torch.rand(3)
    next(used.epoch(2))
    list(used.validation())
    assert_same(used.epoch(1), fresh.epoch(1))
    assert_same(fresh.epoch(1), fresh.epoch(1))


def test_interleaved_epochs_do_not_disturb_each_other(numbered: Cifar10) -> None:
    batches = make(numbered)
    pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    assert_same((first for first, _ in pairs), batches.epoch(0))
    assert_same((second for _, second in pairs), batches.epoch(1))


@pytest.mark.parametrize("start", [1, 2, 3])
def test_resume_within_an_epoch(numbered: Cifar10, start: int) -> None:
    batches = make(numbered)
    assert_same(make(numbered).epoch(5, start), iter(list(batches.epoch(5))[start:]))


def test_drawing_leaves_the_global_generator_alone(numbered: Cifar10) -> None:
    state = torch.random.get_rng_state()
    batches = make(numbered)
    list(batches.epoch(0))
    list(batches.recalibration(1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_validation_is_all_held_out_images_unaugmented(numbered: Cifar10) -> None:
    batches = Batches(numbered, seed=0, batch_size=20, validation=VALIDATION)
    parts = list(batches.validation())
    assert [len(labels) for _, labels in parts] == [20, 10]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    held_out = batches.validation_indices
    assert torch.equal(images, data.normalize(numbered.train_images[held_out]))
    assert torch.equal(labels, numbered.train_labels[held_out])
    assert_same(batches.validation(), iter(parts))


def test_recalibration_is_the_start_of_the_training_permutation(numbered: Cifar10) -> None:
    batches = Batches(numbered, seed=0, batch_size=8, validation=VALIDATION)
    parts = list(batches.recalibration())
    assert [len(labels) for _, labels in parts] == [8] * 20
    images = torch.cat([images for images, _ in parts])
    first = batches.training_indices[:160]
    assert torch.equal(images, data.normalize(numbered.train_images[first]))
    assert_same(batches.recalibration(2), iter(parts[:2]))


def test_evaluation_batches_of_all_images_in_order(numbered: Cifar10) -> None:
    parts = list(data.evaluation_batches(numbered.test_images, numbered.test_labels, 2))
    assert [len(labels) for _, labels in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([labels for _, labels in parts]), numbered.test_labels)
    images = torch.cat([images for images, _ in parts])
    assert torch.equal(images, data.normalize(numbered.test_images))


def test_source_is_carried(numbered: Cifar10) -> None:
    assert make(numbered).source == "numbered images"


def test_validation_may_be_empty(numbered: Cifar10) -> None:
    batches = Batches(numbered, seed=0, batch_size=BATCH, validation=0)
    assert len(batches.training_indices) == COUNT
    assert list(batches.validation()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d: Batches(d, seed=-1),
            "training_validation_indices: validation: wanted 0 … 229, for 230 images, got 5000",
        ),
        (
            lambda d: Batches(d, seed=-1, validation=30),
            "training_validation_indices: seed: wanted at least 0, got -1",
        ),
        (
            lambda d: Batches(d, seed=0, validation=30, batch_size=201),
            "Batches: batch_size: wanted 1 … 200, the number of training images, got 201",
        ),
        (
            lambda d: Batches(d, seed=0, validation=30, batch_size=0),
            "Batches: batch_size: wanted 1 … 200, the number of training images, got 0",
        ),
        (lambda d: make(d).epoch(-1), "Batches.epoch: epoch: wanted at least 0, got -1"),
        (
            lambda d: make(d).epoch(0, 4),
            "Batches.epoch: start: wanted 0 … 3, the steps of an epoch, got 4",
        ),
        (
            lambda d: make(d).recalibration(),
            "Batches.recalibration: batches: wanted 1 … 3, the full batches of training images, "
            "got 20",
        ),
        (
            lambda d: data.evaluation_batches(d.test_images, d.test_labels, 0),
            "evaluation_batches: batch_size: wanted at least 1, got 0",
        ),
        (
            lambda d: data.evaluation_batches(d.test_images, d.train_labels, 2),
            "evaluation_batches: labels: wanted int64 [5] on cpu, got int64 [230] on cpu",
        ),
        (
            lambda d: data.evaluation_batches(d.test_images, d.test_labels, 2, torch.ones(2)),
            "evaluation_batches: indices: wanted int64 [N] on cpu, got float32 [2] on cpu",
        ),
        (
            lambda d: data.evaluation_batches(d.test_images.float(), d.test_labels, 2),
            "evaluation_batches: images: wanted uint8 [N, 3, H, W], "
            "got float32 [5, 3, 32, 32] on cpu",
        ),
        (
            lambda d: data.training_validation_indices(10, -1, 0),
            "training_validation_indices: validation: wanted 0 … 9, for 10 images, got -1",
        ),
        (
            lambda d: dataclasses.replace(d, test_labels=d.test_labels.int()),
            "Cifar10: test_labels: wanted int64 [5] on cpu, got int32 [5] on cpu",
        ),
        (
            lambda d: dataclasses.replace(d, train_images=d.train_images[0]),
            "Cifar10: train_images: wanted uint8 [N, 3, H, W], got uint8 [3, 32, 32] on cpu",
        ),
    ],
)
def test_bad_arguments_are_named_at_once(
    numbered: Cifar10, call: Callable[[Cifar10], object], message: str
) -> None:
    with pytest.raises(ValueError, match="wanted") as error:
        call(numbered)
    assert str(error.value) == message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_draws_what_the_cpu_draws(numbered: Cifar10) -> None:
    batches = Batches(numbered, seed=0, batch_size=BATCH, validation=VALIDATION, device="cuda")
    for (images, labels), (expected, wanted) in zip(
        batches.epoch(1), make(numbered).epoch(1), strict=True
    ):
        assert images.is_cuda
        assert_within("float32 images", "images", images.cpu(), expected)
        assert torch.equal(labels.cpu(), wanted)
