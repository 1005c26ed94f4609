"""The names of operators, and the operators that a program in a file may call.

The list is of operations, not of packages. An operator is allowed by its own schema and name:

- it is registered with torch's dispatcher under `aten`, `prims` or `torchvision` (TorchScript's own operators are not);
- its arguments are tensors, numbers, text, types and lists of them (no storage, no packed object, no file name);
- it returns a value, and does not write into an argument `out`;
- its name is public and matches nothing in `REFUSED`, or it is one of the internal ones in `INTERNAL`, which occur in
  programs.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch

from compressor.errors import SurgeryError
from compressor.files.names import printable

LIBRARIES = ("aten", "torchvision", "prims")
TYPES = re.compile(r"(Tensor|number|int|bool|float|complex|str|Device|Generator)")
# Kinds that trust raw memory: they change a tensor's storage, read packed or nested objects out of plain tensors, or
# skip the checks of indices; and kinds that only training uses.
REFUSED = re.compile(
    r"from_file|set_?|set_data|data|shallow_copy_data_|get_gradients|resize.*|record_stream|backward|.*_backward|.*_backward_.*|requires_grad_|retain_grad|"
    r"rename_?|segment_reduce|sparse_.*|nested_.*|hspmm|smm|sspaddmm|to_sparse.*|to_mkldnn.*|to_padded_tensor|"
    r"mkldnn_.*|fbgemm_.*|cudnn_.*|miopen_.*|mps_.*|quantized_.*|qnms|qroi_align|is_set_to|copy_(to|strided)|"
    r"can_cast|promote_types|output_nr|manual_seed|slice_inverse|values|crow_.*|ccol_.*"
)
_INTERNAL = """
__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__ _adaptive_avg_pool2d
_adaptive_avg_pool3d _addmm_activation _batch_norm_no_update _batch_norm_with_update
_batch_norm_with_update_functional _batch_norm_impl_index _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half
_cast_Int _cast_Long _cast_Short _cdist_forward _conj _conj_physical _convolution _convolution_mode _dim_arange
_embedding_bag _euclidean_dist _fft_c2c _fft_c2r _fft_r2c _fused_dropout _fused_rms_norm _is_all_true _is_any_true
_linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd _local_scalar_dense _log_softmax _masked_softmax
_native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
_native_multi_head_attention _neg_view _pad_circular _pad_enum _pdist_forward _prelu_kernel _reshape_alias
_reshape_copy _safe_softmax _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
_shape_as_tensor _softmax _stack _thnn_fused_gru_cell _thnn_fused_lstm_cell _to_copy _trilinear _unique _unique2
_unsafe_index _unsafe_masked_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface
"""
INTERNAL = frozenset(_INTERNAL.split())


def name_of(target: Any) -> str:
    """Return an operator's name without its overload; an in-place operator has the name of the plain one.

    An operator of a library other than torch and torchvision has that library's name in front.
    """
    library, _, rest = str(target).partition(".")
    name = rest.split(".")[0] if library in ("aten", "torchvision") else ".".join(str(target).split(".")[:2])
    in_place = str(target).startswith("aten.") and name.endswith("_") and not name.endswith("__")
    return name[:-1] if in_place else name


@functools.cache
def _registered(library: str) -> frozenset[str]:
    """Every operator registered with torch; torchvision's too if `library` is torchvision."""
    if library == "torchvision":
        import torchvision  # noqa: F401  # the import registers its operators, and takes seconds

    return frozenset(torch._C._dispatch_get_all_op_names())


def operation(name: str) -> Any:
    """Return the operator called `name`, such as `aten.add.Tensor`. Refused: one that a file may not name."""
    shown = printable(name)
    library, _, rest = name.partition(".")
    kind, _, overload = rest.partition(".")
    overload = overload or "default"
    if (
        library not in LIBRARIES
        or not re.fullmatch(r"\w+", kind, re.ASCII)
        or not re.fullmatch(r"\w+", overload, re.ASCII)
    ):
        raise SurgeryError(f"a program names `{shown}`, which is no operator of torch or torchvision")
    registered = f"{library}::{kind}" + (f".{overload}" if overload != "default" else "")
    if registered not in _registered(library):
        raise SurgeryError(f"this torch has no operator `{shown}`", hint="update torch")
    operator = getattr(getattr(getattr(torch.ops, library), kind), overload)
    if not computes(operator):
        raise SurgeryError(f"a program names `{shown}`, which a file may not: it does more than compute tensors")
    return operator


@functools.cache
def computes(operator: Any) -> bool:
    """True if an operator only computes values from values."""
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    schema = operator._schema
    kind = schema.name.rpartition("::")[2]
    if (kind.startswith("_") and kind not in INTERNAL) or REFUSED.fullmatch(kind):
        return False
    if not schema.returns and not kind.startswith("sym_constrain_range"):
        return False
    for argument in schema.arguments:
        kind_of_argument = re.sub(r"Optional\[|List\[|\]", "", str(argument.type))
        if not TYPES.fullmatch(kind_of_argument) or argument.name == "filename":
            return False
        if argument.kwarg_only and argument.alias_info is not None and argument.alias_info.is_write:
            return False
    return True
