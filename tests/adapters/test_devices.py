"""The choice of a device, generators on it, and the check of explicit devices."""

from pathlib import Path

import pytest
import torch

from onestep_adapters import devices
from onestep_adapters.data.transport import optimal_noise
from onestep_adapters.devices import choose_device, generator_on
from onestep_core.errors import ConfigError
from tests.adapters import devices as explicit
from tests.adapters.devices import ExplicitDevices


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


def test_the_check_finds_what_it_should(monkeypatch):
    """A factory function without a device in a file of the library, and not one in a file of the tests."""
    data, noise = torch.randn(2, 6, 2)
    with ExplicitDevices() as mode:
        torch.zeros(3)
        optimal_noise(data, noise)
    assert mode.found == {}
    assert mode.calls == 1
    monkeypatch.setattr(explicit, "LIBRARY", (str(Path(__file__).parent),))
    monkeypatch.setattr(explicit, "ROOT", Path(__file__).parent)
    with ExplicitDevices() as mode:
        torch.zeros(3)
        torch.ones(3, device="cpu")
        torch.zeros_like(data)
    assert list(mode.found.values()) == ["torch.zeros in test_the_check_finds_what_it_should"]
    assert mode.calls == 1
