"""The losses of pretraining equal formulas written out here, on fixed tensors, to 1e-12, and so do their gradients."""

import math

import pytest
import torch

from onestep_adapters.encoders import (
    info_nce,
    masked_reconstruction,
    nt_xent,
    patchify,
    symmetric_info_nce,
    unpatchify,
)
from onestep_core.errors import ConfigError
from tests.adapters.tiny import seeded

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def cosine(one, other):
    return (one @ other) / (one.norm() * other.norm())


def written_info_nce(q, k, n, tau):
    found = []
    for i in range(len(q)):
        top = torch.exp(cosine(q[i], k[i]) / tau)
        found.append(-torch.log(top / (top + sum(torch.exp(cosine(q[i], other) / tau) for other in n))))
    return torch.stack(found)


def written_symmetric(q, k, tau):
    found = []
    for i in range(len(q)):
        total = sum(torch.exp(cosine(q[i], other) / tau) for other in k)
        found.append(-2 * tau * torch.log(torch.exp(cosine(q[i], k[i]) / tau) / total))
    return torch.stack(found)


def written_nt_xent(first, second, tau):
    z, n = torch.cat([first, second]), len(first)
    found = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        total = sum(torch.exp(cosine(z[i], z[j]) / tau) for j in range(2 * n) if j != i)
        found.append(-torch.log(torch.exp(cosine(z[i], z[partner]) / tau) / total))
    return torch.stack(found)


def written_masked(prediction, patches, mask, normalize):
    found = []
    for i in range(len(patches)):
        errors = []
        for p in range(patches.shape[1]):
            if mask[i, p]:
                target = patches[i, p]
                if normalize:
                    mean = target.sum() / len(target)
                    variance = ((target - mean) ** 2).sum() / (len(target) - 1)
                    target = (target - mean) / (variance + 1e-6) ** 0.5
                errors.append(((prediction[i, p] - target) ** 2).sum() / len(target))
        found.append(sum(errors) / len(errors))
    return torch.stack(found)


MASK = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
CASES = {
    "info_nce": (
        lambda q, k, n: info_nce(q, k, n, temperature=0.3),
        lambda q, k, n: written_info_nce(q, k, n, 0.3),
        (rows(5, 7), rows(5, 7, seed=1), rows(9, 7, seed=2)),
    ),
    "info_nce by default": (
        info_nce,
        lambda q, k, n: written_info_nce(q, k, n, 0.07),
        (rows(5, 7), rows(5, 7, seed=1), rows(9, 7, seed=2)),
    ),
    "symmetric_info_nce": (
        lambda q, k: symmetric_info_nce(q, k, temperature=0.7),
        lambda q, k: written_symmetric(q, k, 0.7),
        (rows(5, 7), rows(5, 7, seed=1)),
    ),
    "symmetric_info_nce by default": (
        symmetric_info_nce,
        lambda q, k: written_symmetric(q, k, 0.2),
        (rows(5, 7), rows(5, 7, seed=1)),
    ),
    "nt_xent": (
        lambda one, other: nt_xent(one, other, temperature=0.1),
        lambda one, other: written_nt_xent(one, other, 0.1),
        (rows(4, 6), rows(4, 6, seed=1)),
    ),
    "nt_xent by default": (
        nt_xent,
        lambda one, other: written_nt_xent(one, other, 0.5),
        (rows(4, 6), rows(4, 6, seed=1)),
    ),
    "masked_reconstruction": (
        lambda p, x: masked_reconstruction(p, x, MASK),
        lambda p, x: written_masked(p, x, MASK, True),
        (rows(3, 4, 5), rows(3, 4, 5, seed=1)),
    ),
    "masked_reconstruction of values": (
        lambda p, x: masked_reconstruction(p, x, MASK, normalize=False),
        lambda p, x: written_masked(p, x, MASK, False),
        (rows(3, 4, 5), rows(3, 4, 5, seed=1)),
    ),
}


@pytest.mark.parametrize(("function", "written", "tensors"), CASES.values(), ids=CASES)
def test_a_loss_and_its_gradient_equal_the_formula(function, written, tensors):
    mine, theirs = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    found, expected = function(*mine), written(*theirs)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, **EXACT)
    weights = torch.linspace(0.5, 2, len(found), dtype=torch.float64)
    gradients = torch.autograd.grad((found * weights).sum(), mine)
    others = torch.autograd.grad((expected * weights).sum(), theirs)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, **EXACT)


@pytest.mark.parametrize(("function", "written", "tensors"), CASES.values(), ids=CASES)
def test_a_loss_is_transformed_by_torch_func(function, written, tensors):
    del written
    batched = [torch.stack([t, t.flip(0), 2 * t + 1]) for t in tensors]
    torch.testing.assert_close(
        torch.func.vmap(function)(*batched),
        torch.stack([function(*(b[i] for b in batched)) for i in range(3)]),
        **EXACT,
    )
    gradient = torch.func.grad(lambda first: function(first, *tensors[1:]).sum())(tensors[0])
    first = tensors[0].clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(function(first, *tensors[1:]).sum(), first)[0], **EXACT)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("function", "written", "tensors"), CASES.values(), ids=CASES)
def test_a_loss_of_bfloat16_is_computed_in_float32(function, written, tensors, autocast):
    rounded = [t.bfloat16() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = function(*rounded)
    assert found.dtype == torch.float32
    expected = written(*(t.double() for t in rounded))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("function", "written", "tensors"), CASES.values(), ids=CASES)
def test_tensors_of_two_precisions_are_converted_to_the_wider(function, written, tensors):
    narrow = tensors[0].float()
    found = function(narrow, *tensors[1:])
    torch.testing.assert_close(found, written(narrow.double(), *tensors[1:]), **EXACT)
    assert function(narrow, *(t.bfloat16() for t in tensors[1:])).dtype == torch.float32


@pytest.mark.parametrize(("function", "written", "tensors"), CASES.values(), ids=CASES)
def test_whole_numbers_are_refused(function, written, tensors):
    del written
    for place in range(len(tensors)):
        given = [t.long() if number == place else t for number, t in enumerate(tensors)]
        with pytest.raises(ConfigError, match=r"of torch.int64: expected floating point; convert with \.float"):
            function(*given)


def test_contrastive_losses_do_not_see_the_length_of_rows():
    q, k, n = rows(5, 7), rows(5, 7, seed=1), rows(9, 7, seed=2)
    long = torch.linspace(0.1, 30, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(info_nce(long * q, k / long, 3 * n), info_nce(q, k, n), **EXACT)
    torch.testing.assert_close(symmetric_info_nce(long * q, k / long), symmetric_info_nce(q, k), **EXACT)
    torch.testing.assert_close(nt_xent(long * q, k / long), nt_xent(q, k), **EXACT)


def test_known_answers_of_contrastive_losses():
    """Views that are equal, negatives that are orthogonal to everything or equal to the query."""
    q = torch.eye(4, dtype=torch.float64)[:2]
    orthogonal = torch.eye(4, dtype=torch.float64)[2:]
    near = info_nce(q, q, orthogonal, temperature=0.5)
    torch.testing.assert_close(near, torch.full_like(near, math.log(1 + 2 * math.exp(-2))), **EXACT)
    same = info_nce(q[:1], q[:1], q[:1].expand(7, 4), temperature=0.5)
    torch.testing.assert_close(same, torch.full_like(same, math.log(8)), **EXACT)


def test_patches_are_rows_of_patches_with_row_column_channel_inside():
    images = rows(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for patch in range(6):
        top, left = 2 * (patch // 3), 2 * (patch % 3)
        written = [
            images[:, channel, top + row, left + column]
            for row in range(2)
            for column in range(2)
            for channel in range(3)
        ]
        assert torch.equal(patches[:, patch], torch.stack(written, 1))
    assert torch.equal(unpatchify(patches, 2, rows=2), images)
    square = rows(2, 1, 6, 6)
    assert torch.equal(unpatchify(patchify(square, 3), 3), square)


def test_an_image_without_a_hidden_patch_has_no_loss():
    mask = torch.tensor([[0, 0], [1, 0]])
    found = masked_reconstruction(rows(2, 2, 3), rows(2, 2, 3, seed=1), mask)
    assert found[0] == 0
    assert found[1] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(rows(2, 3), rows(3, 3), rows(4, 3)), r"\[n, channel\] twice"),
        (lambda: info_nce(rows(2, 3), rows(2, 3), rows(4, 2)), r"expected \[m, 3\]"),
        (lambda: info_nce(rows(2, 3), rows(2, 3), rows(0, 3)), "at least one row"),
        (lambda: info_nce(rows(2, 3), rows(2, 3), rows(4, 3), temperature=0.0), "temperature = 0.0"),
        (lambda: symmetric_info_nce(rows(2, 3, 4), rows(2, 3, 4)), "average or flatten"),
        (lambda: nt_xent(rows(2, 3), rows(2, 4)), r"\(2, 4\)"),
        (lambda: nt_xent(rows(0, 3), rows(0, 3)), "one row for each image"),
        (lambda: masked_reconstruction(rows(2, 4, 3), rows(2, 4, 3), torch.ones(2, 3)), r"\[n, patch\]"),
        (lambda: masked_reconstruction(rows(2, 4, 1), rows(2, 4, 1), torch.ones(2, 4)), "normalize=False"),
        (lambda: patchify(rows(2, 1, 9, 8), 2), "do not divide images of 9 x 8"),
        (lambda: patchify(rows(2, 8, 8), 2), "expected"),
        (lambda: patchify(rows(2, 1, 8, 8), (4, 4)), r"size = \(4, 4\): expected one whole number"),
        (lambda: unpatchify(rows(2, 4, 4), 2.0), r"size = 2.0: expected one whole number"),
        (lambda: unpatchify(rows(2, 4, 5), 2), "channel"),
        (lambda: unpatchify(rows(2, 6, 4), 2), "give rows="),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
