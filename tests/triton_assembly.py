"""Compiles Triton kernels for GPUs that need not be there; prints what the assembly says.

A script for assembly.py: one JSON line for each kernel that is asked for.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from assembly import serve
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_signatures import (
    CONSTANT_GROUPS,
    OBJECTIVES,
    OWN_TYPES,
    TYPES,
    VARIANTS,
    Types,
    cached_gradients,
    clip_loss,
    exponential_sums,
    gradient,
    gradient_terms,
    hardest_negatives,
    input_norm,
    l2_normalize,
    log_sum_exps,
    norms_and_targets,
    parameter_sums,
    pass_over_matrix,
    prepare,
    product_rows,
    product_sums,
    siglip_gradients,
    sigmoid_tile,
    terms_memory,
    totals,
)

from mmcore.backends.triton import kept_size
from mmcore.backends.triton.launch import (
    FLOAT32_TILE,
    HALF_PRECISION_TILES,
    HEAVY,
    by_pointers,
    row_tile,
)
from mmcore.backends.triton.project.backward import ROUNDED_NUMBERS, SLABS_AT_A_TIME, SUMS_TILE
from mmcore.backends.triton.tuned_tiles import ProductTile


class Machine(NamedTuple):
    """What Triton calls a GPU, its tile, its matrix instruction, its exponential."""

    target: GPUTarget
    tile: str
    matrix_instruction: str
    exponential: str


MACHINES = {
    "sm_80": Machine(GPUTarget("cuda", 80, 32), "sm_80", "mma.sync", "ex2.approx"),
    "sm_90": Machine(GPUTarget("cuda", 90, 32), "sm_90", "wgmma.mma_async", "ex2.approx"),
    "sm_100": Machine(GPUTarget("cuda", 100, 32), "sm_100", "tcgen05.mma", "ex2.approx"),
    "gfx942": Machine(GPUTarget("hip", "gfx942", 64), "hip", "v_mfma_f32", "v_exp_f32"),
}
SIMILARITY_KERNELS = {
    "sum_exponentials": exponential_sums.sum_exponentials_kernel,
    "log_sum_exps": log_sum_exps.log_sum_exps_kernel,
    "clip_loss": clip_loss.clip_loss_kernel,
    "store_gradient": gradient.store_gradient_kernel,
    "store_gradient_exact": gradient.store_gradient_kernel,
    "sigmoid_tile": sigmoid_tile.sigmoid_tile_kernel,
    "hardest_negatives": hardest_negatives.hardest_negatives_kernel,
}
TILED_BY_OBJECTIVE = ("sum_exponentials", "store_gradient", "sigmoid_tile")
ROW_KERNELS = {
    "l2_normalize_forward": l2_normalize.l2_normalize_forward_kernel,
    "l2_normalize_backward": l2_normalize.l2_normalize_backward_kernel,
    "input_norm_forward": input_norm.input_norm_forward_kernel,
    "project_rows": parameter_sums.project_rows_kernel,
    "project_parameters": parameter_sums.project_parameters_kernel,
    "norms_and_targets": norms_and_targets.norms_and_targets_kernel,
    "tally": norms_and_targets.tally_kernel,
    "largest_gradients": gradient_terms.largest_gradients_kernel,
    "gradient_terms": gradient_terms.gradient_terms_kernel,
    "scale_rows": product_rows.scale_rows_kernel,
    "sum_with_rows": product_sums.sum_with_rows_kernel,
    "sigmoid_prepare": prepare.sigmoid_prepare_kernel,
    "sigmoid_totals": totals.sigmoid_totals_kernel,
    "from_cached": cached_gradients.from_cached_kernel,
    "siglip_gradients": siglip_gradients.siglip_gradients_kernel,
}
TILE_KINDS = {
    "sum_exponentials": "sums", "log_sum_exps": "statistics", "clip_loss": "statistics",
    "store_gradient": "gradient",
    "store_gradient_exact": "gradient", "sigmoid_tile": "sigmoid",
    "hardest_negatives": "running",
}  # fmt: skip
NUM_WARPS = {
    "from_cached": cached_gradients.NUM_WARPS, "siglip_gradients": siglip_gradients.NUM_WARPS,
}  # fmt: skip
BLOCKS = {
    "sigmoid_totals": pass_over_matrix.PARTS_AT_ONCE, "siglip_gradients": siglip_gradients.NUMBERS,
}  # fmt: skip
DEPTH = 512
# CLIP in bfloat16.
CONSTANTS = {
    "HAS_TARGET": True, "HAS_LABELS": False, "HAS_GROUPS": False, "HAS_ROW_BIAS": False,
    "HAS_COL_BIAS": False, "HAS_BIAS": False, "HAS_COLUMNS": True, "HAS_GRADIENTS": True,
    "NEEDS_SUMS": False, "NEEDS_SCALE": True, "IS_LAST": True, "IS_LOSS": False, "IS_EXACT": False,
    "TERMS": terms_memory.TERMS, "COUNT": terms_memory.TERMS, "HAS_TERMS": True,
    "HAS_NUMBERS": True, "HAS_LARGEST": False, "IS_DIAGONAL": False, "CLEARS": True,
    "HAS_COUNTER": True,
    "IS_PRECISE": False, "BY_COLUMNS": False,
    "IS_SYMMETRIC": False, "KEEPS": True, "HAS_KEPT": False,
    "DENOMINATOR": "all",
    "DEPTH": DEPTH, "ROUNDS": False, "WIDENS": False, "PRECISION": "ieee", "IS_LAYER": True,
    "HAS_WEIGHT": True, "HAS_Y": True, "TALLIES": True, "IS_MIRRORED": False, "TARGET": "given",
    "HAS_UPSTREAM": True, "IS_FLOAT16": False, "STORES": True,
    "STORES_ALONG": True, "HAS_STATISTICS": False, "HAS_ROWS": True, "SUMS_NORM": True,
    "SUMS_BIAS": True, "IS_NORMALIZED": True, "HAS_NORM": True, "BLOCK": ROUNDED_NUMBERS,
    "SLABS": SLABS_AT_A_TIME, "SLAB_BLOCK": SUMS_TILE[0], "SLAB_COLUMNS": SUMS_TILE[1],
    "X": True, "Y": True, "SCALE": True, "BIAS": True,
}  # fmt: skip


# Exact tiles where E was kept.
NARROW = {"BN": 16, "BK": 32, "USES_DESCRIPTORS": False}
OWN_CONSTANTS: dict[str, dict[str, Any]] = {
    "clip_loss": {"HAS_TARGET": False, "IS_DIAGONAL": True, "COUNT": kept_size.LOSS_TERMS},
}


def compiled(
    kernel: Any, machine: Machine, constants: dict[str, Any], types: Types, has_ones: bool,
    **options: int,
) -> Any:  # fmt: skip
    """Specialised as calls with aligned pointers and strides are; `has_ones`: sizes are 1."""
    signature, constexprs, attributes = {}, {}, {}

    def described(kind: Any, place: tuple[int, ...], is_stride: bool) -> Any:
        if isinstance(kind, tuple):
            fields = (described(each, (*place, n), is_stride) for n, each in enumerate(kind))
            return type(kind)(*fields)
        if has_ones and kind == "i32" and not is_stride:
            constexprs[place] = 1
            return "constexpr"
        if is_stride or kind.startswith("*"):
            attributes[place] = [["tt.divisibility", 16]]
        return kind

    for position, argument in enumerate(kernel.arg_names):
        if argument.isupper():
            group = CONSTANT_GROUPS.get(argument)
            signature[argument] = "constexpr"
            own = constants | NARROW if argument == "NARROW" else constants
            constexprs[(position,)] = (
                group(*(own[field] for field in group._fields)) if group else own[argument]
            )
            continue
        is_stride = argument.endswith(("_stride", "strides"))
        kind = types.get(argument, "i32" if is_stride else "*fp32")
        signature[argument] = described(kind, (position,), is_stride)
    # Many calls differ in what a kernel does not take.
    key = repr((kernel.__name__, machine.tile, signature, constexprs, options))
    if key not in _compiled:
        source = ASTSource(kernel, signature, constexprs, attributes)
        _compiled[key] = triton.compile(source, target=machine.target, options=options)
    return _compiled[key]


_compiled: dict[str, Any] = {}


def resources(kernel: Any) -> dict[str, int]:
    """Registers of a thread, and what did not fit into them, bytes or registers."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]

        def figure(name: str) -> int:
            return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]

        return {
            "registers": figure("vgpr_count"),
            "spills": figure("vgpr_spill_count") + figure("private_segment_fixed_size"),
        }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [tool, "--dump-resource-usage", path]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "spills": found["STACK"] + found["LOCAL"]}


def descriptors(name: str, tile: ProductTile, constants: dict[str, Any]) -> dict[str, str]:
    """The types of what the GPU's copy engine brings or takes away."""
    shapes = {"x": (tile.BM, tile.BK), "y": (tile.BN, tile.BK)}
    if constants["KEEPS" if name == "sum_exponentials" else "HAS_KEPT"]:
        shapes["kept"] = (tile.BM, tile.BN)
    return {
        name: f"tensordesc<bf16[{rows}, {columns}]>" for name, (rows, columns) in shapes.items()
    }


def build(name: str, machine: Machine, variant: dict[str, Any]) -> Any:
    """The kernel as its launch asks for it."""
    settings = dict(variant)
    has_ones, types = settings.pop("has_ones", False), settings.pop("types", {})
    if name in SIMILARITY_KERNELS:
        tile = production_tile(name, machine, settings)
        constants = CONSTANTS | OWN_CONSTANTS.get(name, {}) | tile._asdict()
        constants["IS_EXACT"] = name == "store_gradient_exact"
        if (constants | settings)["USES_DESCRIPTORS"] and tile.USES_DESCRIPTORS:
            types = descriptors(name, tile, constants | settings) | types
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    else:
        constants = CONSTANTS | row_tile(DEPTH)._asdict() | {"HAS_BIAS": True}
        if name in BLOCKS:
            constants["BLOCK"] = BLOCKS[name]
        options = {"num_warps": NUM_WARPS.get(name, 4)}
    kernel = (SIMILARITY_KERNELS | ROW_KERNELS)[name]
    types = TYPES | types | OWN_TYPES.get(name, {})
    return compiled(kernel, machine, constants | settings, types, has_ones, **options)


def production_tile(name: str, machine: Machine, settings: dict[str, Any]) -> ProductTile:
    """The tile that a launch of the kernel takes."""
    if settings.get("IS_PRECISE"):
        return FLOAT32_TILE
    kind = "kept" if settings.get("HAS_KEPT") and name == "store_gradient" else TILE_KINDS[name]
    if settings.get("IS_SYMMETRIC") or settings.get("HAS_LABELS"):
        kind = HEAVY[kind]
    tile = HALF_PRECISION_TILES[machine.tile][kind]
    return by_pointers(tile) if settings.get("USES_DESCRIPTORS") is False else tile


def of_call(name: str, machine_name: str, objective: str) -> dict[str, Any]:
    """What one kernel became on one machine, for the calls of one objective."""
    machine, settings = MACHINES[machine_name], OBJECTIVES.get(objective, {})
    kernel = build(name, machine, settings)
    text = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
    figures = {
        **resources(kernel),
        "shared": kernel.metadata.shared,
        "matrix_instructions": text.count(machine.matrix_instruction),
        "exponentials": text.count(machine.exponential),
        "tile_copies": text.count("cp.async.bulk.tensor"),
    }
    if name in SIMILARITY_KERNELS:
        tile = production_tile(name, machine, settings)
        threads = kernel.metadata.num_warps * machine.target.warp_size
        figures["logits_per_thread"] = tile.BM * tile.BN // threads
    return figures


def of_variant(name: str, variant: str) -> dict[str, Any]:
    """What one kernel became for calls of another kind."""
    kernel = build(name, MACHINES["sm_90"], VARIANTS[variant])
    return resources(kernel) | {"shared": kernel.metadata.shared}


if __name__ == "__main__":
    serve({"call": of_call, "variant": of_variant})
