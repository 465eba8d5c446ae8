"""Augmentations: known answers, one draw for each image, the generator alone decides, the range is kept."""

import pytest
import torch

from onestep_adapters.encoders import (
    Augmentation,
    blur,
    brightness,
    contrast,
    crop_and_resize,
    cutout,
    horizontal_flip,
    shift,
)
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded

EACH = {
    "crop": lambda x, g: crop_and_resize(x, smallest=0.2, generator=g),
    "flip": lambda x, g: horizontal_flip(x, generator=g),
    "shift": lambda x, g: shift(x, pixels=2, generator=g),
    "brightness": lambda x, g: brightness(x, strength=0.8, generator=g),
    "contrast": lambda x, g: contrast(x, strength=0.8, generator=g),
    "blur": lambda x, g: blur(x, generator=g),
    "cutout": lambda x, g: cutout(x, generator=g),
    "all": Augmentation(
        crop_area=0.3, shift=1, flip_probability=0.5, brightness=0.5, contrast=0.5, blur=1.0, cutout=0.3
    ),
}


def images(count=64, channels=1, height=8, width=8):
    return torch.rand(count, channels, height, width, generator=seeded(5)) * 2 - 1


@pytest.mark.parametrize("change", EACH.values(), ids=EACH)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12)])
def test_every_change_keeps_shape_and_range_and_follows_its_generator(change, shape):
    x = images(32, *shape)
    kept = x.clone()
    state = torch.get_rng_state()
    one, same, other = (change(x, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert one.shape == x.shape
    assert one.dtype == x.dtype
    assert one.abs().max() <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("change", EACH.values(), ids=EACH)
def test_equal_images_of_a_batch_are_changed_differently(change):
    x = images(1).expand(64, 1, 8, 8)
    assert len({tuple(view.flatten().tolist()) for view in change(x, seeded())}) > 1


def test_no_change_is_the_identity():
    x = images()
    assert torch.equal(Augmentation()(x, seeded()), x)
    assert torch.equal(horizontal_flip(x, probability=0.0, generator=seeded()), x)
    assert torch.equal(cutout(x, probability=0.0, generator=seeded()), x)


def test_a_crop_is_a_part_of_the_image():
    """On a ramp, a crop is a ramp again: its slopes and its mean say which part it is, which lies inside."""
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    across, down = ramp.expand(500, 1, 64, 64), ramp.mT.expand(500, 1, 64, 64)
    g = seeded()
    state = g.get_state()
    x = crop_and_resize(across, smallest=0.2, generator=g)
    g.set_state(state)
    y = crop_and_resize(down, smallest=0.2, generator=g)
    wide, high = (
        (x[:, 0, 0, 40] - x[:, 0, 0, 20]) / (ramp[0, 0, 0, 40] - ramp[0, 0, 0, 20]),
        (y[:, 0, 40, 0] - y[:, 0, 20, 0]) / (ramp[0, 0, 0, 40] - ramp[0, 0, 0, 20]),
    )
    area, ratio = wide * high, wide / high
    assert 0.15 < area.min() < 0.25
    assert area.max() <= 1 + 1e-3
    assert 0.5 < area.mean() < 0.65
    assert 3 / 4 - 0.02 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 4 / 3 + 0.02
    middle = x[:, 0, 0].mean(1)
    assert (middle.abs() + wide <= 1 + 0.03).all()
    assert middle.std() > 0.1


def test_a_shift_moves_by_whole_pixels_and_repeats_the_edge():
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(200, 1, 5, 5) / 25
    found = {tuple(view.flatten().tolist()) for view in shift(x, pixels=1, generator=seeded())}
    padded = torch.nn.functional.pad(x[:1], (1, 1, 1, 1), mode="replicate")
    expected = {
        tuple(padded[0, :, top : top + 5, left : left + 5].flatten().tolist()) for top in range(3) for left in range(3)
    }
    assert found == expected


def test_half_of_the_images_are_flipped():
    x = images(400)
    flipped = (horizontal_flip(x, generator=seeded()) == x.flip(3)).flatten(1).all(1)
    assert 0.42 < flipped.float().mean() < 0.58
    assert torch.equal(horizontal_flip(x, probability=1.0, generator=seeded()), x.flip(3))


def test_brightness_multiplies_the_distance_from_black_and_contrast_that_from_the_mean():
    x = images() * 0.2
    factor = (brightness(x, strength=0.3, generator=seeded()) + 1) / (x + 1)
    torch.testing.assert_close(factor, factor[:, :, :1, :1].expand_as(factor))
    assert 0.7 <= factor.min() < 0.75
    assert 1.25 < factor.max() <= 1.3
    centred = x - x.mean((1, 2, 3), keepdim=True)
    y = contrast(x, strength=0.3, generator=seeded())
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    scale = (y - x.mean((1, 2, 3), keepdim=True)).norm(dim=(2, 3)) / centred.norm(dim=(2, 3))
    assert 0.7 <= scale.min() < 0.75
    assert 1.25 < scale.max() <= 1.3 + 1e-4


def test_a_blur_of_known_width_is_the_gaussian():
    spike = torch.full((1, 2, 9, 9), 0.0)
    spike[:, :, 4, 4] = 1.0
    found = blur(spike, smallest=0.8, largest=0.8, probability=1.0, generator=seeded())
    line = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 0.8) ** 2)
    expected = torch.zeros(9, 9)
    expected[2:7, 2:7] = torch.outer(line, line) / line.sum() ** 2
    torch.testing.assert_close(found[0, 1], expected)


def test_a_cutout_is_one_square_of_the_mean():
    x = images(200, 3, 8, 8)
    found = cutout(x, side=0.5, probability=1.0, generator=seeded())
    changed = (found != x).all(1)
    assert (changed.flatten(1).sum(1) == 16).all()
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert (rows == 4).all()
    assert (columns == 4).all()
    assert changed.float().mean(0).min() > 0  # every place is hidden in some image


def test_what_is_no_batch_of_images_is_refused():
    for change in EACH.values():
        with pytest.raises(ConfigError, match=r"\[n, channel, height, width\]"):
            change(torch.zeros(8, 8), seeded())
    with pytest.raises(ConfigError, match=r"smallest = 0\.0"):
        crop_and_resize(images(), smallest=0.0, generator=seeded())
    with pytest.raises(ConfigError, match="crop_area = 0"):
        Augmentation(crop_area=0.0)
