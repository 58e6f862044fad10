"""Augmentation and normalisation against slow oracles, one image at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from cwkernels import data
from cwkernels.data import Augmentation
from cwkernels.testing import assert_within


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, height: int = 32, width: int = 32) -> Tensor:
    shape = (count, 3, height, width)
    return torch.randint(256, shape, generator=generator(99), dtype=torch.uint8)


def oracle(images: Tensor, augmentation: Augmentation | None) -> Tensor:
    """In float64: mirror, paste onto a black canvas, cut out, normalise."""
    mean = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    deviation = np.array([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    results = []
    for n, image in enumerate(images.numpy()):
        if augmentation is not None:
            dy, dx = int(augmentation.dy[n]), int(augmentation.dx[n])
            mirrored = image[:, :, ::-1] if augmentation.flip[n] else image
            _, height, width = image.shape
            border = max(abs(dy), abs(dx))
            canvas = np.pad(mirrored, ((0, 0), (border, border), (border, border)))
            top, left = border - dy, border - dx
            image = canvas[:, top : top + height, left : left + width]
        results.append((image / 255 - mean) / deviation)
    return torch.from_numpy(np.stack(results))


def assert_matches(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_within("float32 images", "images", actual.double(), expected)


@pytest.mark.parametrize("size", [(32, 32), (5, 7), (3, 2)])
def test_augment_matches_padded_crop(size: tuple[int, int]) -> None:
    images = random_images(60, *size)
    augmentation = data.draw_augmentation(60, generator())
    assert_matches(data.augment(images, augmentation), oracle(images, augmentation))


def test_augment_matches_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = random_images(40)
    augmentation = data.draw_augmentation(40, generator(1))
    result = data.augment(images, augmentation)
    for n in range(40):
        image = functional.hflip(images[n]) if augmentation.flip[n] else images[n]
        top, left = 4 - int(augmentation.dy[n]), 4 - int(augmentation.dx[n])
        image = functional.crop(functional.pad(image, [4]), top, left, 32, 32)
        expected = functional.normalize(image.float() / 255, data.MEAN, data.DEVIATION)
        assert_within("float32 images", f"image {n}", result[n], expected)


@pytest.mark.parametrize(
    ("dy", "dx", "flip", "to"),
    [
        (0, 0, False, (10, 20)),
        (3, 0, False, (13, 20)),
        (0, -4, False, (10, 16)),
        (0, 0, True, (10, 11)),
        (-2, 1, True, (8, 12)),  # the shift follows the flip: 31 − 20 + 1
    ],
)
def test_one_pixel_goes_where_the_draw_says(
    dy: int, dx: int, flip: bool, to: tuple[int, int]
) -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[0, :, 10, 20] = 255
    draw = Augmentation(torch.tensor([dy]), torch.tensor([dx]), torch.tensor([flip]))
    result = data.augment(images, draw)
    assert (result[0, 0] > 0).nonzero().tolist() == [list(to)]


def test_uncovered_pixels_are_black_before_normalisation() -> None:
    images = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    draw = Augmentation(torch.tensor([4]), torch.tensor([-4]), torch.tensor([False]))
    result = data.augment(images, draw)[0]
    black = torch.tensor([-0.4914 / 0.2470, -0.4822 / 0.2435, -0.4465 / 0.2616])[:, None, None]
    assert_within("float32 images", "top", result[:, :4], black.expand(3, 4, 32))
    assert_within("float32 images", "right", result[:, :, 28:], black.expand(3, 32, 4))
    assert (result[:, 4:, :28] > 0).all()


def test_a_shift_beyond_the_image_leaves_black() -> None:
    images = random_images(2)
    far = Augmentation(torch.tensor([32, 0]), torch.tensor([0, -40]), torch.tensor([False, True]))
    assert torch.equal(data.augment(images, far), data.normalize(torch.zeros_like(images)))


def test_normalize_matches_oracle_for_every_value() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert_matches(data.normalize(images), oracle(images, None))


def test_input_is_not_modified_and_its_layout_does_not_matter() -> None:
    images = random_images(8)
    before = images.clone()
    augmentation = data.draw_augmentation(8, generator())
    expected = data.augment(images, augmentation)
    assert torch.equal(images, before)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.augment(last, augmentation), expected)
    assert torch.equal(data.normalize(last), data.normalize(images))


def test_make_batch_is_index_then_transform() -> None:
    images = random_images(50)
    indices = torch.tensor([49, 0, 7, 7, 31, 0])
    augmentation = data.draw_augmentation(6, generator())
    chosen = images[indices]
    assert_matches(data.make_batch(images, indices, augmentation), oracle(chosen, augmentation))
    assert_matches(data.make_batch(images, indices, None), oracle(chosen, None))


def test_empty_batch() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    result = data.make_batch(random_images(3), none, data.draw_augmentation(0, generator()))
    assert result.shape == (0, 3, 32, 32)


def test_draws_are_uniform_and_independent() -> None:
    n = 90_000
    draw = data.draw_augmentation(n, generator(3))
    assert draw.flip.dtype == torch.bool
    # Five standard deviations of a binomial count, here and below.
    assert abs(int(draw.flip.sum()) - n / 2) < 5 * (n / 4) ** 0.5
    cell = (draw.dy + 4) * 18 + (draw.dx + 4) * 2 + draw.flip
    counts = torch.bincount(cell, minlength=162)
    assert counts.shape == (162,)
    expected = n / 162
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_draws_follow_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, same = (data.draw_augmentation(100, generator(5)) for _ in range(2))
    other = data.draw_augmentation(100, generator(6))
    assert torch.equal(torch.random.get_rng_state(), state)
    for field in ("dy", "dx", "flip"):
        assert torch.equal(getattr(one, field), getattr(same, field))
        assert not torch.equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("shift", [0, 1, 7])
def test_shift_bounds_the_draws(shift: int) -> None:
    draw = data.draw_augmentation(2_000, generator(), shift)
    for values in (draw.dy, draw.dx):
        assert sorted(set(values.tolist())) == list(range(-shift, shift + 1))


def test_slice_of_an_augmentation() -> None:
    images = random_images(10)
    draw = data.draw_augmentation(10, generator())
    assert (len(draw), len(draw[3:7])) == (10, 4)
    assert torch.equal(data.augment(images[3:7], draw[3:7]), data.augment(images, draw)[3:7])


IMAGES = random_images(4)
DRAW = data.draw_augmentation(4, generator())
INDICES = torch.tensor([3, 2, 1, 0])


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGES.float(), "float32 [4, 3, 32, 32] on cpu"),
        (IMAGES[0], "uint8 [3, 32, 32] on cpu"),
        (IMAGES[:, :2], "uint8 [4, 2, 32, 32] on cpu"),
    ],
)
@pytest.mark.parametrize("operation", ["normalize", "augment", "make_batch"])
def test_bad_images(operation: str, images: Tensor, got: str) -> None:
    arguments = {"normalize": (), "augment": (DRAW,), "make_batch": (INDICES, DRAW)}[operation]
    with pytest.raises(ValueError, match="images: wanted") as error:
        getattr(data, operation)(images, *arguments)
    assert str(error.value) == f"{operation}: images: wanted uint8 [N, 3, H, W], got {got}"


@pytest.mark.parametrize(
    ("field", "value", "wanted", "got"),
    [
        ("dy", DRAW.dy.int(), "int64 [4]", "int32 [4] on cpu"),
        ("dx", DRAW.dx[:3], "int64 [4]", "int64 [3] on cpu"),
        ("dx", DRAW.dx.to("meta"), "int64 [4]", "int64 [4] on meta"),
        ("flip", DRAW.flip.long(), "bool [4]", "int64 [4] on cpu"),
    ],
)
def test_bad_augmentation(field: str, value: Tensor, wanted: str, got: str) -> None:
    bad = dataclasses.replace(DRAW, **{field: value})
    message = f"augmentation.{field}: wanted {wanted} on cpu, got {got}"
    with pytest.raises(ValueError, match="augmentation") as error:
        data.augment(IMAGES, bad)
    assert str(error.value) == f"augment: {message}"
    with pytest.raises(ValueError, match="augmentation") as error:
        data.make_batch(IMAGES, INDICES, bad)
    assert str(error.value) == f"make_batch: {message}"


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (INDICES.int(), "wanted int64 [N] on cpu, got int32 [4] on cpu"),
        (INDICES[None], "wanted int64 [N] on cpu, got int64 [1, 4] on cpu"),
        (INDICES.to("meta"), "wanted int64 [N] on cpu, got int64 [4] on meta"),
        (torch.tensor([0, 4]), "wanted 0 … 3, got 0 … 4"),
        (torch.tensor([-1, 2]), "wanted 0 … 3, got -1 … 2"),
    ],
)
def test_bad_indices(indices: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match="indices") as error:
        data.make_batch(IMAGES, indices, None)
    assert str(error.value) == f"make_batch: indices: {message}"


def test_bad_draw_arguments() -> None:
    with pytest.raises(ValueError, match="draw_augmentation: n: wanted at least 0 images, got -1"):
        data.draw_augmentation(-1, generator())
    with pytest.raises(ValueError, match="shift: wanted at least 0 pixels, got -2"):
        data.draw_augmentation(3, generator(), shift=-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    images = random_images(64)
    indices = torch.randperm(64, generator=generator())
    draw = data.draw_augmentation(64, generator())
    expected = data.make_batch(images, indices, draw)
    actual = data.make_batch(images.cuda(), indices.cuda(), draw.to("cuda"))
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_within("float32 images", "images", actual.cpu(), expected)
