"""Settings of torch while a derivative runs: kernels without a forward derivative, function modes."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def drops(arguments: Sequence[Any], keywords: dict[str, Any]) -> bool:
    """Whether a call of ``scaled_dot_product_attention`` drops weights."""
    return (arguments[4] if len(arguments) > 4 else keywords.get("dropout_p", 0.0)) > 0


@contextmanager
def without_fused_kernels() -> Generator[None]:
    """Recurrent layers step by step: those of oneDNN and cuDNN have no forward derivative."""
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])


def push_below(mode: Any) -> None:
    """Make a function mode active below those that are."""
    above: list[Any] = []
    while torch._C._len_torch_function_stack():
        above.append(torch._C._pop_torch_function_stack())
    for each in (mode, *reversed(above)):
        torch._C._push_on_torch_function_stack(each)


def pop_kind(kind: type) -> None:
    """Take the topmost function mode of a kind away."""
    above: list[Any] = []
    while torch._C._len_torch_function_stack():
        mode = torch._C._pop_torch_function_stack()
        if isinstance(mode, kind):
            break
        above.append(mode)
    for mode in reversed(above):
        torch._C._push_on_torch_function_stack(mode)
