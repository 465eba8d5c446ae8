"""Wrong functions and wrong counts are refused by name, with what was expected."""

from functools import partial

import pytest
import torch

import onestep_core as one
from onestep_core.errors import ConfigError
from onestep_core.typing import typed

X, Y = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.2, 0.9, 6)
S, LINE = T / 2, one.Linear()
LAPLACE = partial(one.laplace, temperature=1.0)


def velocity(z, t):
    return z


def average(z, t, s):
    return z


class Module(torch.nn.Module):
    def forward(self, z, t):
        return z


KINDS = {
    "an average velocity as velocity": (
        lambda: one.flow_matching_regression(average, X, Y, T),
        r"velocity of flow_matching_regression takes \(z, t, s\), and it is called with \(z, t\)",
    ),
    "a velocity as average velocity": (
        lambda: one.meanflow_regression(velocity, X, Y, T, S),
        r"takes \(z, t\), and it is called with \(z, t, s\)",
    ),
    "a module of one time": (
        lambda: one.meanflow_regression(Module(), X, Y, T, S),
        r"takes \(z, t\), and it is called with \(z, t, s\)",
    ),
    "in a solver": (lambda: one.heun(average, X, T, S), "velocity of heun takes"),
    "a kernel without its number": (
        lambda: one.drift_field(X, Y, kernel=one.laplace, coupling=one.softmax_both),
        r"kernel of drift_field takes .*temperature.*functools\.partial binds",
    ),
    "a kernel as field": (lambda: one.drifting_regression(X, Y, field=LAPLACE), "field of drifting_regression takes"),
    "a kernel as a field of a temperature": (
        lambda: one.multi_temperature(LAPLACE, (0.5,), normalize=False),
        r"field of multi_temperature takes .*called with \(temperature\)",
    ),
    "a kernel that returns a number": (
        lambda: one.moment_matching_loss(average, average, X, X, T, S, S, particles=3, kernel=lambda x, y: 1.0),
        "the kernel answered float .*expected log k",
    ),
    "at once in a wrapper": (lambda: one.instantaneous(velocity), "average_velocity of instantaneous takes"),
    "at once in a preconditioned network": (lambda: one.edm(average), "network of edm takes"),
    "tangents that are too few": (
        lambda: one.two_pass(average, (X, T, S), (Y, T)),
        "3 arguments and 2 tangents: expected one tangent for each",
    ),
    "tangents of a difference": (
        lambda: one.central_difference(velocity, (X, T), (Y, T, S)),
        "2 arguments and 3 tangents",
    ),
}


@pytest.mark.parametrize(("call", "message"), KINDS.values(), ids=KINDS)
def test_a_function_of_another_kind_is_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_an_error_inside_of_a_network_stays_what_it_is():
    def broken(z, t):
        return z + "text"

    with pytest.raises(TypeError, match="unsupported operand"):
        one.flow_matching_regression(broken, X, Y, T)


def test_what_cannot_be_asked_for_its_arguments_is_called():
    """A function in C does not say what it takes; one with further defaults may have them."""
    assert one.flow_matching_regression(lambda z, t, scale=1.0: z, X, Y, T).target is not None
    assert one.squared_l2(*one.flow_matching_regression(torch.add, X[:, 0], Y[:, 0], T)).shape == (6,)


def test_an_optional_function_is_checked_too():
    @typed
    def called(x: one.typing.Sample, function: one.protocols.Velocity | None = None) -> None:
        if function is not None:
            function(x, x)

    called(X)
    with pytest.raises(ConfigError, match="function of called takes"):
        called(X, average)


NOT_WHOLE = {
    "a Karras grid": lambda n: one.karras_grid(n),
    "Karras times": lambda n: one.karras_times([0], steps=n),
    "an exponential grid": lambda n: one.polyexponential_grid(n),
    "a variance-preserving grid": lambda n: one.vp_grid(n),
    "a few-step grid": lambda n: one.few_step_grid(n),
    "a uniform grid": lambda n: one.uniform_grid(n, path=LINE),
    "uniform times": lambda n: one.sample_uniform(n),
    "log-normal times": lambda n: one.sample_log_normal(n),
    "logit-normal times": lambda n: one.sample_logit_normal(n),
    "guidance scales": lambda n: one.sample_guidance_scales(n),
    "central steps": lambda n: one.central_steps(n),
    "stages": lambda n: one.halving_stages(n),
}


@pytest.mark.parametrize("count", [2.5, -3, "4", None])
@pytest.mark.parametrize("call", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_a_count_is_a_whole_number(call, count):
    """A grid of 2.5 steps had a negative noise level."""
    with pytest.raises(ConfigError):
        call(count)


@pytest.mark.parametrize("path", [None, "linear", LINE.coefficients])
def test_a_path_is_a_path(path):
    for call in (
        lambda: one.uniform_grid(3, path=path),
        lambda: one.velocity_from_denoiser(velocity, path=path),
        lambda: one.reverse(path),
    ):
        with pytest.raises(ConfigError):
            call()


def test_none_is_no_network():
    for wrap in (one.instantaneous, one.flow_map_from_average_velocity, one.from_duration, one.edm):
        with pytest.raises(ConfigError):
            wrap(None)
    with pytest.raises(ConfigError):
        one.classifier_free(velocity, None, scale=2.0)


WRONG_NUMBERS = {
    "a step": lambda v: one.central_difference(velocity, (X, T), (Y, T), step=v),
    "a step of a curve": lambda v: one.derivative_along(lambda t: (X, t), v),
    "a standard deviation": lambda v: one.validators.positive_sigma_data(v),
    "a length": lambda v: one.validators.require_length("temperature", v),
    "a share": lambda v: one.validators.require_share("share", v),
}


@pytest.mark.parametrize("number", ["1e-3", None, [0.1]])
@pytest.mark.parametrize("call", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_a_number_is_a_number(call, number):
    with pytest.raises(ConfigError, match="expected"):
        call(number)


def test_a_curve_gives_every_argument():
    for curve, message in (
        (lambda t: (t,), "the curve gave 1 arguments: expected a tuple of the 2 arguments"),
        (lambda t: X, "the curve gave a Tensor: expected a tuple"),
    ):
        with pytest.raises(ConfigError, match=message):
            one.derivative_along(curve, 0.1)(velocity, (X, T), (Y, torch.ones(6)))
    with pytest.raises(ConfigError, match="curve is a NoneType: expected a function"):
        one.derivative_along(None, 0.1)


def test_features_of_several_names_are_mappings():
    for generated, positives, name in ((X, {"a": Y}, "generated"), ({"a": X}, Y, "positives")):
        with pytest.raises(ConfigError, match=f"{name} is a Tensor: expected a mapping from names"):
            one.drifting_regressions(generated, positives, field=one.released_drift)


def test_none_is_no_function_of_a_target():
    with pytest.raises(ConfigError, match="a NoneType as function"):
        one.frozen_value(None)


PAIRS = {
    "ordered": lambda t, s: one.ordered(t, s),
    "not after": lambda t, s: one.not_after(t, s),
    "of limited duration": lambda t, s: one.limit_duration(t, s, longest=0.5),
    "between": lambda t, s: one.TimePair(t, one.time_between(t, s, share=0.5)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_nan_in_a_time_stays_visible(pair):
    """The values of tensors are not looked at: it would stop the GPU. What is not a number stays one."""
    broken = torch.tensor([0.9, float("nan")])
    for found in (pair(broken, torch.tensor([0.1, 0.2])), pair(torch.tensor([0.9, 0.8]), broken * 0.1)):
        assert torch.stack(found).isnan().any(0).tolist() == [False, True]


LEVELS = torch.tensor([2.0, 1.0, 0.5])

COUNTS = {
    "times": lambda n: one.sample_uniform(n),
    "guidance scales": lambda n: one.sample_guidance_scales(n),
    "an even grid": lambda n: one.uniform_grid(n, path=LINE),
    "a Karras grid": lambda n: one.karras_grid(n),
    "levels of a grid": lambda n: one.few_step_grid(4, levels=n),
    "levels of FastGen's grid": lambda n: one.discrete_levels(torch.tensor([0]), levels=n),
    "steps of a student": lambda n: one.halving_stages(n),
    "step sizes": lambda n: one.log_steps(n, finest=7),
    "a curriculum": lambda n: one.progressive_points(n, total=10),
    "a stage": lambda n: one.ect_ratio(n),
    "a warm-up": lambda n: one.tangent_warmup(n),
    "iterations": lambda n: one.sinkhorn_divergence(X, Y, epsilon=1.0, iterations=n),
    "an argument": lambda n: one.derivative_along(lambda t: (t, t), 0.1, argument=n),
}


@pytest.mark.parametrize("count", [2**63, 10**30, 10**400, -1])
@pytest.mark.parametrize("call", COUNTS.values(), ids=COUNTS)
def test_counts_beyond_all_memory_are_refused(call, count):
    with pytest.raises(ConfigError, match=r"expected a (whole )?number"):
        call(count)


def test_numbers_beyond_64_bits_are_refused_where_torch_overflows():
    @typed
    def scaled(x: one.typing.Sample, groups: int) -> object:
        return x.long() * groups

    with pytest.raises(ConfigError, match=r"groups = 10{30}, expected a number below 2\^63"):
        scaled(X, 10**30)
    with pytest.raises(ConfigError, match=r"scale is about 2\^1328: expected a number that a float can hold"):
        one.classifier_free(velocity, velocity, scale=10**400)


NUMBERS = {
    "a log-normal without mean": (lambda: one.discretized_log_normal(T, LEVELS, mean=float("nan")), "mean = nan"),
    "a log-normal beyond its grid": (lambda: one.discretized_log_normal(T, LEVELS, mean=90.0, std=0.1), "probability"),
    "levels that are no numbers": (
        lambda: one.discretized_log_normal(T, LEVELS * float("nan")),
        "levels .nan, nan, nan",
    ),
    "levels out of order": (lambda: one.discretized_log_normal(T, LEVELS[[0, 2, 1]]), "that decrease"),
    "a fraction as no label": (
        lambda: one.drop_labels(torch.arange(6), 0.5, T > 0.5),
        "null = 0.5 for labels of torch.int64",
    ),
    "NaN as no label": (lambda: one.drop_labels(X, float("nan"), T > 0.5), "null = nan"),
    "a vector as no class": (lambda: one.drop_labels(torch.arange(6), T[0], T > 0.5), "null = torch.float32"),
    "no direction": (lambda: one.sliced_wasserstein(X, Y, directions=X[:0]), "0 of 0 directions"),
    "a direction that is zero": (lambda: one.sliced_wasserstein(X, Y, directions=X * 0), "6 of 6 directions are zero"),
    "an end that is no number": (lambda: one.consistency_from_flow_map(average, end=float("nan")), "end = nan"),
    "a margin that is no number": (lambda: one.alpha_schedule(1, begin=0, end=2, margin=float("nan")), "margin = nan"),
    "an end of a path": (lambda: one.VariancePreserving(torch.neg, noise_time=float("nan")), "noise_time = nan"),
    "a progress beyond the end": (lambda: one.logarithmic_ramp(-1.0, 1.0, 0.0), "progress = -1.0"),
    "a step from noise without signal": (
        lambda: one.dpm_2(velocity, X, T / T, S, path=LINE),
        "dpm_2 gives no finite state from 6 of 6 times",
    ),
    "times that are integers": (
        lambda: one.sample_uniform(4, dtype=torch.int32),
        "dtype = torch.int32: expected a floating",
    ),
    "particles that are no number": (
        lambda: one.moment_matching_loss(average, average, X, X, T, S, S, particles=True, kernel=LAPLACE),
        "particles = True",
    ),
    "a part of the clouds": (lambda: one.uncloud(X[None], groups=2), "1 clouds cannot be split into 2"),
}


@pytest.mark.parametrize(("call", "message"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_makes_a_result_meaningless_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_what_is_near_to_a_refusal_is_right():
    """Values by hand: a projection onto one axis, one label that is dropped, half of a steep ramp."""
    huge = torch.tensor([[3e30, 0.0, 0.0]])
    assert one.sliced_wasserstein(X, X + torch.tensor([2.0, 7.0, 7.0]), directions=huge).isclose(torch.tensor(2.0))
    assert one.drop_labels(torch.arange(3), 7, torch.tensor([True, False, False])).tolist() == [7, 1, 2]
    assert one.drop_labels(X.bfloat16(), 0.5, T > 0).dtype == torch.bfloat16
    assert one.sigmoid_ramp(0.0, 1.0, 0.25, steepness=1e5) == 1.0
    assert one.sigmoid_ramp(1.0, 1.0, 0.25, steepness=1e5) == 0.25


def test_grids_and_labels_compile_without_a_break():
    def inside(x, labels, mask):
        return x + one.karras_grid(4).sum() + one.uniform_grid(4, path=LINE).sum(), one.drop_labels(labels, 7, mask)

    torch._dynamo.reset()
    arguments = (X, torch.arange(6), T > 0.5)
    for found, expected in zip(
        torch.compile(inside, fullgraph=True, backend="eager")(*arguments), inside(*arguments), strict=True
    ):
        torch.testing.assert_close(found, expected)


TENSORS = {
    "sparse": (lambda x: x.to_sparse(), r"p is a sparse tensor, .* p.to_dense\(\)"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        r"p is a quantised .* p.dequantize\(\)",
    ),
    "nested": (lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]), r"p is a nested tensor, .* p.to_padded_tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_not_dense_are_named(kind, message):
    with pytest.raises(one.ArgumentError, match=message):
        one.squared_l2(kind(X), X)
