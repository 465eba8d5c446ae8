"""Laws of paths, derivatives, preconditionings and average velocities."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from onestep_adapters.testing.law import Law, close, drawn, require
from onestep_adapters.testing.strategies import Problem, normal, seeds, spread_times, tensors
from onestep_core.flow import heun, integrate, jump, single_pass
from onestep_core.protocols import AverageVelocity, Derivative, Path, Velocity
from onestep_core.shapes import expand_like, per_sample


def path(my_path: Path, *, clean_end: float = 0.01, margin: float = 0.02, tolerance: float = 1e-6) -> list[Law]:
    """The laws of a path ``z = alpha(t) data + sigma(t) noise``.

    Args:
        my_path: the path; one that can be called, and has ``prior``, is checked there too.
        clean_end: how far ``(alpha, sigma)`` may be from ``(1, 0)`` at the data end.
        margin: times are drawn this fraction of the range away from its ends.
        tolerance: relative, of the rates against one-sided differences of second order.

    Example:
        >>> from onestep_core.flow import Linear
        >>> for law in path(Linear()):
        ...     law()
    """

    def end(time: float) -> tuple[Tensor, Tensor]:
        return my_path.coefficients(torch.full((1,), time, dtype=torch.float64))

    def data_end() -> None:
        alpha, sigma = end(my_path.data_time)
        close(alpha, torch.ones_like(alpha), clean_end, "alpha at the data end")
        close(sigma, torch.zeros_like(sigma), clean_end, "sigma at the data end")

    def noise_end() -> None:
        noise = normal(0, 2, 3)
        expected = end(my_path.noise_time)[1].unsqueeze(1) * noise
        close(my_path.prior(noise), expected, 1e-12, "prior(noise) against sigma(noise_time) noise")  # type: ignore[attr-defined]

    def noisier(seed: int) -> None:
        t = (spread_times(my_path, 8, seed, margin=margin) - my_path.data_time).abs().sort().values
        direction = math.copysign(1.0, my_path.noise_time - my_path.data_time)
        alpha, sigma = my_path.coefficients(my_path.data_time + direction * t)
        ratio = alpha / sigma
        require(bool((ratio.diff() <= 1e-12 * ratio[:-1]).all()), f"alpha / sigma rises: {ratio.tolist()}")

    def rates(seed: int) -> None:
        t = spread_times(my_path, 4, seed, margin=margin)
        step = 1e-5 * t.abs().clamp(min=1e-2)
        near = [my_path.coefficients(t + k * step) for k in range(-2, 3)]
        for index, (name, rate) in enumerate(zip(("alpha", "sigma"), my_path.rates(t), strict=True)):
            behind, before, here, after, ahead = (coefficients[index] for coefficients in near)
            # A path in pieces has two rates where they meet.
            left = (3 * here - 4 * before + behind) / (2 * step)
            right = (4 * after - 3 * here - ahead) / (2 * step)
            nearer = torch.where((rate - left).abs() < (rate - right).abs(), left, right)
            close(rate, nearer, tolerance, f"rate of {name} against a difference to one side")

    def point(seed: int) -> None:
        data, noise, t = normal(seed, 3, 2, 2), normal(seed + 1, 3, 2, 2), spread_times(my_path, 3, seed)
        z, v = my_path(data, noise, t)  # type: ignore[operator]
        for name, value, (on_data, on_noise) in (
            ("z", z, my_path.coefficients(t)),
            ("v", v, my_path.rates(t)),
        ):
            close(value, expand_like(on_data, z) * data + expand_like(on_noise, z) * noise, 1e-12, name)

    def dtypes(seed: int) -> None:
        t = spread_times(my_path, 3, seed, margin=margin)
        for dtype in (torch.float32, torch.float64):
            for number in (*my_path.coefficients(t.to(dtype)), *my_path.rates(t.to(dtype))):
                require(number.dtype == dtype, f"times {dtype}, coefficient {number.dtype}")
                require(number.shape == t.shape, f"times {tuple(t.shape)}, coefficient {tuple(number.shape)}")

    laws = [
        drawn("path.rates_are_derivatives", rates, seeds()),
        drawn("path.ever_noisier", noisier, seeds()),
        drawn("path.dtype", dtypes, seeds()),
    ]
    if math.isfinite(my_path.data_time):
        laws.append(Law("path.data_end", data_end))
    if math.isfinite(my_path.noise_time) and hasattr(my_path, "prior"):
        laws.append(Law("path.prior", noise_end))
    if callable(my_path):
        laws.append(drawn("path.state_and_velocity", point, seeds()))
    return laws


def _known(weight: Tensor, z: Tensor, t: Tensor, s: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A function with a known derivative: a pytree of ``w sin(z) t`` and ``w s^2 z^2``."""
    return {"wave": weight * z.sin() * t[:, None]}, weight * s[:, None].square() * z.square()


def _known_tangent(
    weight: Tensor, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    (z, t, s), (dz, dt, ds) = primals, tangents
    t, s, dt, ds = t[:, None], s[:, None], dt[:, None], ds[:, None]
    wave = weight * (z.cos() * dz * t + z.sin() * dt)
    return {"wave": wave}, weight * (2 * s * ds * z.square() + s.square() * 2 * z * dz)


def derivative(
    my_derivative: Derivative, *, frozen: bool = True, transforms: bool = True, tolerance: float = 1e-10
) -> list[Law]:
    """The laws of a derivative ``(function, primals, tangents) -> (value, tangent)``.

    Args:
        my_derivative: the derivative, numbers bound.
        frozen: the tangent has no gradient; otherwise it must have the right one.
        transforms: it also runs under ``shapes.per_sample``.
        tolerance: of the tangent, relative; the error of a difference quotient belongs here.

    Example:
        >>> from onestep_core.flow import with_graph
        >>> for law in derivative(with_graph, frozen=False):
        ...     law()
    """

    def setting(seed: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        z, dz = normal(seed, 4, 3), normal(seed + 1, 4, 3)
        t, s, dt, ds = normal(seed + 2, 4, 4)
        return torch.tensor(1.5, dtype=torch.float64, requires_grad=True), (z, t, s), (dz, dt, ds)

    def both(weight: Tensor, primals: Any, tangents: Any, **keywords: Any) -> tuple[Any, Any]:
        return my_derivative(partial(_known, weight), primals, tangents, **keywords)

    def compare(actual: Any, expected: Any, allowed: float, what: str, rows: int | None = None) -> None:
        require(
            isinstance(actual, tuple) and len(actual) == 2 and isinstance(actual[0], dict),
            f"{what}: the function returned (dict, tensor), the derivative {type(actual).__name__}",
        )
        close(actual[0]["wave"][:rows], expected[0]["wave"][:rows], allowed, f"{what}, w sin(z) t")
        close(actual[1][:rows], expected[1][:rows], allowed, f"{what}, w s^2 z^2")

    def value(seed: int) -> None:
        weight, primals, tangents = setting(seed)
        out, _ = both(weight, primals, tangents)
        compare(out, _known(weight, *primals), 1e-12, "value")
        total = out[0]["wave"].sum() + out[1].sum()
        require(total.requires_grad, "the value lost its graph")
        (gradient,) = torch.autograd.grad(total, weight)
        close(gradient, (total / weight).detach(), 1e-10, "gradient of the value in the weight")

    def tangent(seed: int) -> None:
        weight, primals, tangents = setting(seed)
        _, out = both(weight, primals, tangents)
        compare(out, _known_tangent(weight, primals, tangents), tolerance, "tangent")

    def graph(seed: int) -> None:
        weight, primals, tangents = setting(seed)
        primals = tuple(primal.requires_grad_() for primal in primals)
        _, out = both(weight, primals, tangents)
        total = out[0]["wave"].sum() + out[1].sum()
        if frozen:
            require(not total.requires_grad, "the tangent carries a gradient")
            fixed = tuple(primal.detach() for primal in primals)
            _, moved = torch.func.jvp(
                lambda w: both(w, fixed, tangents)[1][1], (weight.detach(),), (torch.ones_like(weight.detach()),)
            )
            close(moved, torch.zeros_like(moved), 0.0, "forward-mode tangent of the tangent")
        else:
            require(total.requires_grad, "the tangent lost its graph")
            (gradient,) = torch.autograd.grad(total, weight)
            close(gradient, (total / weight).detach(), 1e-10, "gradient of the tangent in the weight")

    def moving(seed: int, rows: int) -> None:
        weight, primals, tangents = setting(seed)
        out, along = both(weight, primals, tangents, moving=rows)
        compare(out, _known(weight, *primals), 1e-12, f"value with moving={rows}")
        compare(along, _known_tangent(weight, primals, tangents), tolerance, f"moving={rows}", rows)

    def one_by_one(seed: int) -> None:
        weight, primals, tangents = setting(seed)
        alone = per_sample(lambda *six: both(weight, six[:3], six[3:])[1][1])(*primals, *tangents)
        close(alone[:, 0], both(weight, primals, tangents)[1][1], max(tolerance, 1e-10), "per sample, batched")

    laws = [
        drawn("derivative.value", value, seeds()),
        drawn("derivative.tangent", tangent, seeds()),
        drawn("derivative.tangent_graph", graph, seeds()),
        drawn("derivative.moving", moving, seeds(), st.integers(0, 4)),
    ]
    return [*laws, drawn("derivative.per_sample", one_by_one, seeds())] if transforms else laws


def preconditioning(
    wrap: Callable[[Velocity], Velocity],
    *,
    boundary: float | None = None,
    unit_variance: float | None = None,
    tolerance: float = 1e-10,
) -> list[Law]:
    """The laws of a preconditioning ``f(z, sigma) = c_skip z + c_out F(c_in z, sigma)``.

    Args:
        wrap: from a raw network to the function, numbers bound.
        boundary: the noise level at which the function is the identity for every network.
        unit_variance: the standard deviation of the data for which input and target of the raw network have
            unit variance at every noise level.
        tolerance: of all laws, float64.

    Example:
        >>> from onestep_core.flow import edm
        >>> for law in preconditioning(partial(edm, sigma_data=0.5), unit_variance=0.5):
        ...     law()
    """

    def levels(seed: int) -> Tensor:
        return (2 * normal(seed, 4) - 1).exp() + (boundary or 0.0)

    def raw(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(3 * z + sigma[:, None])

    def identity(z: Tensor) -> None:
        sigma = torch.full((4,), boundary or 0.0, dtype=z.dtype)
        close(wrap(lambda z, sigma: raw(z, sigma) + 7)(z, sigma), z, tolerance, "f(z, boundary) against z")

    def affine(z: Tensor, seed: int) -> None:
        sigma = levels(seed)

        def mixed(z: Tensor, sigma: Tensor) -> Tensor:
            return 0.3 * raw(z, sigma) + 0.7 * z

        expected = 0.3 * wrap(raw)(z, sigma) + 0.7 * wrap(lambda z, _: z)(z, sigma)
        close(wrap(mixed)(z, sigma), expected, tolerance, "f of a mixture of networks")

    def gradient(z: Tensor, seed: int) -> None:
        weight = torch.ones((), dtype=z.dtype, requires_grad=True)
        out = wrap(lambda z, sigma: weight * raw(z, sigma))(z, levels(seed))
        require(out.requires_grad, "no gradient reaches the network")
        (slope,) = torch.autograd.grad(out.square().sum(), weight)
        require(bool(slope.isfinite()) and float(slope.abs()) > 0, f"gradient in the network {float(slope)}")

    def variance(seed: int) -> None:
        sigma, seen = levels(seed), list[Tensor]()

        def spy(answer: float) -> Velocity:
            def network(z: Tensor, sigma: Tensor, /) -> Tensor:
                seen.append(z)
                return torch.full_like(z, answer)

            return network

        one = torch.ones(4, 1, dtype=torch.float64)
        skip = wrap(spy(0.0))(one, sigma)
        out, scale = wrap(spy(1.0))(one, sigma) - skip, seen[0]
        spread = (unit_variance or 0.0) ** 2
        total = spread + sigma[:, None].square()
        close(scale.square() * total, one, tolerance, "variance of the network's input")
        target = ((1 - skip).square() * spread + (skip * sigma[:, None]).square()) / out.square()
        close(target, one, tolerance, "variance of the network's target")

    def dtypes(z: Tensor, seed: int) -> None:
        kept = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32}
        for given, expected in kept.items():
            out = wrap(lambda z, _: z)(z.to(given), levels(seed).to(given))
            require(out.dtype == expected, f"{given} in, {out.dtype} out, {expected} expected")

    state = tensors(4, 2)
    laws = [
        drawn("preconditioning.affine_in_the_network", affine, state, seeds()),
        drawn("preconditioning.gradient_reaches_the_network", gradient, state, seeds()),
        drawn("preconditioning.dtype", dtypes, state, seeds()),
    ]
    laws += [drawn("preconditioning.boundary", identity, state)] if boundary is not None else []
    laws += [drawn("preconditioning.unit_variance", variance, seeds())] if unit_variance is not None else []
    return laws


def average_velocity(
    network: AverageVelocity,
    velocity: Velocity,
    *,
    states: st.SearchStrategy[Problem],
    derivative: Derivative = single_pass,
    steps: int = 64,
    tolerance: float = 1e-3,
) -> list[Law]:
    """The laws of an average velocity, for trained networks and for oracles.

    A network that takes its times in another order (MeanFlow's code: target first) fails here, also when
    its shapes and its training loss looked right.

    Args:
        network: ``(z, t, s) -> mean velocity`` from ``t`` to ``s``.
        velocity: ``(z, t) -> dz/dt`` of the same flow.
        states: where to check, see :func:`onestep_adapters.testing.strategies.problems`.
        derivative: for the two identities with a derivative.
        steps: of Heun's method that a jump is compared with.
        tolerance: root mean square error over a batch, relative to that of the right side.

    Example:
        >>> from onestep_adapters.testing.strategies import problems
        >>> from onestep_core.diagnostics import GaussianMixture
        >>> from onestep_core.flow import Linear
        >>> one, line = GaussianMixture.isotropic([1.0], [[2.0]], 0.5), Linear()
        >>> network, velocity = partial(one.average_velocity, path=line, steps=4), partial(one.velocity, path=line)
        >>> for law in average_velocity(network, velocity, states=problems(one, line)):
        ...     law()
    """

    def near(actual: Tensor, expected: Tensor, what: str) -> None:
        error = float((actual - expected).detach().double().square().mean().sqrt())
        size = float(expected.detach().double().square().mean().sqrt())
        require(
            error <= tolerance * size,
            f"{what}: relative error {error / max(size, 1e-300):.3g}, allowed {tolerance:.3g}",
        )

    def limit(p: Problem) -> None:
        near(network(p.z, p.t, p.t), velocity(p.z, p.t), "a(z, t, t) against v(z, t)")

    def semigroup(p: Problem) -> None:
        two = jump(network, jump(network, p.z, p.t, p.m), p.m, p.s)
        near(jump(network, p.z, p.t, p.s) - p.z, two - p.z, "one jump against two")

    def eulerian(p: Problem) -> None:
        v = velocity(p.z, p.t)
        tangents = (v, torch.ones_like(p.t), torch.zeros_like(p.s))
        value, slope = derivative(network, (p.z, p.t, p.s), tangents)
        near(value, v + expand_like(p.s - p.t, v) * slope, "a against v + (s - t) D_t a")

    def lagrangian(p: Problem) -> None:
        tangents = (torch.zeros_like(p.z), torch.zeros_like(p.t), torch.ones_like(p.s))
        value, slope = derivative(network, (p.z, p.t, p.s), tangents)
        v = velocity(p.z + expand_like(p.s - p.t, p.z) * value, p.s)
        near(value, v - expand_like(p.s - p.t, v) * slope, "a against v(X, s) - (s - t) D_s a")

    def transport(p: Problem) -> None:
        def step(z: Tensor, first: Tensor, last: Tensor, /) -> Tensor:
            return heun(velocity, z, p.t + first * (p.s - p.t), p.t + last * (p.s - p.t))

        end = integrate(step, p.z, torch.linspace(0, 1, steps + 1, dtype=p.t.dtype))
        near(jump(network, p.z, p.t, p.s) - p.z, end - p.z, f"one jump against {steps} steps")

    claims: dict[str, Callable[[Problem], None]] = {
        "limit": limit,
        "semigroup": semigroup,
        "eulerian": eulerian,
        "lagrangian": lagrangian,
        "transport": transport,
    }
    return [drawn(f"average_velocity.{name}", body, states, fraction=0.05) for name, body in claims.items()]
