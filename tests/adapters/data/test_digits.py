"""The digits' splits, and their grey levels."""

import hashlib
import subprocess
import sys

import pytest
import torch

from onestep_core.errors import MissingExtraError, OneStepError


def test_digits():
    digits = pytest.importorskip("onestep_adapters.data.digits", exc_type=MissingExtraError)
    splits = digits.load_digits()
    assert tuple(len(part.labels) for part in splits) == digits.SIZES
    images = torch.cat([part.data for part in splits])
    assert images.dtype == torch.float32
    assert images.shape == (1797, 1, 8, 8)
    assert images.min() == -1
    assert images.max() == 1
    # Disjoint: all images of the set are different, and so are those of the splits together.
    assert len({hashlib.sha256(image.numpy().tobytes()).digest() for image in images}) == 1797
    whole = torch.bincount(torch.cat([part.labels for part in splits]))
    for part, size, bound in zip(splits, digits.SIZES, (2, 1, 1), strict=True):
        # The training split takes both remainders.
        assert (torch.bincount(part.labels) - whole * size / 1797).abs().max() < bound
    assert torch.equal(digits.load_digits().train.data, splits.train.data)


def test_quantizing_keeps_real_images_and_lands_on_their_levels():
    digits = pytest.importorskip("onestep_adapters.data.digits", exc_type=MissingExtraError)
    images = digits.load_digits().train.data
    assert torch.equal(digits.quantize(images), images)
    noisy = images + 0.06 * (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1)
    assert torch.equal(digits.quantize(noisy), images)
    assert set(digits.quantize(3 * torch.randn(9, 1, 8, 8)).unique().tolist()) <= {k / 8 - 1 for k in range(17)}


def test_other_digits_are_refused(monkeypatch):
    digits = pytest.importorskip("onestep_adapters.data.digits", exc_type=MissingExtraError)
    changed = digits.datasets.load_digits()
    changed.images[5, 3, 3] = 15 - changed.images[5, 3, 3]
    monkeypatch.setattr(digits.datasets, "load_digits", lambda: changed)
    with pytest.raises(OneStepError, match="would not be comparable"):
        digits.load_digits()


def test_without_scikit_learn_the_extra_is_named():
    script = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import onestep_adapters.data\n"
        "try:\n    import onestep_adapters.data.digits\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "MissingExtraError" in shown
    assert "pip install 'onestep[digits]'" in shown
