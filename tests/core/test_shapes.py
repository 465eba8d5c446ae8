"""Axes, and one sample at a time."""

import pytest
import torch

from onestep_core.errors import ConfigError
from onestep_core.shapes import clouds, expand_like, per_sample, per_sample_mean, uncloud


def test_shapes():
    x = torch.randn(6, 4, 5)
    parts = clouds(x, groups=2)
    assert parts.shape == (8, 3, 5)
    torch.testing.assert_close(parts[5], x[3:, 1])
    assert torch.equal(uncloud(parts, groups=2), x)
    with pytest.raises(ConfigError, match=r"shape \[3\] beside samples of shape \[4, 2\]: expected one per"):
        expand_like(torch.ones(3), torch.ones(4, 2))
    with pytest.raises(ConfigError, match=r"samples of shape \[0, 2\] hold no number"):
        per_sample_mean(torch.ones(4, 0, 2))


def test_per_sample_takes_trees_and_in_dims():
    def f(tree, shared, x):
        return {"sum": (tree["a"] * shared + x).flatten(1).sum(1)}

    tree, x = {"a": torch.randn(3, 2)}, torch.randn(3, 2)
    out = per_sample(f, in_dims=(0, None, 0))(tree, torch.tensor(2.0), x)
    torch.testing.assert_close(out["sum"].squeeze(1), f(tree, torch.tensor(2.0), x)["sum"])
    pairs = per_sample(lambda pair: pair[0] + pair[1], in_dims=((0, None),))((x, torch.ones(1, 2)))
    torch.testing.assert_close(pairs.squeeze(1), x + 1)
