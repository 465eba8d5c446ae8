"""Samplers at the ends of a path: a data end with little noise, a noise end without signal."""

from functools import partial

import pytest
import torch

from onestep_adapters.samplers import sample_denoiser, sample_dpmpp_2m, sample_ode
from onestep_core import (
    Linear,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    ddim,
    denoised_heun,
    dpm_2,
    euler,
    heun,
    integrate,
    karras_grid,
    uniform_grid,
    velocity_from_denoiser,
)
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.flow.paths import prior_state

TABLE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
NEARLY_CLEAN = {
    "cosine": VariancePreserving.cosine(),
    "table": VariancePreserving.from_table(TABLE),
    "exploding": VarianceExploding(0.002, 80.0),
}
MIXTURE = GaussianMixture.isotropic(
    torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.1
)
LARGEST = 1.5
"""Farther from 0 than five standard deviations beyond a mode."""


def exact(path):
    return lambda z, t: MIXTURE.denoiser(z, t, path=path)


def drawn(path, count=400):
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise, prior_state(path, noise)


def grid_of(path, steps):
    if isinstance(path, VarianceExploding):
        return karras_grid(steps + 1, dtype=torch.float64)[: steps + 1]  # without the clean end that it appends
    return uniform_grid(steps, path=path, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("start", [0.1, 0.5, 0.9])
def test_a_second_order_step_into_a_nearly_clean_end_is_exact_for_a_constant_estimate(start, dtype):
    path = VariancePreserving.cosine()
    t, s = torch.tensor([start], dtype=dtype), torch.zeros(1, dtype=dtype)
    (a_t, s_t), (a_s, s_s) = path.coefficients(t), path.coefficients(s)
    z = (0.5 * a_t + s_t)[:, None]
    found = denoised_heun(lambda z, t: torch.full_like(z, 0.5), z, t, s, path=path)
    assert found.item() == pytest.approx((0.5 * a_s + s_s).item(), abs=2e-6)


@pytest.mark.parametrize("path", [VarianceExploding(0.0, 80.0), Linear()], ids=["exploding", "linear"])
def test_the_step_is_heun_on_the_velocity_where_the_papers_use_it(path):
    t, s = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    z = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    denoiser = exact(path)
    wide = lambda z, t: denoiser(z.reshape(-1, 1), t.expand(z.numel())).reshape(z.shape)  # noqa: E731
    torch.testing.assert_close(
        denoised_heun(wide, z, t, s, path=path),
        heun(velocity_from_denoiser(wide, path=path), z, t, s),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("path", NEARLY_CLEAN.values(), ids=NEARLY_CLEAN)
def test_no_sample_leaves_the_data_at_a_nearly_clean_end(path, steps):
    denoiser, (_, z), grid = exact(path), drawn(path), grid_of(path, steps)
    found = {
        "heun": sample_denoiser(denoiser, z, grid, path=path),
        "dpm_2": sample_denoiser(denoiser, z, grid, path=path, step=dpm_2),
        "2m": sample_dpmpp_2m(denoiser, z, grid, path=path),
    }
    # EDM's own large steps overshoot before the last one: on its path three to five of them are few.
    largest = 2.0 if isinstance(path, VarianceExploding) and steps < 10 else LARGEST
    for name, samples in found.items():
        assert samples.abs().max() < largest, name


@pytest.mark.parametrize("path", NEARLY_CLEAN.values(), ids=NEARLY_CLEAN)
def test_the_spread_at_a_nearly_clean_end_tends_to_the_data(path):
    denoiser, (_, z), grid = exact(path), drawn(path, 3000), grid_of(path, 40)
    true = (0.01 + 4 * 0.3 * 0.7) ** 0.5
    for sample in (sample_denoiser, partial(sample_denoiser, step=dpm_2), sample_dpmpp_2m):
        assert sample(denoiser, z, grid, path=path).std().item() == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("name", ["cosine", "table"])
def test_the_equation_of_a_denoiser_ends_well(name, steps):
    path = NEARLY_CLEAN[name]
    noise, _ = drawn(path)
    samples = sample_ode(velocity_from_denoiser(exact(path), path=path), noise, path=path, steps=steps)
    assert samples.abs().max() < 1.6
    assert samples.std().item() == pytest.approx((0.01 + 4 * 0.3 * 0.7) ** 0.5, rel=0.08)


@pytest.mark.parametrize("path", [Linear()], ids=["linear"])
def test_a_step_that_needs_a_signal_names_itself_and_the_remedy(path):
    z, grid = torch.randn(2, 3), uniform_grid(4, path=path)
    with pytest.raises(ConfigError, match=r"dpm_2 .*flow\.ddim"):
        sample_denoiser(lambda z, t: 0 * z, z, grid, path=path, step=dpm_2)
    assert sample_denoiser(lambda z, t: 0 * z, z, grid[1:], path=path, step=dpm_2).isfinite().all()
    assert sample_denoiser(lambda z, t: 0 * z, z, grid, path=path, step=ddim).isfinite().all()


@pytest.mark.parametrize("path", [Linear(), VarianceExploding(0.0, 80.0), Trigonometric()], ids=repr)
@pytest.mark.parametrize("step", [denoised_heun, dpm_2])
def test_a_second_order_step_to_a_clean_end_is_ddim(step, path):
    denoiser, (_, z) = exact(path), drawn(path, 8)
    z = z.float().requires_grad_()
    t = torch.full((8,), 0.5 * path.noise_time)
    s = torch.full((8,), path.data_time)
    found, expected = (each(denoiser, z, t, s, path=path) for each in (step, ddim))
    torch.testing.assert_close(found, expected)
    slopes = (torch.autograd.grad(each.sum(), z)[0] for each in (found, expected))
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=repr)
def test_the_equation_of_a_denoiser_ends_well_at_a_clean_end(path, steps):
    """The velocity is 0 / 0 there, and the last step that of Euler."""
    noise, start = drawn(path)
    velocity = velocity_from_denoiser(exact(path), path=path)
    found = sample_ode(velocity, noise, path=path, steps=steps)
    grid = uniform_grid(steps, path=path, dtype=torch.float64)
    z = integrate(partial(heun, velocity), start, grid[:-1]) if steps > 1 else start
    torch.testing.assert_close(found, integrate(partial(euler, velocity), z, grid[-2:]))
    assert found.isfinite().all()


def test_a_velocity_that_is_never_finite_is_not_hidden():
    found = sample_ode(lambda z, t: z * torch.nan, torch.ones(2, 1), path=Linear(), steps=3)
    assert found.isnan().all()
