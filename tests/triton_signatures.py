"""The signatures of the Triton kernels as launches specialise them, for triton_assembly.py."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mmcore.backends.inputs import SigmoidUpstream
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
exponential_sums, gradient, gradient_terms, log_sum_exps, shared_shift = (
    import_module(f"{BACKEND}.softmax_similarity.{name}")
    for name in (
        "exponential_sums", "gradient", "gradient_terms", "log_sum_exps", "shared_shift"
    )
)  # fmt: skip
cached_gradients, pass_over_matrix, prepare, sigmoid_tile, totals = (
    import_module(f"{BACKEND}.sigmoid_similarity.{name}")
    for name in ("cached_gradients", "pass_over_matrix", "prepare", "tile", "totals")
)
siglip_gradients = import_module(f"{BACKEND}.siglip.cached_gradients")
input_norm = import_module(f"{BACKEND}.project.input_norm")


CONSTANT_GROUPS: dict[str, Any] = {
    "PAIRS": WhichPairs, "BIASES": WhichBiases, "SIDES": Sides, "TILE": Tile, "FORM": gradient.Form,
    "PURPOSE": norms_and_targets.Purpose, "MODE": prepare.Mode, "FOUND": totals.Found,
    "STORED": siglip_gradients.Stored,
}  # fmt: skip
Types = dict[str, Any]  # of an argument: Triton's name, or a group of them
TYPES: Types = {
    "x": "*bf16", "y": "*bf16", "out": "*bf16", "grad_y": "*bf16", "grad_x": "*bf16", "eps": "fp32",
    "target": "*i64", "flagged": "*i8", "rows": "i32", "columns": "i32", "depth": "i32",
    "slab_rows": "i32", "kept": "*bf16", "tiles": "i32", "programs": "i32", "tally": "*i64",
    "any_untrusted": "*i32",
    **dict.fromkeys(
        ("shared", "wide", "logit", "largest", "factor", "part", "parts", "kept_sums"),
        "*fp64",
    ),
    "ids": Ids("*i64", *["*i32"] * 4),
    "size": Size("i32", "i32"),
    "strides": Strides(*["i32"] * 4),
    "chunk": Chunk("i32", "i32"),
    "slab": exponential_sums.Slab(*["i32"] * 4),
    "biases": Biases(*["*fp32"] * 3),
    **dict.fromkeys(("row_side", "col_side"), SideBiases("*fp32", "*fp32", "*fp64")),
    "terms": gradient_terms.GradientTerms(*["*fp32"] * 3, "*fp64", "*i32", "*i32"),
}  # fmt: skip
UPSTREAM = gradient_terms.Upstream(*["*fp64"] * 4)
SIDE_SUMS = log_sum_exps.SideSums("*fp32", "*fp32", "i32")
SIDE_STATISTICS = log_sum_exps.SideStatistics("*fp64", "*fp64", "*i8")
OF_UPSTREAM: Types = {
    "upstream": UPSTREAM, "strides": gradient_terms.Upstream(*["i32"] * 4), "out": TYPES["terms"],
}  # fmt: skip
# What differs from that table, by kernel.
SUMS_OF_GRADIENT = gradient.GradientSums(*["*fp64"] * 3)
OWN_TYPES: dict[str, Types] = {
    "sum_exponentials": {"sums": exponential_sums.ExponentialSums(*["*fp32"] * 4)},
    "running_log_sum_exp": {"lse": "*fp64"},
    "store_gradient": {"sums": SUMS_OF_GRADIENT},
    "store_gradient_exact": {"sums": SUMS_OF_GRADIENT},
    "hardest_negatives": {"out": "*i64"},
    "log_sum_exps": {
        "by_rows": SIDE_SUMS, "by_columns": SIDE_SUMS, "counts": BothSides("*i64", "*i64"),
        "targets": log_sum_exps.Targets("*i64", "*i64", "*fp64"), "row_out": SIDE_STATISTICS,
        "col_out": SIDE_STATISTICS,
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
    "scale_rows": {"features": "*bf16"},
    "input_norm_sums": {"weight_part": "*fp64", "bias_part": "*fp64", "grad": "*fp32"},
}  # fmt: skip
