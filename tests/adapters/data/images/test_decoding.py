"""What is done to image files of every kind, compared with the pixels that were written."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from onestep_adapters.data.images.decoding import colour_of, decoded, header
from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.data.images.source import CorruptImageError
from onestep_core.errors import ConfigError
from tests.adapters.data.images.made import noise


def content(image, kind="PNG", **keywords):
    stream = io.BytesIO()
    image.save(stream, kind, **keywords)
    return stream.getvalue()


def read(data, size=8, channels=3, **keywords):
    return decoded(data, ImageOptions(size=size, channels=channels, **keywords)).pixels


def test_colour_is_kept_to_the_bit_and_channels_come_first():
    pixels = noise()
    data = content(Image.fromarray(pixels))
    found = decoded(data, ImageOptions(size=8, channels=3))
    assert found.pixels.dtype == np.uint8
    assert np.array_equal(found.pixels, pixels.transpose(2, 0, 1))
    assert found.digest == hashlib.sha256(data).digest()


def test_grey_becomes_three_equal_channels_and_colour_becomes_grey_by_its_luma():
    grey = noise(channels=1)
    assert np.array_equal(read(content(Image.fromarray(grey))), np.stack([grey] * 3))
    assert np.array_equal(read(content(Image.fromarray(grey)), channels=1), grey[None])
    colour = noise(seed=1)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(content(Image.fromarray(colour)), channels=1)[0] - luma).max() <= 1


def test_sixteen_bits_become_eight():
    values = np.array([[0, 257, 65535], [128, 129, 30000], [514, 1000, 65000]], dtype=np.uint16)
    found = read(content(Image.fromarray(values)), size=3, channels=1)
    assert np.array_equal(found[0], np.rint(values / 257).astype(np.uint8))


def test_a_palette_is_looked_up():
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:, 4:] = 1
    image = Image.fromarray(pixels, mode=None).convert("P")
    image.putdata(pixels.flatten().tolist())
    image.putpalette([10, 20, 30, 200, 100, 50])
    found = read(content(image))
    assert found[:, 0, 0].tolist() == [10, 20, 30]
    assert found[:, 0, 7].tolist() == [200, 100, 50]


@pytest.mark.parametrize(("background", "behind"), [("white", (255, 255, 255)), ("#204060", (32, 64, 96))])
def test_transparent_pixels_show_the_background(background, behind):
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., :3] = (200, 100, 0)
    pixels[:4, :, 3], pixels[4, :, 3], pixels[5:, :, 3] = 255, 128, 0
    found = read(content(Image.fromarray(pixels)), background=background).astype(int)
    assert found[:, 0, 0].tolist() == [200, 100, 0]
    assert found[:, 7, 0].tolist() == list(behind)
    half = 128 / 255
    mixed = [half * colour + (1 - half) * back for colour, back in zip((200, 100, 0), behind, strict=True)]
    assert np.abs(found[:, 4, 0] - mixed).max() <= 1


def test_transparency_of_a_palette_and_of_grey():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30])
    assert read(content(image, transparency=0))[:, 0, 0].tolist() == [255, 255, 255]
    grey = Image.new("LA", (8, 8), (50, 0))
    assert read(content(grey), channels=1).tolist() == np.full((1, 8, 8), 255).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_exif_data_say(orientation):
    """The camera stores a turned image and says how to turn it back: all eight ways, as the EXIF standard defines."""
    upright = noise(channels=1)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = content(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(read(data, channels=1)[0], upright)


def test_cmyk_becomes_colour():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read(content(image, "JPEG", quality=95)).astype(int)
    assert np.abs(red[:, 0, 0] - [255, 0, 0]).max() <= 3


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert read(content(frames[0], "GIF", save_all=True, append_images=frames[1:]))[:, 0, 0].tolist() == [255, 0, 0]


def test_the_shorter_side_gets_the_size_and_the_middle_is_kept():
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 255
    assert read(content(Image.fromarray(pixels)), size=4).min() == 255
    squashed = read(content(Image.fromarray(pixels)), size=4, crop=False)
    assert squashed[:, :, 0].max() < 60
    assert squashed.shape == (3, 4, 4)


def test_a_smaller_image_is_averaged_not_sampled():
    """Stripes of one pixel become grey: resizing has antialiasing."""
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    found = read(content(Image.fromarray(stripes)), size=8, channels=1)
    assert np.abs(found.astype(int) - 127).max() <= 20


def test_damaged_files_say_why():
    whole = content(Image.fromarray(noise(64)))
    for data, told in (
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (whole[:60], "truncated|not an image|broken"),
        (whole[: len(whole) // 2], "truncated|broken"),
        (content(Image.fromarray(noise(64)), "JPEG")[:400], "[Tt]runcated|broken"),
    ):
        with pytest.raises(CorruptImageError, match=told):
            read(data)


def test_the_header_tells_size_and_colour():
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = content(Image.new("RGB", (12, 4)), exif=exif)
    assert header(io.BytesIO(wide)) == ((4, 12), True)
    assert header(io.BytesIO(content(Image.new("L", (5, 5))))) == ((5, 5), False)
    grey = Image.new("P", (5, 5))
    grey.putpalette([7, 7, 7, 90, 90, 90])
    assert header(io.BytesIO(content(grey))) == ((5, 5), False)
    with pytest.raises(CorruptImageError):
        header(io.BytesIO(b"nothing"))


def test_options_are_checked():
    with pytest.raises(ConfigError, match="channels = 2: expected 1"):
        ImageOptions(channels=2)
    with pytest.raises(ConfigError, match="size = 0"):
        ImageOptions(size=0)
    with pytest.raises(ConfigError, match="background = 'no colour'"):
        colour_of("no colour")
