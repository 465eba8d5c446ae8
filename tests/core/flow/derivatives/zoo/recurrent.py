"""Recurrent networks, and embeddings that condition a network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.core.flow.derivatives.case import Case, add, drawn, fragment, jump, layer, listed, normal, two_backwards


def first(out: tuple[Tensor, Any]) -> Any:
    """Output and last states, flat."""
    output, states = out
    return (output, *states) if isinstance(states, tuple) else (output, states)


for _kind in (nn.RNN, nn.GRU, nn.LSTM):
    _name = _kind.__name__
    add("recurrent", _name, layer(lambda kind=_kind: kind(3, 4), 5, 2, 3, after=first))
    add(
        "recurrent",
        f"{_name} of two layers, both directions",
        layer(lambda kind=_kind: kind(3, 4, num_layers=2, bidirectional=True, batch_first=True), 2, 5, 3, after=first),
    )
    add(
        "recurrent",
        f"{_name} without bias, with dropout between layers",
        layer(lambda kind=_kind: kind(3, 4, num_layers=2, bias=False, dropout=0.3), 5, 2, 3, after=first),
    )
add("recurrent", "LSTM with projections", layer(lambda: nn.LSTM(3, 4, proj_size=2), 5, 2, 3, after=first))
add("recurrent", "RNN with relu", layer(lambda: nn.RNN(3, 4, nonlinearity="relu"), 5, 2, 3, after=first))


@listed("recurrent", oracle=two_backwards, refusable=True)
def GRU_of_a_packed_sequence(generator: torch.Generator) -> Case:
    module = drawn(nn.GRU(3, 4, batch_first=True), generator)

    def function(z: Tensor) -> Tensor:
        packed = pack_padded_sequence(z, torch.tensor([3, 5]), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0], batch_first=True)[0]

    return jump(function, generator, 2, 5, 3, module=module, times=0)


@listed("recurrent")
def LSTM_whose_first_state_has_a_tangent(generator: torch.Generator) -> Case:
    module = drawn(nn.LSTM(3, 4), generator)

    def function(z: Tensor, t: Tensor) -> Tensor:
        state = t.view(1, -1, 1).expand(1, 2, 4).contiguous()
        return module(z.transpose(0, 1), (state.sin(), state.cos()))[0]

    return jump(function, generator, 2, 5, 3, module=module, times=1)


@listed("recurrent")
def cells(generator: torch.Generator) -> Case:
    module = drawn(nn.ModuleList([nn.RNNCell(3, 4), nn.GRUCell(4, 4), nn.LSTMCell(4, 3)]), generator)

    def function(z: Tensor) -> tuple[Tensor, Tensor]:
        return module[2](module[1](module[0](z), module[0](z.cos())))

    return jump(function, generator, 2, 3, module=module, times=0)


@listed("embeddings")
def embedding_as_a_condition(generator: torch.Generator) -> Case:
    module = drawn(nn.ModuleDict({"label": nn.Embedding(5, 4, padding_idx=0), "body": nn.Linear(4, 4)}), generator)
    label = torch.tensor([0, 3, 3])
    return jump(
        lambda z, t: module["body"](z * module["label"](label) + t[:, None]), generator, 3, 4, module=module, times=1
    )


@listed("embeddings", oracle=two_backwards)
def embedding_bag_as_a_condition(generator: torch.Generator) -> Case:
    module = drawn(nn.EmbeddingBag(5, 4, mode="mean"), generator)
    words = torch.tensor([[0, 1, 2], [3, 3, 4]])
    return jump(lambda z, t: z * module(words) * t[:, None], generator, 2, 4, module=module, times=1)


@listed("embeddings")
def embedding_of_a_choice(generator: torch.Generator) -> Case:
    """The index depends on the state; a choice has no derivative, its use has one."""
    module = drawn(nn.Embedding(4, 4), generator)
    return jump(lambda z: z.sin() * module(z.argmax(1)), generator, 3, 4, module=module, times=0)


@listed("embeddings")
def sinusoids_of_the_times(generator: torch.Generator) -> Case:
    module = drawn(nn.Sequential(nn.Linear(8, 4), nn.SiLU(), nn.Linear(4, 3)), generator)
    frequencies = torch.logspace(0, 1, 4, dtype=torch.float64)

    def function(z: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * frequencies
        return z * module(torch.cat([phase.sin(), phase.cos()], -1))

    return jump(function, generator, 2, 3, module=module, times=1)


@listed("embeddings")
def Fourier_features(generator: torch.Generator) -> Case:
    weights = normal(generator, 6)

    def function(z: Tensor, t: Tensor) -> Tensor:
        angles = 2 * torch.pi * torch.outer(t, weights)
        return torch.einsum("bd,bf->bdf", z, torch.cat([angles.sin(), angles.cos()], 1))

    return jump(function, generator, 2, 3, times=1)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding through complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def rotated_by_halves(x: Tensor, angles: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return x * angles.cos().repeat(1, 2) + torch.cat([-two, one], -1) * angles.sin().repeat(1, 2)


add("embeddings", "rotary embedding by complex numbers", fragment(rotated, (2, 5, 4), (5, 2)))
add("embeddings", "rotary embedding by halves", fragment(rotated_by_halves, (2, 5, 4), (5, 2)))
add(
    "embeddings",
    "table with a tangent",
    fragment(lambda table: F.embedding(torch.tensor([[0, 2], [2, 1]]), table).sin(), (3, 4)),
)
add(
    "embeddings",
    "bag of a table with a tangent",
    fragment(
        lambda table: F.embedding_bag(torch.tensor([[0, 2], [2, 1]]), table, mode="sum"),
        (3, 4),
        equivalent=lambda table: F.embedding(torch.tensor([[0, 2], [2, 1]]), table).sum(1),
    ),
    refusable=True,
)
