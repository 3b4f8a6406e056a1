"""The signatures of the Triton kernels as launches specialise them, for triton_assembly.py."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mmcore.backends.inputs import SigmoidUpstream
from mmcore.backends.triton import kept_size
from mmcore.backends.triton.arguments import (
    Biases,
    BothSides,
    Chunk,
    Ids,
    SideBiases,
    Sides,
    Size,
    Strides,
    Tile,
    WhichBiases,
    WhichPairs,
)

# Packages export functions that have the names of some of their modules.
BACKEND = "mmcore.backends.triton"
hardest_negatives, l2_normalize, norms_and_targets, product_rows = (
    import_module(f"{BACKEND}.{name}")
    for name in ("hardest_negatives", "l2_normalize", "norms_and_targets", "product_rows")
)
(
    exponential_sums, gain, gradient, gradient_terms, gradient_tile, log_sum_exps, norms,
    product_sums, terms_memory,
) = (
    import_module(f"{BACKEND}.softmax_similarity.{name}")
    for name in (
        "exponential_sums", "gain", "gradient", "gradient_terms", "gradient_tile", "log_sum_exps",
        "norms", "product_sums", "terms_memory",
    )
)  # fmt: skip
clip_loss = import_module(f"{BACKEND}.clip.loss")
cached_gradients, pass_over_matrix, prepare, sigmoid_tile, totals = (
    import_module(f"{BACKEND}.sigmoid_similarity.{name}")
    for name in ("cached_gradients", "pass_over_matrix", "prepare", "tile", "totals")
)
siglip_gradients = import_module(f"{BACKEND}.siglip.cached_gradients")
input_norm, parameter_sums = (
    import_module(f"{BACKEND}.project.{name}") for name in ("input_norm", "parameter_sums")
)


CONSTANT_GROUPS: dict[str, Any] = {
    "PAIRS": WhichPairs, "BIASES": WhichBiases, "SIDES": Sides, "TILE": Tile, "NARROW": Tile,
    "FORM": gradient_tile.Form, "PURPOSE": norms_and_targets.Purpose, "STEPS": parameter_sums.Steps,
    "ROUNDING": parameter_sums.Rounding, "MODE": prepare.Mode, "FOUND": totals.Found,
    "STORED": siglip_gradients.Stored,
}  # fmt: skip
Types = dict[str, Any]  # of an argument: Triton's name, or a group of them
TYPES: Types = {
    **dict.fromkeys(("x", "y", "out", "grad_y", "grad_x", "grad_z", "kept"), "*bf16"),
    "target": "*i64", "tally": "*i64", "eps": "fp32",
    **dict.fromkeys(
        ("rows", "columns", "depth", "width", "slab_rows", "slabs", "chunks", "programs", "stride",
         "row_programs", "weight_programs", "norm_tiles", "tiles", "all_rows"),
        "i32",
    ),
    **dict.fromkeys(
        ("wide", "logit", "factor", "part", "parts", "kept_sums", "maxima", "scratch"),
        "*fp64",
    ),
    **dict.fromkeys(("row_parts", "col_parts", "norm_parts"), "i32"),
    "norms": norms.Norms("*fp64", "i32"),
    "of_scale": gradient.ScaleParts("*fp64", "i32", "i32", "*fp32"),
    "given": gain.Given("*fp32", "*fp32", "*fp64"),
    "ids": Ids("*i64", *["*i32"] * 4),
    "size": Size("i32", "i32"),
    "strides": Strides(*["i32"] * 4),
    "chunk": Chunk("i32", "i32"),
    "slab": exponential_sums.Slab(*["i32"] * 4),
    "biases": Biases(*["*fp32"] * 3),
    **dict.fromkeys(("row_side", "col_side"), SideBiases("*fp32", "*fp32", "*fp64", "*fp64")),
}  # fmt: skip
UPSTREAM = gradient_terms.Upstream(*["*fp64"] * 4)
SIDE_SUMS = log_sum_exps.SideSums("*fp32", "*fp32", "i32")
SIDE_STATISTICS = log_sum_exps.SideStatistics("*fp64", "*fp64")
OF_UPSTREAM: Types = {
    "upstream": UPSTREAM, "strides": gradient_terms.Upstream(*["i32"] * 4),
}  # fmt: skip
MATRIX = log_sum_exps.Matrix(
    SIDE_SUMS, SIDE_SUMS, TYPES["row_side"], TYPES["col_side"], "*fp32",
    BothSides("*i64", "*i64"), TYPES["ids"], log_sum_exps.Targets("*i64", "*fp64"), TYPES["size"],
    TYPES["strides"],
)  # fmt: skip
# What differs from that table, by kernel.
SUMS_OF_GRADIENT = gradient.BiasSums(*["*fp64"] * 2)
OWN_TYPES: dict[str, Types] = {
    "sum_exponentials": {"sums": exponential_sums.ExponentialSums(*["*fp32"] * 4)},
    "store_gradient": {"sums": SUMS_OF_GRADIENT},
    "store_gradient_exact": {"sums": SUMS_OF_GRADIENT},
    "hardest_negatives": {"out": "*i64"},
    "log_sum_exps": {
        "matrix": MATRIX, "row_out": SIDE_STATISTICS, "col_out": SIDE_STATISTICS,
    },
    "largest_gradients": OF_UPSTREAM,
    "gradient_terms": {"lse": BothSides("*fp64", "*fp64"), **OF_UPSTREAM},
    "sigmoid_prepare": {
        "upstream": SigmoidUpstream("*fp64", "*fp64"), "out": prepare.Terms("*fp32", "*fp64"),
    },
    "sigmoid_totals": {"out": totals.Totals("*fp64", "*fp64", "*fp64")},
    "siglip_gradients": {
        "kept": "*fp32", "size": "i32",
        "grads": siglip_gradients.SiglipGradients("*bf16", "*bf16", "*fp32", "*fp32"),
    },
    "from_cached": {
        "kept": pass_over_matrix.Products("*fp32", "*fp32"),
        "upstream": SigmoidUpstream("*fp64", "*fp64"),
        "grad": pass_over_matrix.Products("*bf16", "*bf16"),
    },
    "sum_with_rows": {"features": "*bf16"},
    "l2_normalize_forward": {"x": "*fp32", "bias": "*bf16"},
    "input_norm_forward": {"weight": "*bf16", "bias": "*bf16"},
    "project_rows": {
        "norm": input_norm.NormedRows("*bf16", "*fp32", "*fp32", "*bf16", "i32"),
        "output": parameter_sums.OutputRows("*bf16", "*fp32", "*fp32", "*bf16", "i32"),
        "grad": "*fp32",
    },
    "project_parameters": {
        "grad_weight": "*bf16", "out": parameter_sums.Vectors(*["*bf16"] * 3),
    },
}  # fmt: skip
# What decides which tile is taken, beside CLIP: NT-Xent, SupCon and CLIP with labels for targets.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "nt_xent": {"IS_SYMMETRIC": True, "HAS_GROUPS": True, "KEEPS": False},
    "sup_con": {
        "IS_SYMMETRIC": True, "HAS_GROUPS": True, "HAS_LABELS": True, "HAS_TARGET": False,
        "KEEPS": False,
    },
    "labels": {"HAS_LABELS": True, "HAS_TARGET": False},
    "siglip": {"TARGET": "diagonal", "IS_DIAGONAL": True, "IS_LOSS": True, "HAS_UPSTREAM": False},
}  # fmt: skip
LOSS = {"HAS_TARGET": False, "IS_DIAGONAL": True, "IS_LOSS": True, "TERMS": kept_size.LOSS_TERMS}
# Calls of other kinds, compiled only: sizes of 1, which Triton takes for constants; everything that
# CLIP in bfloat16 does not switch on; float32 numbers.
VARIANTS: dict[str, dict[str, Any]] = {
    "sizes of 1": {"has_ones": True},
    "labels": {
        "HAS_TARGET": False, "HAS_LABELS": True, "HAS_GROUPS": True, "HAS_ROW_BIAS": True,
        "HAS_COL_BIAS": True, "HAS_BIAS": True, "NEEDS_SUMS": True,
        "DENOMINATOR": "negatives", "IS_LAYER": False, "HAS_WEIGHT": False, "DEPTH": 500,
        "TARGET": "none",
    },
    "one side": {"HAS_COLUMNS": False, "HAS_GRADIENTS": False, "DENOMINATOR": "positives"},
    "float32": {
        "ROUNDS": True, "IS_PRECISE": True, "USES_DESCRIPTORS": False, "KEEPS": False,
        "types": dict.fromkeys(("x", "y", "out"), "*fp32"),
    },
    "pointers": {"USES_DESCRIPTORS": False},
    "kept": {"HAS_KEPT": True},
    "loss": LOSS | {"TARGET": "diagonal", "IS_FLOAT16": True},
    "kept loss": LOSS | {"HAS_KEPT": True},
    "loss without a gradient": LOSS | {"HAS_TERMS": False, "HAS_GRADIENTS": False},
    "tensor float 32": {
        "IS_PRECISE": True, "USES_DESCRIPTORS": False, "KEEPS": False, "PRECISION": "tf32",
        "types": dict.fromkeys(("x", "y", "out"), "*fp32"),
    },
}  # fmt: skip
