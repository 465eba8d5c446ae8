"""Laws of fields, kernels and couplings."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from onestep_adapters.testing.law import Law, close, drawn, raises, require
from onestep_adapters.testing.strategies import Clouds, clouds, normal, seeds, tensors
from onestep_core.errors import ConfigError
from onestep_core.protocols import Coupling, Field, Kernel, checked_drift


def _rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(seed, dim, dim)).Q


def _shuffle(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def field(
    my_field: Field,
    *,
    antisymmetric: bool = True,
    balanced: bool = True,
    explicit_negatives: bool = True,
    self_repelling: bool = True,
    translation: bool = True,
    rotation: bool = True,
    scale_free: bool = False,
    grouped: bool = True,
    tolerance: float = 1e-12,
    float32_tolerance: float = 1e-3,
) -> list[Law]:
    """The laws of a field ``(samples, positives, negatives) -> Drift``.

    Args:
        my_field: the field, numbers bound.
        antisymmetric: exchanging positives and (explicit) negatives changes the sign.
        balanced: equal positives and (explicit) negatives, nothing masked, give zero.
        explicit_negatives: it takes negatives. Without this claim the two before it are not checked.
        self_repelling: it takes ``negatives=None``, the samples repelling one another.
        translation: moving all points by one vector changes nothing.
        rotation: turning all points turns the displacements.
        scale_free: multiplying all points multiplies ``scale`` and leaves ``field`` as it is.
        grouped: leading axes hold independent groups.
        tolerance: of the exact laws, relative to the largest displacement or one; the geometric ones have a
            thousand times as much.
        float32_tolerance: between float32 and float64.

    Returns:
        Named laws, each called without arguments.

    Raises:
        ConfigError: if it takes neither negatives nor none.

    Example:
        >>> from onestep_core.precision import without_gradient, full
        >>> from onestep_core.protocols import Drift
        >>> def towards_the_mean(samples, positives, negatives=None):
        ...     away = samples if negatives is None else negatives
        ...     step = full(positives).mean(-2, keepdim=True) - full(away).mean(-2, keepdim=True)
        ...     return Drift(samples, without_gradient(step.expand_as(samples)), torch.ones(()), torch.ones(1))
        >>> for law in field(towards_the_mean):
        ...     law()
    """
    if not (explicit_negatives or self_repelling):
        raise ConfigError("a field takes negatives, or repels the samples from one another, or both: claim one")
    geometric = 1e3 * tolerance

    def move(*points: Tensor) -> Tensor:
        return checked_drift(my_field(*points)).field

    def calls(c: Clouds) -> list[tuple[str, tuple[Tensor, ...]]]:
        """The ways in which the field may be called on one case."""
        explicit = [("negatives given", (c.samples, c.positives, c.negatives))] if explicit_negatives else []
        return [*explicit, ("no negatives", (c.samples, c.positives))] if self_repelling else explicit

    def antisymmetry(c: Clouds) -> None:
        there, back = move(c.samples, c.positives, c.negatives), move(c.samples, c.negatives, c.positives)
        close(there, -back, tolerance, "field(x, p, n) against -field(x, n, p)")

    def equal_sets(c: Clouds) -> None:
        still = move(c.samples, c.positives, c.positives.clone())
        close(still, torch.zeros_like(c.samples), tolerance, "field(x, p, p)")
        still = move(c.positives, c.positives.clone(), c.positives.clone())
        close(still, torch.zeros_like(c.positives), tolerance, "field(p, p, p)")

    def rows(c: Clouds, seed: int) -> None:
        order = _shuffle(c.samples.shape[-2], seed)
        for way, (samples, *others) in calls(c):
            plain = move(samples, *others)
            close(move(samples[order], *others), plain[order], geometric, f"shuffled samples, {way}")

    def columns(c: Clouds, seed: int) -> None:
        for way, (samples, *others) in calls(c):
            shuffled = [points[_shuffle(points.shape[-2], seed)] for points in others]
            close(move(samples, *shuffled), move(samples, *others), geometric, f"shuffled targets, {way}")

    def translated(c: Clouds, seed: int) -> None:
        shift = 3 * normal(seed, c.samples.shape[-1])
        for way, sets in calls(c):
            moved = move(*(points + shift for points in sets))
            close(moved, move(*sets), geometric, f"all points shifted, {way}")

    def rotated(c: Clouds, seed: int) -> None:
        turn = _rotation(c.samples.shape[-1], seed)
        for way, sets in calls(c):
            moved = move(*(points @ turn for points in sets))
            close(moved, move(*sets) @ turn, geometric, f"all points turned, {way}")

    def scaled(c: Clouds, factor: float) -> None:
        for way, sets in calls(c):
            plain, large = (checked_drift(my_field(*(points * size for points in sets))) for size in (1, factor))
            close(large.field, plain.field, geometric, f"all points times {factor}, field, {way}")
            close(large.scale / factor, plain.scale, geometric, f"all points times {factor}, scale, {way}")

    def groups(c: Clouds) -> None:
        for way, sets in calls(c):
            together = move(*sets)
            for index in range(c.samples.shape[0]):
                alone = move(*(points[index] for points in sets))
                close(together[index], alone, geometric, f"group {index} beside another against alone, {way}")

    def dtypes(c: Clouds) -> None:
        kept = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32}
        for given, expected in kept.items():
            for way, sets in calls(c):
                out = move(*(points.to(given) for points in sets))
                require(out.dtype == expected, f"{given} in, {out.dtype} out, {expected} expected, {way}")
                require(
                    out.shape == c.samples.shape,
                    f"displacements {tuple(out.shape)} of samples {tuple(c.samples.shape)}, {way}",
                )

    def precision(c: Clouds) -> None:
        for way, sets in calls(c):
            single = move(*(points.float() for points in sets))
            close(single, move(*sets), float32_tolerance, f"float32 against float64, {way}")

    def frozen(c: Clouds, directions: Tensor) -> None:
        for way, sets in calls(c):
            drift = checked_drift(my_field(*(points.clone().requires_grad_() for points in sets)))
            require(not drift.field.requires_grad, f"the displacement carries a gradient, {way}")
            require(drift.samples.requires_grad, f"the samples lost their gradient, {way}")
            along = tuple(directions[: len(points)] for points in sets)
            _, tangent = torch.func.jvp(move, sets, along)
            close(tangent, torch.zeros_like(tangent), 0.0, f"forward-mode tangent of the displacement, {way}")

    plane, seed = clouds(), seeds()
    laws = [
        drawn("field.samples_in_any_order", rows, plane, seed),
        drawn("field.targets_in_any_order", columns, plane, seed),
        drawn("field.dtype", dtypes, plane),
        drawn("field.float32_near_float64", precision, plane),
        drawn("field.no_gradient", frozen, clouds(dim=2), tensors(6, 2)),
    ]
    if explicit_negatives:
        laws += [drawn("field.antisymmetric", antisymmetry, plane)] if antisymmetric else []
        laws += [drawn("field.equal_sets_give_zero", equal_sets, plane)] if balanced else []
    laws += [drawn("field.translation", translated, plane, seed)] if translation else []
    laws += [drawn("field.rotation", rotated, plane, seed)] if rotation else []
    laws += [drawn("field.scale_free", scaled, plane, st.sampled_from([0.25, 3.0, 100.0]))] if scale_free else []
    laws += [drawn("field.groups", groups, clouds(groups=(2,)))] if grouped else []
    return laws


def kernel(
    my_kernel: Kernel,
    *,
    stationary: bool = True,
    isotropic: bool = True,
    positive_definite: bool = True,
    normalised: bool = True,
    tolerance: float = 1e-10,
) -> list[Law]:
    """The laws of a kernel ``(x, y) -> log k``, ``[.., n, m]``.

    Args:
        my_kernel: the kernel, numbers bound.
        stationary: it depends on ``x - y`` alone.
        isotropic: turning all points changes nothing.
        positive_definite: the matrix ``k(x_i, x_j)`` has no eigenvalue below ``-tolerance``.
        normalised: ``log k(x, x) = 0``, and nowhere more.
        tolerance: of all laws, float64.

    Example:
        >>> from onestep_core.precision import full
        >>> for law in kernel(lambda x, y: -torch.cdist(full(x), full(y))):
        ...     law()
    """

    def shape(c: Clouds) -> None:
        out = my_kernel(c.samples, c.positives)
        expected = (*c.samples.shape[:-1], c.positives.shape[-2])
        require(out.shape == expected, f"log kernel {tuple(out.shape)}, expected {expected}")

    def symmetric(c: Clouds) -> None:
        there, back = my_kernel(c.samples, c.positives), my_kernel(c.positives, c.samples)
        close(there, back.mT, tolerance, "log k(x, y) against log k(y, x)")

    def batched(c: Clouds) -> None:
        together = my_kernel(c.samples, c.positives)
        alone = torch.stack([my_kernel(x, y) for x, y in zip(c.samples, c.positives, strict=True)])
        close(together, alone, tolerance, "groups together against one by one")

    def shifted(c: Clouds, seed: int) -> None:
        shift = 3 * normal(seed, c.samples.shape[-1])
        moved = my_kernel(c.samples + shift, c.positives + shift)
        close(moved, my_kernel(c.samples, c.positives), tolerance, "both sets shifted")

    def turned(c: Clouds, seed: int) -> None:
        turn = _rotation(c.samples.shape[-1], seed)
        moved = my_kernel(c.samples @ turn, c.positives @ turn)
        close(moved, my_kernel(c.samples, c.positives), tolerance, "both sets turned")

    def definite(c: Clouds) -> None:
        points = torch.cat([c.samples, c.positives, c.samples[:1]])
        lowest = float(torch.linalg.eigvalsh(my_kernel(points, points).exp())[0])
        require(lowest >= -max(tolerance, 1e-7), f"lowest eigenvalue {lowest:.3g}")

    def highest(c: Clouds) -> None:
        own = my_kernel(c.samples, c.samples).diagonal(dim1=-2, dim2=-1)
        close(own, torch.zeros_like(own), max(tolerance, 1e-6), "log k(x, x)")
        top = float(my_kernel(c.samples, c.positives).max())
        require(top <= tolerance, f"log k(x, y) = {top:.6g} exceeds log k(x, x)")

    def dtypes(c: Clouds) -> None:
        kept = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32}
        for given, expected in kept.items():
            out = my_kernel(c.samples.to(given), c.positives.to(given))
            require(out.dtype == expected, f"{given} in, {out.dtype} out, {expected} expected")

    def finite(c: Clouds) -> None:
        x = c.samples.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(my_kernel(x, c.samples).sum(), x)
        require(bool(gradient.isfinite().all()), "the gradient is not finite where two points coincide")

    def mismatch(c: Clouds) -> None:
        wide = torch.cat([c.positives, c.positives], dim=-1)  # one channel against two would broadcast
        raises(lambda: my_kernel(c.samples, wide), "points with different numbers of channels were accepted")

    plane, seed = clouds(), seeds()
    laws = [
        drawn("kernel.shape", shape, clouds(groups=(2,))),
        drawn("kernel.symmetric", symmetric, plane),
        drawn("kernel.groups", batched, clouds(groups=(2,))),
        drawn("kernel.dtype", dtypes, plane),
        drawn("kernel.finite_gradient", finite, plane),
        drawn("kernel.channel_mismatch_raises", mismatch, plane),
    ]
    laws += [drawn("kernel.translation", shifted, plane, seed)] if stationary else []
    laws += [drawn("kernel.rotation", turned, plane, seed)] if isotropic else []
    laws += [drawn("kernel.positive_definite", definite, plane)] if positive_definite else []
    laws += [drawn("kernel.normalised", highest, plane)] if normalised else []
    return laws


class _Dense:
    """The two reductions of a kernel matrix, at once or in blocks of rows."""

    def __init__(self, log_k: Tensor, block: int | None = None) -> None:
        self.blocks = log_k.split(log_k.shape[-2] if block is None else block, dim=-2)

    def rows(self, column: Tensor | None = None) -> Tensor:
        shift = 0.0 if column is None else column.unsqueeze(-2)
        return torch.cat([(block - shift).logsumexp(-1) for block in self.blocks], dim=-1)

    def columns(self, row: Tensor | None = None) -> Tensor:
        counts = [block.shape[-2] for block in self.blocks]
        shifts: Any = [0.0] * len(counts) if row is None else row.unsqueeze(-1).split(counts, dim=-2)
        parts = [(block - shift).logsumexp(-2) for block, shift in zip(self.blocks, shifts, strict=True)]
        return torch.stack(parts).logsumexp(0)


def coupling(
    my_coupling: Coupling,
    *,
    row_sum: float | None = None,
    column_sum: float | None = None,
    equal_marginals: bool = False,
    tolerance: float = 1e-10,
) -> list[Law]:
    """The laws of a coupling ``(rows, columns) -> Potentials``.

    Args:
        my_coupling: the coupling, numbers bound.
        row_sum: what every row of the affinity sums to, if it does.
        column_sum: what every column sums to, if it does.
        equal_marginals: all rows have one sum and all columns have one sum, whatever they are.
        tolerance: of all laws, float64.

    Example:
        >>> from onestep_core.protocols import Potentials
        >>> def rows_only(rows, columns):
        ...     row = rows()
        ...     return Potentials(row, torch.zeros_like(columns()))
        >>> for law in coupling(rows_only, row_sum=1.0):
        ...     law()
    """

    def affinity(log_k: Tensor, block: int | None = None) -> Tensor:
        dense = _Dense(log_k, block)
        row, column = my_coupling(dense.rows, dense.columns)
        require(row.shape == log_k.shape[:-1], f"row potential {tuple(row.shape)} of {tuple(log_k.shape)}")
        expected = (*log_k.shape[:-2], log_k.shape[-1])
        require(column.shape == expected, f"column potential {tuple(column.shape)} of {tuple(log_k.shape)}")
        return (log_k - row.unsqueeze(-1) - column.unsqueeze(-2)).exp()

    def streamed(log_k: Tensor) -> None:
        close(affinity(log_k, 2), affinity(log_k), tolerance, "blocks of two rows against the whole")

    def reordered(log_k: Tensor, seed: int) -> None:
        first, second = _shuffle(log_k.shape[-2], seed), _shuffle(log_k.shape[-1], seed + 1)
        moved = affinity(log_k[..., first, :][..., second])
        close(moved, affinity(log_k)[..., first, :][..., second], tolerance, "rows and columns shuffled")

    def groups(log_k: Tensor, other: Tensor) -> None:
        together = affinity(torch.stack([log_k, other]))
        close(together, torch.stack([affinity(log_k), affinity(other)]), tolerance, "groups together and alone")

    def row_sums(log_k: Tensor) -> None:
        sums = affinity(log_k).sum(-1)
        close(sums, torch.full_like(sums, row_sum or 0.0), tolerance, "row sums")

    def column_sums(log_k: Tensor) -> None:
        sums = affinity(log_k).sum(-2)
        close(sums, torch.full_like(sums, column_sum or 0.0), tolerance, "column sums")

    def marginals(log_k: Tensor) -> None:
        for axis, name in ((-1, "row"), (-2, "column")):
            sums = affinity(log_k).sum(axis)
            close(sums, sums[..., :1].expand_as(sums), tolerance, f"{name} sums against the first of them")

    wide, square = tensors(5, 7), tensors(5, 7)
    laws = [
        drawn("coupling.streamed_equals_dense", streamed, wide),
        drawn("coupling.any_order", reordered, wide, seeds()),
        drawn("coupling.groups", groups, wide, square),
    ]
    laws += [drawn("coupling.row_sums", row_sums, wide)] if row_sum is not None else []
    laws += [drawn("coupling.column_sums", column_sums, wide)] if column_sum is not None else []
    laws += [drawn("coupling.equal_marginals", marginals, wide)] if equal_marginals else []
    return laws
