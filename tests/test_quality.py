"""Trained for real: one-step generators against the bars of the toys, and the yardstick against its own.

A method passes with ``score <= max(2 * yardstick's, 0.03) + 2 se``, all modes at their masses and widths. The ordinary
run trains one seed of the recipes as they are on 8 Gaussians; the thorough one trains three seeds on three laws.
"""

import attrs
import pytest
import torch

from onestep_adapters.metrics import passes, toy_reference, toy_score
from onestep_adapters.recipes import find_method
from onestep_adapters.recipes.runs import start_run

METHODS = ("meanflow", "drifting")
LAWS = ("8gaussians", "checkerboard", "unequal")


def trained_scores(method, data, seeds):
    scores = []
    for seed in seeds:
        recipe = find_method(method).options(data)
        recipe = attrs.evolve(recipe, training=attrs.evolve(recipe.training, seed=seed))
        run = start_run(method, data, recipe)
        for _ in run.updates():
            pass
        law = run.problem.law
        reference = toy_reference(law, generator=torch.Generator().manual_seed(100 + seed))
        generator = torch.Generator().manual_seed(200 + seed)

        def sampler(count, g, run=run):
            return run.samples(count, generator=g)[0]

        scores.append(toy_score(sampler, law, generator=generator, reference=reference))
    return scores


@pytest.mark.parametrize(
    ("data", "seeds"),
    [("8gaussians", (0,)), *(pytest.param(law, (0, 1, 2), marks=pytest.mark.thorough) for law in LAWS)],
)
def test_one_step_generators_match_many_steps(data, seeds):
    yardstick = trained_scores("flow-matching", data, seeds)
    verdicts = {method: passes(trained_scores(method, data, seeds), yardstick) for method in METHODS}
    assert {method: verdict.text for method, verdict in verdicts.items()} == dict.fromkeys(METHODS, "pass"), verdicts


@pytest.mark.thorough
def test_consistency_distillation_matches_many_steps():
    """Eight Gaussians, one seed: what was measured when its preset was chosen."""
    yardstick = trained_scores("flow-matching", "8gaussians", (0,))
    verdict = passes(trained_scores("consistency-distillation", "8gaussians", (0,)), yardstick)
    assert verdict.text == "pass", verdict
