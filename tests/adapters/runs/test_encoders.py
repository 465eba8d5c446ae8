"""The encoder of a run: by name, by folder, as an object; kept the same when the run is resumed."""

import attrs
import pytest
import torch
from torch import nn

from onestep_adapters.cli import main
from onestep_adapters.data import ArrayDataset, Batch, open_dataset
from onestep_adapters.encoders import Encoder
from onestep_adapters.methods import Drifting, Training, registry
from onestep_adapters.runs import open_run, resume_or_start, start_run
from onestep_adapters.training import CheckpointError
from onestep_core.errors import ConfigError
from tests.adapters.pretraining import NAME, OPTIONS, PRESET
from tests.adapters.tiny import NETWORK, assert_same_weights, drawn, flat, seeded, trained_to

pytestmark = pytest.mark.usefixtures("new_teachers", "known")


@pytest.fixture
def known(monkeypatch):
    """The small encoder's training is a method."""
    monkeypatch.setitem(registry.ENCODERS, NAME, PRESET)


def options(encoder, steps=3, **changes):
    training = Training(steps=steps, batch=40, checkpoint_every=1)
    return Drifting(
        training, NETWORK, encoder=str(encoder), **{"positives": 5, "relative_temperatures": True, **changes}
    )


def pretrained(folder, seed=0):
    """A finished run of the small encoder."""
    list(start_run(NAME, "digits", OPTIONS.with_seed(seed)).updates(folder))
    return folder


def own(seed=0, channels=1, key=""):
    network = nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1, bias=False))
    nn.init.normal_(network[0].weight, generator=seeded(seed))
    return Encoder(network, ("0",), channels=channels, key=key)


def test_a_run_of_an_encoder_is_the_encoder_of_another_run(tmp_path):
    folder = pretrained(tmp_path / "encoder")
    run = start_run("drifting", "digits", options(folder))
    trained = open_run(folder).state.ema
    assert run.encoder.layers == ("1", "2")
    assert run.encoder.mean == (0.2,)
    for name, value in run.encoder.module.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    records = list(run.updates(tmp_path / "run"))
    assert all(record.loss > 0 for record in records)
    for name, value in run.encoder.module.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), "the encoder is frozen"
    # The finished run needs its encoder no more.
    for file in folder.iterdir():
        file.unlink()
    assert drawn(open_run(tmp_path / "run"), 10)[0].isfinite().all()


def test_resumption_is_bit_for_bit_and_only_with_the_same_encoder(tmp_path):
    folder, other = pretrained(tmp_path / "encoder"), pretrained(tmp_path / "other", seed=1)
    whole = start_run("drifting", "digits", options(folder, steps=4))
    list(whole.updates())
    trained_to(start_run("drifting", "digits", options(folder, steps=4)), 2, tmp_path / "run")
    resumed = open_run(tmp_path / "run")
    assert resumed.state.step == 2
    list(resumed.updates())
    assert_same_weights(resumed.state, whole.state)
    folder.rename(tmp_path / "moved")
    missing = open_run(tmp_path / "run")
    assert "no encoder" in missing.missing_encoder
    assert drawn(missing, 10)[0].isfinite().all()
    with pytest.raises(ConfigError, match="cannot be trained further"):
        missing.updates()
    other.rename(folder)
    assert "another encoder" in open_run(tmp_path / "run").missing_encoder
    with pytest.raises(CheckpointError, match="another encoder"):
        resume_or_start(tmp_path / "run", "drifting", "digits", options(folder, steps=4), resume=True)


def test_features_that_are_computed_once_are_announced(tmp_path):
    folder = pretrained(tmp_path / "encoder")
    run = start_run("drifting", "digits", options(folder))
    (announced,) = run.ahead()
    assert announced.startswith("the features of 1,097 real images")
    assert start_run("drifting", "digits", options(folder, cache_features=0)).ahead() == []
    run.prepared()
    assert run.ahead() == []


def test_an_encoder_of_your_own(tmp_path):
    run = start_run("drifting", "digits", options("mine"), encoder=own())
    list(run.updates(tmp_path))
    assert run.encoder.layers == ("0",)
    other = start_run("drifting", "digits", options("mine"), encoder=own(seed=1))
    list(other.updates())
    assert not torch.equal(flat(run.state.network), flat(other.state.network))
    unfinished = tmp_path / "unfinished"
    trained_to(start_run("drifting", "digits", options("mine"), encoder=own()), 2, unfinished)
    assert "object of your own" in open_run(unfinished).missing_encoder
    assert "another encoder" in open_run(unfinished, encoder=own(seed=1)).missing_encoder
    again = open_run(unfinished, encoder=own())
    list(again.updates())
    assert_same_weights(again.state, run.state)


def test_a_run_that_was_just_trained_is_an_encoder(tmp_path):
    encoder = start_run(NAME, "digits", OPTIONS)
    with pytest.raises(ConfigError, match="stopped at 0 of 2"):
        start_run("drifting", "digits", options("mine"), encoder=encoder)
    list(encoder.updates())
    assert start_run("drifting", "digits", options("mine"), encoder=encoder).encoder.channels == 1


def test_a_pretrained_network_by_name():
    run = start_run("drifting", "digits", options("efficientnet-lite0", steps=1, cache_features=0))
    (record,) = list(run.updates())
    assert record.loss > 0
    assert run.encoder.layers == ("_blocks.4", "_blocks.10", "_blocks.15")


def test_layers_are_chosen(tmp_path):
    folder = pretrained(tmp_path / "encoder")
    run = start_run("drifting", "digits", options(folder, layers=("0",)))
    features = run.options.features(run.data, encoder=run.encoder)
    assert {name.split("/")[0] for name in features(torch.zeros(1, 1, 8, 8))} == {"0", "input"}
    run = start_run("drifting", "digits", options(folder, layers=("3",)))
    with pytest.raises(ConfigError, match="no layer '3'"):
        run.updates()


def test_errors_before_training(tmp_path):
    with pytest.raises(ConfigError, match="no encoder 'resnet': it is no pretrained one"):
        start_run("drifting", "digits", options("resnet"))
    with pytest.raises(ConfigError, match="layers only for"):
        options("random", layers=("0",))
    with pytest.raises(ConfigError, match="needs images"):
        start_run("drifting", "8gaussians", options("mine"), encoder=own())
    with pytest.raises(ConfigError, match="uses no encoder"):
        start_run("drifting", "digits", options("pixels"), encoder=own())
    with pytest.raises(ConfigError, match="expected an Encoder"):
        start_run("drifting", "digits", options("mine"), encoder=nn.Identity())
    colour = ArrayDataset("colour", Batch(torch.rand(20, 3, 8, 8), None))
    with pytest.raises(ConfigError, match="1 channels and colour has 3"):
        start_run("drifting", colour, options("mine"), encoder=own())
    assert start_run("drifting", "digits", options("mine"), encoder=own(channels=3)).encoder.channels == 3
    list(start_run("drifting", "8gaussians", Drifting(Training(steps=1), NETWORK)).updates(tmp_path))
    with pytest.raises(ConfigError, match="trains no encoder"):
        start_run("drifting", "digits", options(tmp_path))


def test_on_the_command_line(tmp_path, capsys):
    folder = pretrained(tmp_path / "encoder")
    small = ["--backbone", "decoder", "--noise-width", "5", "--width", "4", "--depth", "1", "--steps", "2"]
    drift = ["--batch", "20", "--positives", "5", "--relative-temperatures", "--layers", "1", "2"]
    run = str(tmp_path / "run")
    assert main(["train", "drifting", "--folder", run, "--encoder", str(folder), *small, *drift]) == 0
    assert "features of the real images" in capsys.readouterr().out
    assert open_run(run).options.layers == ("1", "2")
    assert main(["sample", run, "--count", "10"]) == 0
    assert main(["train", "drifting", "--folder", str(tmp_path / "b"), "--encoder", "nothing", *small, *drift]) == 2
    assert "no encoder 'nothing'" in capsys.readouterr().err


def test_the_data_set_of_the_encoder_s_run_may_be_another(tmp_path):
    """An encoder of larger images: these are enlarged to its size."""
    larger = ArrayDataset("larger", Batch(torch.rand(40, 1, 12, 12), None))
    encoder = start_run(NAME, larger, attrs.evolve(OPTIONS))
    list(encoder.updates())
    run = start_run("drifting", "digits", options("mine"), encoder=encoder)
    features = run.options.features(open_dataset("digits"), encoder=run.encoder)
    assert features(torch.zeros(1, 1, 8, 8))["1/location"].shape == (1, 144, 4)
