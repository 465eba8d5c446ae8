"""Contrastive losses of MoCo and SimCLR: two views of one image agree, views of different images do not.

Each loss is the cross entropy of finding the right key among others, by the cosine of the angle between two vectors:

    loss_i = log sum_j exp(cos(q_i, k_j) / temperature) - cos(q_i, k_i) / temperature

The losses are functions without state. They return one number for each row and draw nothing; a queue of keys, a
momentum encoder and the two views are arguments. Rows are brought to unit length inside. Inputs in float16 or bfloat16
are converted to float32, also inside an autocast region: logits of 1 / temperature = 14 lose two digits in bfloat16.
Where one input is float64, all are converted to it.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onestep_adapters.encoders.floats import widest
from onestep_core.errors import ConfigError
from onestep_core.validators import require_positive


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE with negatives from a queue, the loss of MoCo v1 and v2.

        loss_i = log(exp(q_i . k_i / tau) + sum_j exp(q_i . n_j / tau)) - q_i . k_i / tau

    Args:
        queries: ``[n, channel]``, any length; gradients reach them.
        keys: ``[n, channel]``, the other view of the same images. Give them without a gradient: MoCo's key encoder is
            not trained.
        negatives: ``[m, channel]``, keys of other images, at least one.
        temperature: positive; 0.07 in MoCo v1, 0.2 in MoCo v2.

    Returns:
        The loss of every query, ``[n]``, float32 or float64, above zero.

    Raises:
        ConfigError: for shapes that do not fit, tensors of whole numbers, or a temperature that is not positive.

    Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, equation 1,
    https://arxiv.org/abs/1911.05722. The released code normalises before the loss; the mean is left to the caller here.

    Example:
        >>> q = torch.tensor([[3.0, 0.0]])
        >>> info_nce(q, q, torch.tensor([[0.0, 1.0]]), temperature=1.0)  # log(1 + 1 / e)
        tensor([0.3133])
    """
    _check_pair("queries", queries, "keys", keys)
    if negatives.ndim != 2 or negatives.shape[1:] != queries.shape[1:] or len(negatives) == 0:
        raise ConfigError(
            f"negatives of shape {tuple(negatives.shape)}: expected [m, {queries.shape[1]}] with at least one row"
        )
    require_positive("temperature", temperature)
    with _full_precision(queries):
        q, k, n = map(_unit, widest(queries=queries, keys=keys, negatives=negatives))
        positive = (q * k).sum(1, keepdim=True) / temperature
        logits = torch.cat([positive, q @ n.T / temperature], 1)
        return logits.logsumexp(1) - positive.squeeze(1)


def symmetric_info_nce(queries: Tensor, keys: Tensor, *, temperature: float = 0.2) -> Tensor:
    """InfoNCE with the other keys of the batch as negatives, the loss of MoCo v3.

        loss_i = 2 tau (log sum_j exp(q_i . k_j / tau) - q_i . k_i / tau)

    The caller adds the terms of both views: ``symmetric_info_nce(q1, k2) + symmetric_info_nce(q2, k1)``. The factor
    ``2 tau`` keeps the size of the gradient when the temperature changes.

    Args:
        queries: predictions of one view, ``[n, channel]``.
        keys: projections of the other view by the momentum encoder, ``[n, channel]``, without a gradient.
        temperature: positive; 0.2 in the paper for vision transformers, 1.0 for ResNet in the code.

    Returns:
        The loss of every query, ``[n]``, float32 or float64.

    Raises:
        ConfigError: for shapes that do not fit, tensors of whole numbers, or a temperature that is not positive.

    Source: Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, algorithm 1,
    https://arxiv.org/abs/2104.02057. The released code takes the keys of all devices as negatives: gather them first.

    Example:
        >>> q = torch.eye(2)
        >>> symmetric_info_nce(q, q, temperature=1.0)  # 2 log(1 + 1 / e)
        tensor([0.6265, 0.6265])
    """
    _check_pair("queries", queries, "keys", keys)
    require_positive("temperature", temperature)
    with _full_precision(queries):
        q, k = map(_unit, widest(queries=queries, keys=keys))
        logits = q @ k.T / temperature
        return 2 * temperature * (logits.logsumexp(1) - (q * k).sum(1) / temperature)


def nt_xent(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """The normalised, temperature-scaled cross entropy of SimCLR: all other views of the batch are negatives.

        z = (first, second),    loss_i = log sum_{j != i} exp(z_i . z_j / tau) - z_i . z_{partner(i)} / tau

    Args:
        first: projections of the first views, ``[n, channel]``.
        second: projections of the second views of the same images, ``[n, channel]``. Gradients reach both.
        temperature: positive; 0.1 for long trainings and 0.5 as the code's default in SimCLR.

    Returns:
        The loss of every view, ``[2 n]``: the first views, then the second; float32 or float64. With ``n = 1`` there is
        no negative and the loss is zero.

    Raises:
        ConfigError: for shapes that do not fit, tensors of whole numbers, or a temperature that is not positive.

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, equation 1,
    https://arxiv.org/abs/2002.05709.

    Example:
        >>> z = torch.eye(2)
        >>> nt_xent(z, z, temperature=1.0)  # log(1 + 2 / e)
        tensor([0.5514, 0.5514, 0.5514, 0.5514])
    """
    _check_pair("first", first, "second", second)
    require_positive("temperature", temperature)
    with _full_precision(first):
        z = torch.cat([_unit(rows) for rows in widest(first=first, second=second)])
        logits = z @ z.T / temperature
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        partner = (z * z.roll(len(first), 0)).sum(1) / temperature
        return logits.masked_fill(own, -torch.inf).logsumexp(1) - partner


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows, dim=1)


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _check_pair(name: str, one: Tensor, other_name: str, other: Tensor) -> None:
    if one.ndim != 2 or one.shape != other.shape or one.shape[0] == 0:
        raise ConfigError(
            f"{name} of shape {tuple(one.shape)}, {other_name} of shape {tuple(other.shape)}: expected [n, channel] "
            "twice, one row for each image; average or flatten the locations of feature maps first"
        )
