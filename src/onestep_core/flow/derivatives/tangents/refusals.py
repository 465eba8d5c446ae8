"""Functions that need no rule, and those whose tangent would be lost: they raise."""

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from typing import Any

import torch
from torch import Tensor


def _getters(*names: str) -> set[Any]:
    return {getattr(Tensor, name).__get__ for name in names if hasattr(Tensor, name)}


def _methods(*names: str) -> set[Any]:
    return {getattr(Tensor, name) for name in names if hasattr(Tensor, name)}


READS: set[Any] = {
    *_getters(
        "shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta",
        "is_sparse", "is_quantized", "is_leaf", "is_nested", "layout", "grad_fn", "grad", "itemsize", "nbytes", "names",
        "_version", "output_nr", "is_mkldnn", "is_sparse_csr", "is_vulkan", "is_ipu", "is_maia", "is_mtia", "is_hpu",
        "retains_grad", "_grad", "volatile", "name",
    ),
    *_methods(
        "dim", "size", "stride", "numel", "nelement", "ndimension", "storage_offset", "is_contiguous",
        "is_floating_point", "is_complex", "is_signed", "element_size", "get_device", "__len__", "__repr__",
        "__format__", "__hash__",
        "is_pinned", "is_inference", "is_conj", "is_neg", "is_coalesced", "has_names", "dim_order",
        "is_same_size", "is_set_to", "register_hook", "retain_grad", "register_post_accumulate_grad_hook",
        "argmax", "argmin", "argsort", "isnan", "isinf", "isfinite", "allclose", "equal", "nonzero", "count_nonzero",
        "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "eq", "ne", "lt", "le", "gt", "ge", "any", "all",
        "logical_not", "isclose", "signbit",
    ),
    torch.is_floating_point, torch.is_complex, torch.is_nonzero, torch.numel, torch.allclose, torch.equal,
    torch.isnan, torch.isinf, torch.isfinite, torch.isclose, torch.argmax, torch.argmin, torch.argsort, torch.nonzero,
    torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.any, torch.all, torch.result_type,
    torch.is_same_size, torch.is_conj, torch.is_neg, torch.is_inference, torch.signbit, torch.count_nonzero,
    torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.empty_like, torch.full_like,
    torch.randint_like, *_methods("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "new_tensor"),
}  # fmt: skip
"""Functions that answer about the value alone: sizes, numbers, comparisons, new tensors like it."""

NUMBERS: set[Any] = _methods("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__complex__")
"""Functions that read numbers: those drop the tangent, as in ``torch.func.jvp``."""

DETACHES: set[Any] = {Tensor.detach, torch.detach, Tensor.detach_, torch.detach_, Tensor.data.__get__}
"""Functions that drop the tangent, as in ``torch.func.jvp``."""

PASSES: set[Any] = {Tensor.requires_grad_, Tensor.requires_grad.__set__, Tensor.grad.__set__}
"""Functions that change what autograd knows of the value."""

_MEMORY = "the network reads the memory of a value, and what it computes there has no tangent"
_BACKWARD = "the network differentiates inside; the derivative of that needs forward mode over it"

REFUSED: dict[Any, str] = {
    **dict.fromkeys(
        _methods(
            "numpy",
            "data_ptr",
            "untyped_storage",
            "storage",
            "_typed_storage",
            "__array__",
            "__dlpack__",
            "set_",
            "resize_",
            "resize_as_",
            "share_memory_",
            "__reduce_ex__",
            "__deepcopy__",
            "__dlpack_device__",
            "as_subclass",
            "map_",
            "map2_",
            "apply_",
            "_make_subclass",
        ),
        _MEMORY,
    ),
    **dict.fromkeys(_getters("__cuda_array_interface__"), _MEMORY),
    Tensor.data.__set__: "it replaces the value, and the tangent would stay",
    Tensor.backward: _BACKWARD,
    torch.autograd.grad: _BACKWARD,
    torch.autograd.backward: _BACKWARD,
}

RECURRENT: set[Any] = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
"""Recurrent layers: their fused kernels have no forward derivative, so they run step by step."""

PLAIN: set[Any] = {
    Tensor, torch.nn.Parameter, int, float, bool, complex, str, slice, type(None), type(Ellipsis), torch.Size,
    torch.dtype, torch.device, torch.memory_format,
}  # fmt: skip
"""Types of arguments that have no tangent."""


def name_of(function: Any) -> str:
    """How an error names a function."""
    return getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or str(function)
