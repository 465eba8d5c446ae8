"""Drifting: guidance as an input, positives from a queue, encoders, fields."""

import attrs
import pytest
import torch

from onestep_adapters.methods import METHODS, Drifting, Training
from onestep_adapters.methods.drifting.extras import Guidance, Queue
from onestep_adapters.methods.drifting.fields import FIELDS, named_field
from onestep_adapters.methods.drifting.monitors import DEFICIT
from onestep_adapters.runs import open_run, start_run
from onestep_core import feature_normalized, mean_shift_field, released_drift
from onestep_core.errors import ConfigError
from tests.adapters.tiny import NETWORK, assert_same_weights, drawn, seeded, trained_to


def options(steps=3, **changes):
    return Drifting(Training(steps=steps, batch=40, checkpoint_every=2), NETWORK, **{"positives": 5, **changes})


def trained(data="digits", folder=None, **changes):
    run = start_run("drifting", data, options(**changes))
    return run, list(run.updates(folder))


# Guidance.


def test_the_guidance_scale_is_an_input_at_sampling():
    run, records = trained(steps=6, guidance=Guidance(max_alpha=4.0, unguided_share=0.0, unconditional_samples=6))
    assert DEFICIT in records[0].logs
    noise, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    default, plain, strong = (
        r.options.sample(run.state.network, noise, labels) for r in (run, run.guided(1.0), run.guided(4.0))
    )
    assert torch.equal(default, plain), "no guidance by default"
    assert not torch.equal(plain, strong)
    assert run.guided(4.0).state is run.state
    with pytest.raises(ConfigError, match=r"alpha = 5.0, max_alpha = 4.0"):
        run.guided(5.0)


def test_the_scale_reaches_the_network_on_a_logarithmic_axis():
    guidance = Guidance(max_alpha=4.0)
    torch.testing.assert_close(guidance.as_time(torch.tensor([1.0, 2.0, 4.0])), torch.tensor([0.0, 0.5, 1.0]))


def test_scales_and_unconditional_negatives_enter_the_update():
    """Unconditional negatives of weight (alpha - 1)(N - 1)/N_unc enter the update: another loss than without."""
    changes = {"steps": 1, "guidance": Guidance(max_alpha=4.0, unguided_share=1.0, unconditional_samples=6)}
    _, (plain,) = trained(**changes)
    changes["guidance"] = attrs.evolve(changes["guidance"], unguided_share=0.0)
    _, (guided,) = trained(**changes)
    assert guided.loss != plain.loss
    _, (other,) = trained(steps=1, guidance=attrs.evolve(changes["guidance"], alpha_power=0.0))
    assert other.loss != guided.loss


def test_runs_without_a_scale_say_so():
    run, _ = trained("8gaussians")
    with pytest.raises(ConfigError, match=r"max_alpha = 1\.0"):
        run.guided(2.0)
    meanflow = start_run("meanflow", "8gaussians")
    with pytest.raises(ConfigError, match="MeanFlow takes no guidance scale"):
        meanflow.guided(2.0)
    with pytest.raises(ConfigError, match="8gaussians has none"):
        start_run("drifting", "8gaussians", options(guidance=Guidance(max_alpha=2.0)))


# The queue.


def test_a_run_with_a_queue_is_resumed_bit_for_bit(tmp_path):
    changes = {
        "steps": 5,
        "queue": Queue(queue_size=8, queue_pushes=30),
        "guidance": Guidance(max_alpha=2.0, unconditional_samples=3),
    }
    whole, _ = trained(**changes)
    trained_to(start_run("drifting", "digits", options(**changes)), 3, tmp_path)
    resumed = open_run(tmp_path)
    assert resumed.state.step == 2
    list(resumed.updates(tmp_path))
    assert resumed.state.companions["queue"].trained == "never"
    assert_same_weights(resumed.state, whole.state)


def test_positives_of_a_queue_are_training_images_of_their_class():
    run, _ = trained(steps=2, queue=Queue(queue_size=20, queue_pushes=50))
    queue = run.state.companions["queue"].module
    assert int(queue.counts.min()) >= 5
    images, labels = run.data.split("train")
    found = run.data.finish(queue.positives(5, generator=seeded()))
    for k, image in enumerate(found):
        assert k // 5 in labels[(images == image).flatten(1).all(1)]


def test_data_without_classes_have_one_queue():
    run, _ = trained("8gaussians", queue=Queue(queue_size=20, queue_pushes=10))
    assert run.state.companions["queue"].module.counts.tolist() == [20]


# Features and fields.


def test_an_encoder_needs_images_and_has_relative_temperatures():
    drifts = [options(encoder="random", relative_temperatures=given).field_at(0.0) for given in (False, True)]
    x, y = torch.randn(6, 3, generator=seeded()), torch.randn(7, 3, generator=seeded(1))
    assert torch.equal(*(field(x, y).field for field in drifts))
    assert not torch.equal(options().field_at(0.0)(x, y).field, drifts[0](x, y).field)
    with pytest.raises(ConfigError, match="needs images"):
        trained("8gaussians", encoder="random", relative_temperatures=True)
    with pytest.raises(ConfigError, match="cannot give 5 positives"):
        options(queue=Queue(queue_size=4))


@pytest.mark.parametrize("field", [*FIELDS, "released"])
def test_every_field_trains_on_pixels_and_on_features(field):
    for encoder in ("pixels", "random"):
        run, records = trained(
            steps=2, field=field, relative_temperatures=True, encoder=encoder, temperatures=(0.1, 0.5)
        )
        assert all(record.loss > 0 for record in records)
        assert {"drift norm 0.1", "drift norm 0.5"} <= records[-1].logs.keys()
        assert drawn(run, 20)[0].isfinite().all()


def test_named_fields_are_the_core_s():
    x, y = torch.randn(6, 3), torch.randn(7, 3)

    def shift(length):
        return lambda *sets: mean_shift_field(*sets, kernel=lambda a, b: -torch.cdist(a, b) / (0.3 * length))

    mine, theirs = named_field("mean-shift", (0.3,), relative=True, scale=1.0), feature_normalized(shift)
    torch.testing.assert_close(mine(x, y).field, theirs(x, y).field, rtol=1e-4, atol=1e-5)
    twice = named_field("released", (0.2,), relative=False, scale=2.0)(x, y).field
    torch.testing.assert_close(twice, 2 * released_drift(x, y, temperatures=(0.2,)).field)


@pytest.mark.parametrize("field", [*FIELDS, "released"])
def test_factors_of_attraction_and_repulsion_reach_the_field(field):
    x, y = torch.randn(6, 3, generator=seeded()), torch.randn(7, 3, generator=seeded(1))

    def drift(**factors):
        made = options(field=field, temperatures=(0.5, 1.0), **factors).field_at(0.0)(x, y)
        return made.field, made.force_norms

    plain, towards, twice = drift(), drift(repulsion=0.0), drift(attraction=2.0, repulsion=2.0)
    assert not torch.allclose(plain[0], towards[0], rtol=0.05)
    # The released field has unit size at every temperature, so only the ratio of the factors matters.
    torch.testing.assert_close(twice[0], (1 if field == "released" else 2) * plain[0])
    torch.testing.assert_close(twice[1], 4 * plain[1])
    with pytest.raises(ConfigError, match="repulsion"):
        options(repulsion=-1.0)


def test_presets_leave_guidance_queue_and_encoder_off():
    for name in ("drifting", "drifting-paper"):
        for preset in (METHODS[name].images, METHODS[name].points):
            assert isinstance(preset, Drifting)
            assert not preset.guidance.learned
            assert preset.queue.queue_size == 0
            assert preset.encoder == "pixels"
