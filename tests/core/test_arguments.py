"""A call that does not fit is refused in one line: what came, what was expected, what to do."""

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float, Int, TypeCheckError
from torch import Tensor
from torch.func import grad, jvp, vmap

import onestep_core as one
from onestep_core.typing import Particles, PerSample, Sample, Time, typed

Z, T = torch.ones(4, 3), torch.full((4,), 0.5)
LINE = one.Linear()


def net(z, t, s):
    return z


def meanflow(network=net, z=Z, v=Z, t=T, s=T, **numbers):
    return one.meanflow_regression(network, z, v, t, s, **numbers)


@typed
def takes(
    x: Float[Tensor, "n 3"],
    y: Float[Tensor, "m *rest"] | None = None,
    mask: Bool[Tensor, "n"] | None = None,
    index: Int[Tensor, "n"] | None = None,
    weight: float | Float[Tensor, "n"] = 1.0,
    pairs: tuple[Float[Tensor, "n"], ...] = (),
    name: str = "",
    **times: Float[Tensor, "n"],
) -> None:
    pass


@typed
def parts(x: Float[Tensor, "n 3"], *times: Float[Tensor, "n"]) -> None:
    pass


ORDER = r"its arguments are \(average_velocity, z, v, t, s, \*, scale, moving, derivative\)"
CASES = {
    "another shape": (
        lambda: meanflow(v=Z[:, :2]),
        r"meanflow_regression: v is float32 \[4, 2\], expected floating-point \[batch, \*shape\] = \[4, 3\] "
        r"\(batch and shape as in z\): nothing is broadcast here; bring v and z to shapes that agree",
    ),
    "another batch": (lambda: meanflow(z=Z[:2]), r"v is float32 \[4, 3\], expected .* = \[2, 3\] \(batch and shape as"),
    "a batch of one": (lambda: meanflow(v=Z[:1]), r"v is float32 \[1, 3\], expected .* = \[4, 3\]"),
    "a number as time": (
        lambda: meanflow(t=0.5),
        r"t is 0\.5, expected floating-point \[batch\] = \[4\]: .* torch\.full\(\(4,\), 0\.5\)",
    ),
    "one time": (
        lambda: meanflow(s=T[0]),
        r"s is float32 \[\], expected .* = \[4\] \(batch as in z\): s\.reshape\(1\)\.expand\(4\)",
    ),
    "times of a broadcast": (lambda: meanflow(s=T[:, None]), r"s is float32 \[4, 1\], .*: s\.flatten\(\)"),
    "too few times": (lambda: meanflow(s=T[:3]), r"s is float32 \[3\], .*one number per sample is needed, 4 in all"),
    "integer times": (lambda: meanflow(t=T.long()), r"t is int64 \[4\], .*floating point; t\.float\(\) converts it"),
    "images of bytes": (
        lambda: LINE(Z.to(torch.uint8), Z, T),
        r"data is uint8 \[4, 3\], .* data\.float\(\) / 127\.5 - 1",
    ),
    "complex numbers": (
        lambda: meanflow(z=Z + 0j),
        r"z is complex64 \[4, 3\], expected floating-point",
    ),
    "an array": (lambda: meanflow(v=np.ones((4, 3))), r"v is a ndarray of shape \[4, 3\], .*: torch\.as_tensor\(v\)"),
    "a list": (lambda: meanflow(t=[0.1]), r"t is a list, .*: torch\.as_tensor\(t\) converts it"),
    "nothing": (lambda: meanflow(v=None), rf"v is None, expected .*: {ORDER}"),
    "swapped": (lambda: meanflow(Z, net), rf"average_velocity is float32 \[4, 3\], expected a function .*: {ORDER}"),
    "no network": (lambda: meanflow(None), r"average_velocity is None, expected a function \(z, t, s\)"),
    "a class": (lambda: meanflow(z=Tensor), r"z is the class Tensor, expected"),
    "a word": (
        lambda: meanflow(scale="half"),
        r"scale is 'half', expected float or floating-point \[batch\] = \[4\]",
    ),
    "a long word": (lambda: meanflow(scale="x" * 1000), r"scale is a str of 1002 characters, expected"),
    "a share of rows": (lambda: meanflow(moving=2.5), r"moving is 2\.5, expected int or None"),
    "no path": (lambda: one.uniform_grid(3, path=None), r"uniform_grid: path is None, expected a Path"),
    "an argument too few": (lambda: one.meanflow_regression(net, Z, Z, T), rf"missing .* 's'; {ORDER}"),
    "an argument too many": (lambda: one.meanflow_regression(net, Z, Z, T, T, 1.0), rf"too many .*; {ORDER}"),
    "an argument of another name": (lambda: meanflow(scal=1.0), rf"unexpected keyword argument 'scal'; {ORDER}"),
    "other channels": (
        lambda: one.drift_field(Z, Z[:, :2], kernel=one.laplace, coupling=one.softmax_both),
        r"positives is float32 \[4, 2\], expected floating-point \[\*groups, p, channel\] = \[p, 3\] \(groups",
    ),
    "an axis too few": (lambda: one.laplace(T, Z, temperature=1.0), r"x is float32 \[4\], .* 2 are needed|at least 2"),
    "a fixed size": (lambda: takes(Z[:, :2]), r"x is float32 \[4, 2\], expected floating-point \[n, 3\]: reshape x"),
    "no axis": (lambda: takes(Z, y=T[0]), r"y is float32 \[\], .*\[m, \*rest\] or None|at least 1 are needed"),
    "numbers as mask": (lambda: takes(Z, mask=T), r"mask is float32 \[4\], expected bool \[n\] = \[4\]: a comparison"),
    "numbers as index": (lambda: takes(Z, index=T), r"index is float32 \[4\], .*: index\.long\(\) converts it"),
    "weights of others": (lambda: takes(Z, weight=T[:2]), r"weight is float32 \[2\], .*\[n\] = \[4\] \(n as in x\)"),
    "inside of a tuple": (lambda: takes(Z, pairs=(T[:2],)), r"takes: parameter 'pairs' is .*2.*, expected tuple"),
    "one of several": (lambda: parts(Z, T, T[:2]), r"times\[1\] is float32 \[2\], .*\[n\] = \[4\] \(n as in x\)"),
    "one of the keywords": (lambda: takes(Z, late=T[:2]), r"takes: late is float32 \[2\], .*= \[4\] \(n as in x\)"),
    "from two arguments": (
        lambda: one.progressive_regression(net, net, Z, T, T, T, path=LINE, last=T > 2.0, sigma_data=1),
        "unexpected keyword",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_one_line_says_what_came_what_was_expected_and_what_to_do(call, message):
    with pytest.raises(one.ArgumentError, match=message) as refused:
        call()
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, (one.OneStepError, TypeError, ValueError))
    assert isinstance(refused.value.__cause__, TypeError)


def test_each_axis_is_said_to_come_from_the_argument_that_gave_it():
    @typed
    def pairs(x: Particles, y: Float[Tensor, "m channel"], log_k: Float[Tensor, "n m"]) -> None: ...

    with pytest.raises(one.ArgumentError, match=r"\[n, m\] = \[4, 5\] \(n as in x, m as in y\): .* log_k and x and y"):
        pairs(Z, torch.ones(5, 3), torch.ones(5, 4))


def test_jaxtypings_own_report_is_the_cause():
    with pytest.raises(TypeCheckError) as refused:
        meanflow(v=Z[:, :2])
    assert type(refused.value.__cause__) is TypeCheckError
    assert "Parameter annotations" in str(refused.value.__cause__)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "per_sample"])
def test_inside_of_transforms_too(transform):
    def loss(z):
        return one.squared_l2(*one.meanflow_regression(net, z, z[:, :2], T[: len(z)], T[: len(z)]))

    calls = {
        "vmap": lambda: vmap(loss)(Z[None]),
        "grad": lambda: grad(lambda z: loss(z).sum())(Z),
        "jvp": lambda: jvp(loss, (Z,), (Z,)),
        "per_sample": lambda: one.per_sample(loss)(Z),
    }
    rows = 1 if transform == "per_sample" else 4
    with pytest.raises(one.ArgumentError, match=rf"v is float32 \[{rows}, 2\], expected .* = \[{rows}, 3\]"):
        calls[transform]()


def test_tensors_on_two_devices_are_named():
    with pytest.raises(one.ArgumentError, match=r"s is on meta and z on cpu: expected one device; s\.to\(z\.device\)"):
        one.euler(lambda z, t: z, Z, T, T.to("meta"))
    with pytest.raises(one.ArgumentError, match=r"q is on meta and p on cpu"):
        one.squared_l2(Z, Z.to("meta"))


def test_a_result_of_another_shape_is_laid_to_a_function_that_was_given():
    @typed
    def applied(x: Sample, function: one.protocols.Velocity) -> Time:
        return function(x, x)

    with pytest.raises(one.ArgumentError, match=r"applied computed f32\[4,3\].*expected .*batch.* a function"):
        applied(Z, lambda z, t: z)


def test_an_error_of_the_users_own_stays_what_it_is():
    def broken(z, t, s):
        raise TypeError("mine")

    def checked(z, t, s):
        raise TypeCheckError("mine too")

    for network, message in ((broken, "mine"), (checked, "mine too")):
        with pytest.raises(TypeError, match=f"^{message}$") as refused:
            meanflow(network)
        assert not isinstance(refused.value, one.OneStepError)


def test_right_calls_are_not_looked_at_twice(monkeypatch):
    monkeypatch.setattr("onestep_core.typing.refused_call", None)
    assert meanflow().prediction.shape == (4, 3)


def test_optional_arguments_and_results_bind_axes():
    @typed
    def weighted(loss: PerSample, weight: PerSample | None = None) -> PerSample:
        return loss if weight is None else loss * weight

    assert weighted(T).shape == weighted(T, T).shape == (4,)
    with pytest.raises(one.ArgumentError, match=r"weight is float32 \[3\], .*= \[4\] \(batch as in loss\)"):
        weighted(T, T[:3])
