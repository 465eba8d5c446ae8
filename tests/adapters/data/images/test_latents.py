"""Latents of images: a tiny AutoencoderKL of diffusers, and plain modules."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from onestep_adapters.data import Dataset, ImageDataset, LatentDataset, open_dataset
from onestep_core.errors import ConfigError
from tests.adapters.data.images.made import photos
from tests.adapters.tiny import seeded


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


class Halves(nn.Module):
    """Means of patches of two by two, and copies of them; counts the images that it has encoded."""

    def __init__(self):
        super().__init__()
        self.encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        return nn.functional.avg_pool2d(images, 2)

    def decode(self, latents):
        return nn.functional.interpolate(latents, scale_factor=2)


def images(folder, count=40, **keywords):
    return open_dataset(f"folder:{photos(folder, count)}", **keywords)


def test_training_sees_scaled_modes(tmp_path, autoencoder):
    pixels = images(tmp_path / "p")
    data = LatentDataset(pixels, autoencoder)
    assert isinstance(data, Dataset)
    assert (data.kind, data.shape, data.classes) == ("images", (2, 4, 4), 2)
    batch = data.batch(30, seeded())
    assert batch.data.shape == (30, 2, 4, 4)
    real, labels = pixels.split("train")
    with torch.no_grad():
        expected = (autoencoder.encode(real).latent_dist.mode() - 0.1) * 0.5
    distance = (batch.data[:, None] - expected).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-5
    assert torch.equal(labels[distance.argmin(1)], batch.labels)
    groups = data.groups(3, seeded())
    assert (groups[:, None] - expected).abs().flatten(2).amax(2).amin(1).max() < 1e-5
    assert torch.equal(
        data.batch(9, seeded(), alike=3).labels[::3].repeat_interleave(3), data.batch(9, seeded(), alike=3).labels
    )


def test_finish_decodes_and_splits_are_images(tmp_path, autoencoder):
    pixels = images(tmp_path / "p")
    data = LatentDataset(pixels, autoencoder)
    latents = data.held_out(4, seeded())
    found = data.finish(latents)
    with torch.no_grad():
        expected = autoencoder.decode(latents / 0.5 + 0.1).sample
    torch.testing.assert_close(found, pixels.finish(expected), rtol=0, atol=1e-5)
    for name in ("train", "validation", "test"):
        assert torch.equal(data.split(name).data, pixels.split(name).data)
        assert found.shape[1:] == data.split(name).data.shape[1:]
    assert torch.equal(data.part("train", 3).data, pixels.part("train", 3).data)


def test_images_are_encoded_once_with_progress(tmp_path):
    pixels, first, titles = images(tmp_path / "p"), Halves(), []

    def track(items, title, total):
        titles.append((title, total))
        yield from items

    data = LatentDataset(pixels, first, track=track)
    assert first.encoded == 40
    assert titles == [("encoding images", 2)]
    second = Halves()
    again = LatentDataset(pixels, second, track=track)
    assert second.encoded == 0
    assert again.name == data.name
    assert torch.equal(again.batch(5, seeded()).data, data.batch(5, seeded()).data)
    file = next((tmp_path / "cache" / "latents").glob("*/latents.f32"))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="is damaged: it is made again"):
        LatentDataset(pixels, second)
    assert second.encoded == 40
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged: it is made again"):
        again = LatentDataset(pixels, Halves())
    assert torch.equal(again.batch(5, seeded()).data, data.batch(5, seeded()).data)


def test_without_a_factor_latents_get_mean_zero_and_deviation_one(tmp_path):
    pixels = images(tmp_path / "p", 200)
    data = LatentDataset(pixels, Halves())
    latents = data.groups(70, seeded())
    assert abs(float(latents.mean())) < 0.05
    assert abs(float(latents.std()) - 1) < 0.05
    real = pixels.split("train").data
    pooled = nn.functional.avg_pool2d(real, 2)
    found = data.finish((pooled - pooled.mean()) / pooled.std())
    torch.testing.assert_close(
        found, pixels.finish(nn.functional.interpolate(pooled, scale_factor=2)), atol=0.01, rtol=0
    )
    factor = LatentDataset(pixels, Halves(), scale=3.0)
    assert (factor.batch(9, seeded()).data[:, None] - 3 * pooled).abs().flatten(2).amax(2).amin(1).max() < 1e-5


def test_other_weights_give_another_name(tmp_path):
    pixels = images(tmp_path / "p")

    class Weighted(Halves):
        def __init__(self, value):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(value))

    names = {LatentDataset(pixels, Weighted(value)).name for value in (1.0, 2.0)}
    names.add(LatentDataset(pixels, Weighted(1.0), scale=3.0).name)
    assert len(names) == 3
    assert all(name.startswith(f"{pixels.name}-latents-") for name in names)


def test_other_pixels_of_one_name_have_other_latents():
    generator = seeded()
    for _ in range(2):
        pixels = torch.randint(256, (30, 1, 4, 4), dtype=torch.uint8, generator=generator)
        data = LatentDataset(ImageDataset("mine", pixels), Halves(), scale=1.0)
        expected = nn.functional.avg_pool2d(data.split("train").data, 2)
        assert (data.batch(9, seeded()).data[:, None] - expected).abs().flatten(2).amax(2).amin(1).max() < 1e-6


def test_what_does_not_fit_is_refused(tmp_path):
    pixels = images(tmp_path / "p")
    with pytest.raises(ConfigError, match="a Linear as autoencoder: expected a module with encode and decode"):
        LatentDataset(pixels, nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="open it without flip"):
        LatentDataset(images(tmp_path / "q", flip=True), Halves())
    with pytest.raises(ConfigError, match=r"makes images of shape \(3, 6, 6\)"):
        LatentDataset(ImageDataset("odd", pixels.images[:, :, :7, :7]), Halves())


def test_a_folder_of_diffusers_is_loaded(tmp_path, autoencoder):
    autoencoder.save_pretrained(tmp_path / "pipeline" / "vae")
    folder = photos(tmp_path / "p")
    data = open_dataset(f"folder:{folder}", autoencoder=str(tmp_path / "pipeline"))
    assert isinstance(data, LatentDataset)
    assert data.shape == (2, 4, 4)
    assert open_dataset(**data.source).name == data.name
    (tmp_path / "pipeline").rename(tmp_path / "moved")
    assert open_dataset(f"folder:{folder}", autoencoder=str(tmp_path / "moved")).name == data.name
    (tmp_path / "moved").rename(tmp_path / "pipeline")
    with pytest.raises(ConfigError, match=r"no config.json: expected the folder of a diffusers AutoencoderKL"):
        open_dataset(f"folder:{folder}", autoencoder=str(tmp_path))
    with pytest.raises(ConfigError, match="--autoencoder with the data 'digits'"):
        open_dataset("digits", autoencoder=str(tmp_path))
