"""Laws of distances and objectives."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onestep_adapters.testing.law import Law, close, drawn, raises, require
from onestep_adapters.testing.strategies import Problem, at, normal, problems, samples, seeds
from onestep_core.diagnostics import GaussianMixture
from onestep_core.errors import ConfigError
from onestep_core.flow import Linear
from onestep_core.protocols import Distance, Path
from onestep_core.regression import Regression, squared_l2
from onestep_core.shapes import per_sample, per_sample_sum

Network: TypeAlias = Callable[..., Tensor]
"""``(z, *times) -> state``: a velocity, a denoiser or an average velocity, as the objective needs."""

Objective: TypeAlias = Callable[[Network, Problem], Regression]


def distance(
    my_distance: Distance, *, symmetric: bool = True, definite: bool = True, tolerance: float = 1e-10
) -> list[Law]:
    """The laws of a distance ``(p, q) -> [batch]``.

    Args:
        my_distance: the distance, numbers bound.
        symmetric: exchanging the two changes nothing.
        definite: positive where the two differ (a cosine distance is not).
        tolerance: of all laws, float64.

    Example:
        >>> from onestep_core.regression import mse
        >>> for law in distance(mse):
        ...     law()
    """

    def zero(p: Tensor) -> None:
        out = my_distance(p, p.clone())
        close(out, torch.zeros_like(out), tolerance, "d(p, p)")

    def positive(p: Tensor, seed: int) -> None:
        out = my_distance(p, p + normal(seed, *p.shape))
        lowest = float(out.min())
        require(lowest >= -tolerance, f"negative: {lowest:.6g}")
        require(not definite or lowest > 0, "zero for two different samples")

    def exchanged(p: Tensor, seed: int) -> None:
        q = p + normal(seed, *p.shape)
        close(my_distance(p, q), my_distance(q, p), tolerance, "d(p, q) against d(q, p)")

    def gradient(p: Tensor) -> None:
        for q in (p.clone(), p + 1e-160, torch.zeros_like(p)):
            x = p.clone().requires_grad_()
            (slope,) = torch.autograd.grad(my_distance(x, q).sum(), x)
            require(bool(slope.isfinite().all()), f"gradient {slope.flatten()[:4].tolist()} at q = p or q = 0")

    def unreduced(p: Tensor, seed: int) -> None:
        q = p + normal(seed, *p.shape)
        out = my_distance(p, q)
        require(out.shape == p.shape[:1], f"{tuple(p.shape)} in, {tuple(out.shape)} out, one number per sample")
        alone = torch.cat([my_distance(p[i : i + 1], q[i : i + 1]) for i in range(len(p))])
        close(out, alone, tolerance, "in a batch against alone")

    def mismatch(p: Tensor) -> None:
        for q in (p[:, :1], p[:1], torch.cat([p, p], dim=1), p.unsqueeze(1)):
            if q.shape != p.shape:
                raises(lambda q=q: my_distance(p, q), f"{tuple(p.shape)} and {tuple(q.shape)} were accepted")

    def dtypes(p: Tensor) -> None:
        kept = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32}
        for given, expected in kept.items():
            out = my_distance(p.to(given), p.to(given) + 1)
            require(out.dtype == expected, f"{given} in, {out.dtype} out, {expected} expected")

    laws = [
        drawn("distance.zero_at_equality", zero, samples()),
        drawn("distance.not_negative", positive, samples(), seeds()),
        drawn("distance.finite_gradient", gradient, samples()),
        drawn("distance.one_number_per_sample", unreduced, samples(), seeds()),
        drawn("distance.shape_mismatch_raises", mismatch, samples(batch=2)),
        drawn("distance.dtype", dtypes, samples()),
    ]
    return [*laws, drawn("distance.symmetric", exchanged, samples(), seeds())] if symmetric else laws


def _parameters(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"first": normal(seed, 5, 8, dtype=dtype), "second": normal(seed + 1, 8, 2, dtype=dtype)}


def _network(parameters: dict[str, Tensor]) -> Network:
    """A smooth network on two dimensions and up to three times."""

    def network(z: Tensor, *times: Tensor) -> Tensor:
        inputs = torch.cat([z, *(t.unsqueeze(1).to(z.dtype) for t in times)], dim=1)
        first, second = parameters["first"].to(z.dtype), parameters["second"].to(z.dtype)
        return torch.tanh(inputs @ first[: inputs.shape[1]]) @ second

    return network


def objective(
    my_objective: Objective,
    *,
    path: Path | None = None,
    mixture: GaussianMixture | None = None,
    exact: Callable[[GaussianMixture, Path], Network] | None = None,
    marginal: bool = False,
    unbiased: bool = False,
    restoring: bool = True,
    independent: bool = True,
    compiled: bool = False,
    tolerance: float = 1e-6,
    fraction: float = 1.0,
) -> list[Law]:
    """The laws of an objective, given as ``(network, problem) -> Regression``.

    ``problem`` holds ``data, noise, z, v, t, m, s``; take what the method needs:
    ``lambda network, p: meanflow_regression(network, p.z, p.v, p.t, p.s)``.

    Args:
        my_objective: the objective.
        path: the path of the problems, the linear one without it.
        mixture: their data, in two dimensions; without it two modes of different weight.
        exact: from mixture and path to the network that the method should find. Needed by the next two.
        marginal: at the exact network, given the *marginal* velocity, the gradient of every sample is zero.
        unbiased: at the exact network, given the pair's velocity and data, the gradient is zero in expectation
            over the posterior (by quadrature).
        restoring: where one of these two is claimed, the gradient at a shifted network points back.
        independent: the samples of a batch do not interact, so that per-sample gradients exist.
        compiled: ``torch.compile(fullgraph=True)`` agrees with eager mode; takes seconds.
        tolerance: of the gradients at the exact network.
        fraction: of the usual number of cases, where one call is slow, such as a teacher that integrates; those
            of the exact network are few already.

    Raises:
        ConfigError: if something is claimed of an exact network that is not given, or ``fraction`` is no share.

    Example:
        >>> from functools import partial
        >>> from onestep_core.objectives import flow_matching_regression
        >>> laws = objective(
        ...     lambda network, p: flow_matching_regression(network, p.z, p.v, p.t),
        ...     exact=lambda mixture, path: partial(mixture.velocity, path=path),
        ...     marginal=True,
        ...     unbiased=True,
        ... )
        >>> for law in laws:
        ...     law()
    """
    if exact is None and (marginal or unbiased):
        raise ConfigError("marginal and unbiased say what holds at the exact network: give it, as exact")
    course = Linear() if path is None else path
    data = mixture or GaussianMixture.isotropic([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], 0.5)
    truth = None if exact is None else exact(data, course)

    def forms(p: Problem, seed: int) -> None:
        for dtype in (torch.float64, torch.float32):
            pair = my_objective(_network(_parameters(seed)), Problem(*(part.to(dtype) for part in p)))
            for name, half in pair._asdict().items():
                require(half.shape == p.z.shape, f"{name} {tuple(half.shape)} of states {tuple(p.z.shape)}")
                require(half.dtype == dtype, f"{dtype} in, {name} {half.dtype}")
        plain = _network(_parameters(seed))
        single = Problem(*(part.float() for part in p))
        target = my_objective(lambda *inputs: plain(*inputs).bfloat16(), single).target
        require(target.dtype == torch.float32, f"a bfloat16 network gives a {target.dtype} target")

    def frozen(p: Problem, seed: int) -> None:
        parameters = {k: v.requires_grad_() for k, v in _parameters(seed).items()}
        leaves = Problem(*(part.clone().requires_grad_() for part in p))
        target = my_objective(_network(parameters), leaves).target
        require(not target.requires_grad, "the target carries a gradient")
        fixed = {k: v.detach() for k, v in parameters.items()}
        _, tangent = torch.func.jvp(lambda w: my_objective(_network(w), p).target, (fixed,), (_parameters(seed + 2),))
        close(tangent, torch.zeros_like(tangent), 0.0, "forward-mode tangent of the target")

    def alive(p: Problem, seed: int) -> None:
        parameters = {k: v.requires_grad_() for k, v in _parameters(seed).items()}
        prediction = my_objective(_network(parameters), p).prediction
        require(prediction.requires_grad, "the prediction carries no gradient")
        slopes = torch.autograd.grad(prediction.square().sum(), list(parameters.values()))
        require(all(float(slope.abs().max()) > 0 for slope in slopes), "the gradient is zero")

    def loss(parameters: dict[str, Tensor], p: Problem) -> Tensor:
        return squared_l2(*my_objective(_network(parameters), p)).sum()

    def summed(p: Problem, seed: int) -> None:
        parameters = _parameters(seed)
        alone = per_sample(torch.func.grad(loss), in_dims=(None, 0))(parameters, p)
        together = torch.func.grad(loss)(parameters, p)
        for name, slope in together.items():
            close(alone[name].sum(0), slope, 1e-9, f"sum of per-sample gradients, {name!r} weights")

    def apart(p: Problem, seed: int) -> None:
        network = _network(_parameters(seed))
        whole = my_objective(network, p)
        part = my_objective(network, Problem(*(tensor[1:] for tensor in p)))
        for name, few, all_ in zip(whole._fields, part, whole, strict=True):
            close(few, all_[1:], 1e-12, f"{name} without the first sample")

    def bare_vmap(p: Problem) -> None:
        def one(p: Problem) -> Tensor:
            return torch.cat(tuple(my_objective(lambda z, *times: 0.5 * z, p)))

        raises(lambda: torch.func.vmap(one)(p), "a bare vmap, which removes the batch axis, was accepted")

    def compiles(p: Problem) -> None:
        def step(parameters: dict[str, Tensor], p: Problem) -> Regression:
            return my_objective(_network(parameters), p)

        torch.compiler.reset()
        parameters = _parameters(0)
        graph = torch.compile(step, fullgraph=True, backend="eager")
        for name, one, other in zip(Regression._fields, graph(parameters, p), step(parameters, p), strict=True):
            close(one, other, 1e-9, f"{name}, compiled")

    def gradients(p: Problem, shift: Tensor) -> Tensor:
        """The gradient of every sample's squared distance in a shift of the exact network."""
        shifts = shift.expand_as(p.z).clone().requires_grad_()
        network: Any = truth
        # A grid of nodes has more rows than the problem it came from; each row has its own shift.
        pair = my_objective(lambda z, *times: network(z, *times) + shifts, p)
        return torch.autograd.grad(squared_l2(*pair).sum(), shifts)[0]

    def with_marginal_velocity(p: Problem, shift: Tensor) -> Tensor:
        return gradients(p._replace(v=data.velocity(p.z, p.t, path=course)), shift)

    def in_expectation(p: Problem, shift: Tensor) -> Tensor:
        nodes = data.quadrature(p.z, p.t, path=course, nodes=3)
        count = nodes.weights.shape[1]
        t, m, s = (time.repeat_interleave(count) for time in (p.t, p.m, p.s))
        spread = at(course, nodes.data.flatten(0, 1), nodes.noise.flatten(0, 1), t, m, s)
        slopes = gradients(spread, shift).unflatten(0, (len(p.t), count))
        return (nodes.weights.unsqueeze(2) * slopes).sum(1)

    def stationary(slopes: Callable[[Problem, Tensor], Tensor]) -> Callable[..., None]:
        def check(p: Problem) -> None:
            at_truth = slopes(p, torch.zeros(2, dtype=torch.float64))
            close(at_truth, torch.zeros_like(at_truth), tolerance, "gradient at the exact network")

        return check

    def back(slopes: Callable[[Problem, Tensor], Tensor]) -> Callable[..., None]:
        def check(p: Problem, seed: int) -> None:
            shift = 0.1 * normal(seed, 2)
            along = per_sample_sum(slopes(p, shift) * shift)
            require(bool((along > 0).all()), f"gradient along the shift: {along.tolist()}")

        return check

    cases, seed = problems(data, course), seeds()
    laws = [
        drawn("objective.shape_and_dtype", forms, cases, seed, fraction=fraction),
        drawn("objective.target_has_no_gradient", frozen, cases, seed, fraction=fraction),
        drawn("objective.prediction_has_gradient", alive, cases, seed, fraction=fraction),
        drawn("objective.bare_vmap_raises", bare_vmap, cases, fraction=0.1 * fraction),
    ]
    if independent:
        laws.append(drawn("objective.per_sample_gradients", summed, cases, seed, fraction=fraction))
        laws.append(drawn("objective.samples_are_independent", apart, cases, seed, fraction=fraction))
    laws += [drawn("objective.compiles", compiles, cases, fraction=0.01)] if compiled else []
    # An exact network costs as much for one state as for a hundred.
    many, some = problems(data, course, batch=32), problems(data, course, batch=8)
    wanted = (
        (marginal, "per_sample", with_marginal_velocity, many),
        (unbiased, "in_expectation", in_expectation, some),
    )
    for claimed, kind, slopes, states in wanted:
        if not claimed:
            continue
        name = f"objective.stationary_at_the_oracle_{kind}"
        laws.append(drawn(name, stationary(slopes), states, fraction=0.05))
        if restoring:
            laws.append(drawn(f"objective.points_back_{kind}", back(slopes), states, seed, fraction=0.05))
    return laws
