"""Features of real images: the cache gives the same update as encoding anew, and is whole for two processes."""

import multiprocessing

import attrs
import pytest
import torch

from onestep_adapters.data import ArrayDataset, Batch, open_dataset
from onestep_adapters.encoders import Encoder, RandomConvolutions, features_of, pixels
from onestep_adapters.methods import Drifting, Training
from onestep_adapters.methods.drifting import feature_cache
from onestep_adapters.methods.drifting.extras import Guidance, Queue
from onestep_adapters.methods.drifting.feature_cache import cached_features, gigabytes
from onestep_adapters.methods.drifting.positives import CachedPositives, cached_positives
from onestep_adapters.runs import start_run
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, assert_same_weights, seeded


def encoder(key="random", seed=0, **changes):
    module = RandomConvolutions(1, width=4, generator=seeded(seed))
    return attrs.evolve(Encoder(module, ("stages.0", "stages.1"), channels=1, key=key), **changes)


def images(count=60, seed=0, name="mine"):
    """Images without grey levels, so that no noise is added to them; three classes of different sizes."""
    labels = torch.arange(count).div(count / 5, rounding_mode="floor").long().clamp(max=2)
    order = torch.randperm(count, generator=seeded(seed))
    return ArrayDataset(name, Batch(torch.randn(count, 1, 8, 8, generator=seeded(seed)), labels[order]))


def options(**changes):
    training = Training(steps=3, batch=24)
    given = {"encoder": "mine", "positives": 6, "relative_temperatures": True, **changes}
    return Drifting(training, NETWORK, **given)


@pytest.mark.parametrize("pixel_weight", [0.0, 2.0])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(max_alpha=3.0, unguided_share=0.0, unconditional_samples=4)])
def test_cached_features_give_the_same_training(guidance, pixel_weight, new_teachers):
    data, records = images(), {}
    for limit in (0.0, 4.0):
        chosen = options(cache_features=limit, guidance=guidance, pixel_weight=pixel_weight)
        run = start_run("drifting", data, chosen, encoder=encoder())
        records[limit] = list(run.updates())
        assert (run.prepared().prepared.cached is not None) == (limit > 0)
    assert len(caches(next((new_teachers / "made").glob("encoder-*")))) == 1
    for anew, cached in zip(*records.values(), strict=True):
        assert cached.loss == pytest.approx(anew.loss, rel=1e-4)
        assert cached.logs.keys() == anew.logs.keys()
        for name, value in anew.logs.items():
            assert cached.logs[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("limit", [0.0, 4.0])
def test_the_loss_has_one_more_feature_the_pixels_with_their_weight(limit, new_teachers):
    def first(given, **changes):
        run = start_run("drifting", images(), options(cache_features=limit, **changes), encoder=given)
        return next(iter(run.updates())).loss

    beside, alone = first(encoder(), pixel_weight=3.0), first(None, encoder="pixels")
    assert beside == pytest.approx(first(encoder()) + 3 * alone, rel=1e-5)


@pytest.mark.parametrize("name", ["pixels", "random"])
def test_encoders_that_have_the_pixels_take_no_weight_of_them(name):
    with pytest.raises(ConfigError, match="has the pixels already"):
        options(encoder=name, pixel_weight=1.0)


def test_positives_are_different_images_of_their_class_with_their_features(tmp_path):
    data, found = images(), features_of(encoder())
    positives = cached_positives(tmp_path, encoder(), found, data, limit=1.0)
    assert isinstance(positives, CachedPositives)
    drawn = positives.draw(7, 9, seeded(4))
    assert torch.equal(drawn.positives, data.groups(7, seeded(4)))
    train, labels = data.split("train")
    places = [int((train == image).flatten(1).all(1).nonzero()) for image in drawn.positives]
    assert len(set(places)) == 21
    assert labels[places].tolist() == [0] * 7 + [1] * 7 + [2] * 7
    for name, feature in found(drawn.positives).items():
        torch.testing.assert_close(drawn.features[name], feature)
        assert drawn.extra[name].shape == (9, *feature.shape[1:])
    with pytest.raises(ConfigError, match="smallest class has 12"):
        positives.draw(13, 0, seeded())


def test_a_cache_is_computed_once_and_for_one_encoder_and_one_set_of_images(tmp_path):
    titles = []

    def track(items, title, total):
        titles.append((title, total))
        return iter(items)

    def make(data, encoder, layers=(), limit=1.0):
        return cached_positives(tmp_path, encoder, features_of(encoder, layers), data, limit=limit, track=track)

    assert make(images(), encoder()) is not None
    assert titles == [("features of the real images", 1)]
    assert make(images(), encoder()) is not None
    assert len(titles) == 1
    for number, (data, other, layers) in enumerate(
        [
            (images(seed=1), encoder(), ()),
            (images(count=50), encoder(), ()),
            (images(name="other"), encoder(), ()),
            (images(), encoder(key="another"), ()),
            (images(), encoder(mean=(0.1,)), ()),
            (images(), encoder(size=6), ()),
            (images(), encoder(), ("stages.1",)),
        ],
        start=2,
    ):
        assert make(data, other, layers) is not None
        assert len(titles) == len(caches(tmp_path)) == number
    # Not kept: without a key, above the limit, or where there is no fixed set of images.
    assert make(images(), encoder(key="")) is None
    assert make(images(count=40), encoder(), limit=1e-6) is None
    both = gigabytes(features_of(encoder()), torch.zeros(1, 1, 8, 8), 60) + 4e-9 * 60 * 64
    assert make(images(), encoder(), limit=0.99 * both) is None
    assert make(images(), encoder(), limit=1.01 * both) is not None
    assert cached_positives(None, encoder(), features_of(encoder()), images(), limit=1.0) is None
    mirrored = images(count=40)
    mirrored.flip = True
    assert make(mirrored, encoder()) is None
    counted = images(count=40)
    counted.counts, counted.split = {"train": 10**9}, None  # not read where the number alone is too large
    assert make(counted, encoder()) is None
    assert len(titles) == len(caches(tmp_path)) == 8


def caches(folder):
    """The folders in a folder; a lock lies beside each."""
    return [entry for entry in folder.iterdir() if entry.is_dir()]


def test_the_limit_is_in_gigabytes_of_float32(tmp_path):
    found = features_of(encoder())
    count = 1_000_000
    numbers = 16 * 4 + 4 * 2 + 4 * 4 * 2 + 4 * 8 + 8 * 2 + 1  # two maps of 4 x 4 and 2 x 2, and the input
    assert gigabytes(found, torch.zeros(1, 1, 8, 8), count) == pytest.approx(4e-9 * count * numbers)
    rows = cached_features(tmp_path / "a", found, torch.randn(30, 1, 8, 8))
    assert len(rows) == 30
    assert (tmp_path / "a" / "features.f32").stat().st_size == 4 * 30 * numbers


def test_an_interrupted_cache_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_CHUNK", 10)

    def track(items, title, total):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path / "a", pixels, torch.randn(30, 1, 2, 2), track=track)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.lock"]
    data = torch.randn(30, 1, 2, 2)
    rows = cached_features(tmp_path / "a", pixels, data)
    assert torch.equal(rows(torch.arange(30))["pixels"], pixels(data)["pixels"])


def _build(folder, barrier, data, made):
    def track(items, title, total):
        with made.get_lock():
            made.value += title == "features of the real images"
        return iter(items)

    barrier.wait(60)
    cached_features(folder, pixels, data, track=track)


def test_two_processes_make_one_cache(tmp_path):
    """One makes it, the other waits."""
    context = multiprocessing.get_context("fork")
    data, barrier, made = torch.randn(50, 1, 2, 2), context.Barrier(2), context.Value("i", 0)
    processes = [context.Process(target=_build, args=(tmp_path / "a", barrier, data, made)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert made.value == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "a.lock"]
    assert torch.equal(cached_features(tmp_path / "a", pixels, data)(torch.arange(50))["pixels"][:, 0], data.flatten(1))


@pytest.mark.parametrize("name", ["features.f32", "index.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "zeros", "empty", "gone"])
def test_damaged_features_are_made_again(tmp_path, name, damage):
    data = torch.randn(50, 1, 2, 2, generator=seeded())
    cached_features(tmp_path / "a", pixels, data)
    file = tmp_path / "a" / name
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    if damage == "bit":
        content[middle] ^= 4
    elif damage == "zeros":
        content[middle : middle + 8] = bytes(8)
    changed = {"cut": content[:-4], "empty": b""}.get(damage, content)
    file.unlink() if damage == "gone" else file.write_bytes(changed)
    with pytest.warns(UserWarning, match="a is damaged: it is made again"):
        rows = cached_features(tmp_path / "a", pixels, data)
    assert torch.equal(rows(torch.arange(50))["pixels"], pixels(data)["pixels"])


def test_a_queue_and_grey_levels(new_teachers):
    """With a queue the images are encoded anew. Cached features are those of images without dequantisation noise."""
    run = start_run("drifting", "digits", options(queue=Queue(queue_size=10)), encoder=encoder())
    assert run.prepared().prepared.cached is None
    run = start_run("drifting", "digits", options(), encoder=encoder())
    cached = run.prepared().prepared.cached
    drawn = cached.draw(6, 0, seeded())
    assert torch.equal(drawn.positives, open_dataset("digits").finish(drawn.positives))
    torch.testing.assert_close(
        drawn.features["stages.0/location"], features_of(encoder())(drawn.positives)["stages.0/location"]
    )


def test_a_resumed_run_reads_the_same_cache(tmp_path, new_teachers):
    whole, parts = (start_run("drifting", images(), options(), encoder=encoder()) for _ in range(2))
    list(whole.updates())
    list(parts.updates(tmp_path))
    assert_same_weights(whole.state, parts.state)
