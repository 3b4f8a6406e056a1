"""Compiles Hopper's tile kernels for a GPU that need not be there; prints what the assembly says.

A script for assembly.py: one JSON line for each kernel that is asked for.
"""

from __future__ import annotations

from typing import Any

import triton
from assembly import serve
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton_assembly import resources

from mmcore.backends.triton import kept_size
from mmcore.backends.triton.arguments import BothSides
from mmcore.backends.triton.hopper import exponential_sums, gradient, launch, sigmoid_tile
from mmcore.backends.triton.softmax_similarity.gain import Given
from mmcore.backends.triton.softmax_similarity.norms import Norms
from mmcore.backends.triton.softmax_similarity.terms_memory import TERMS

TARGET = GPUTarget("cuda", 90, 32)
SUMS = exponential_sums.hopper_sum_exponentials_kernel
KERNELS = {
    "sum_exponentials": (SUMS, launch.SUMS),
    "sum_exponentials_kept": (SUMS, launch.SUMS_KEPT),
    "store_gradient": (gradient.hopper_store_gradient_kernel, launch.GRADIENT),
    "sigmoid_tile": (sigmoid_tile.hopper_sigmoid_tile_kernel, launch.SIGMOID),
}
CALLS: dict[str, dict[str, bool | int]] = {
    "clip": {"IS_DIAGONAL": True, "IS_LOSS": True, "COUNT": kept_size.LOSS_TERMS},
    "siglip": {"IS_DIAGONAL": True},
    "targets": {},
    "one side": {"HAS_COLUMNS": False, "HAS_GRADIENTS": False, "HAS_TARGET": False},
}
INTEGERS = (
    "first_part", "first_row", "rows", "size_rows", "columns", "strip_tiles", "spread", "kept_rows",
)  # fmt: skip
TYPES: dict[str, Any] = {
    "target": "*i64", "scale_part": "*fp64", "parts": "*fp64", "norms": Norms("*fp64", "i32"),
    "given": Given("*fp32", "*fp32", "*fp64"), **dict.fromkeys(INTEGERS, "i32"),
}  # fmt: skip
SUMS_OF = {
    "hopper_sum_exponentials_kernel": BothSides("*fp32", "*fp32"),
}


def boxes(rows: int, columns: int) -> str:
    """The type of what the copy engine brings or takes in boxes."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)
    return f"tensordesc<bf16[{rows}, {columns}],{layout!r}>"


def build(name: str, depth: int, settings: dict[str, bool | int]) -> Any:
    """The kernel as its launch asks for it."""
    kernel, layout = KERNELS[name]
    constants: dict[str, Any] = {"HAS_TARGET": True, "HAS_COLUMNS": True, "HAS_GRADIENTS": True}
    constants |= {"IS_DIAGONAL": False, "IS_LOSS": False, "IS_FLOAT16": False, "COUNT": TERMS}
    constants |= {"KEEPS": name.endswith("kept"), "RING": launch.ring_of(layout, depth)} | settings
    types = TYPES | {"sums": SUMS_OF.get(kernel.__name__)}
    signature, constexprs, attributes = {}, {}, {}
    for position, argument in enumerate(kernel.arg_names):
        if argument.isupper():
            signature[argument] = "constexpr"
            constexprs[(position,)] = constants[argument]
        elif argument.endswith("_desc"):
            is_operand = argument in ("x_desc", "y_desc")
            signature[argument] = boxes(launch.BM, launch.BK if is_operand else launch.BN // 2)
        else:
            kind = signature[argument] = types.get(argument, "*fp32")
            is_group = isinstance(kind, tuple)
            for n, each in enumerate(kind if is_group else [kind]):
                if each.startswith("*"):
                    place = (position, n) if is_group else (position,)
                    attributes[place] = [["tt.divisibility", 16]]
    source = GluonASTSource(kernel, signature, constexprs, attributes)
    return triton.compile(source, target=TARGET, options=dict(launch.OPTIONS))


def of_call(name: str, depth: int, call: str) -> dict[str, Any]:
    """What one kernel became, for features of a width and one call."""
    kernel = build(name, depth, CALLS[call])
    text = kernel.asm["ptx"]
    return {
        **resources(kernel),
        "shared": kernel.metadata.shared,
        "matrix_instructions": text.count("wgmma.mma_async"),
        "tile_copies": text.count("cp.async.bulk.tensor"),
    }


if __name__ == "__main__":
    serve({"call": of_call})
