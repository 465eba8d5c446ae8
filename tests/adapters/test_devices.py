"""The choice of a device, and generators on it."""

import pytest
import torch

from onestep_adapters import devices
from onestep_adapters.devices import choose_device, generator_on
from onestep_core.errors import ConfigError


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(devices.torch.cuda, "is_available", lambda available=available: available)
        assert choose_device() == choose_device("auto") == torch.device(kind)


def test_a_named_device_is_itself():
    assert choose_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert choose_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize(
    "name",
    [
        "gpu",
        "cpu:x",
        "",
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
        "cuda:77",
        pytest.param("mps", marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_to_do(name):
    with pytest.raises(ConfigError, match=rf"device '{name}' cannot be used \(.+\): give --device cpu"):
        choose_device(name)


def test_a_generator_has_a_device_and_a_seed():
    one, same, other = (generator_on("cpu", seed) for seed in (3, 3, 4))
    assert one.device == torch.device("cpu")
    drawn = [torch.randn(5, generator=g) for g in (one, same, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
