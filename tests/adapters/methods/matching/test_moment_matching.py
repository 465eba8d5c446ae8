"""Inductive moment matching: groups."""

import pytest

from onestep_adapters.methods import MomentMatching, Network, Training
from onestep_core.errors import ConfigError
from tests.adapters.tiny import begun, seeded


def test_a_group_has_one_class():
    drawn = []
    options = MomentMatching(Training(batch=64), Network("conv", width=4, depth=1), group_size=8)
    run, context = begun("moment-matching", options, "digits")
    draws = context.prepared
    context.prepared = lambda *arguments: drawn.append(draws(*arguments)) or drawn[-1]
    options.loss(context, run.state.network, seeded())
    labels = drawn[0].labels.reshape(-1, 8)
    assert (labels == labels[:, :1]).all()
    assert len(labels.unique()) > 3


@pytest.mark.parametrize("options", [{"training": Training(batch=30), "group_size": 4}, {"min_time": 0.5}])
def test_groups_that_do_not_divide_the_batch_and_late_times_are_refused(options):
    with pytest.raises(ConfigError, match="expected a group size that divides the batch"):
        MomentMatching(**options)
