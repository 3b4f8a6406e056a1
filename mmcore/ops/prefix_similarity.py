"""Statistics of the similarity matrices of prefixes of the width, each normalised anew.

    s_kij = scale·⟨x_i[:d_k], y_j[:d_k]⟩ / (max(‖x_i[:d_k]‖, eps)·max(‖y_j[:d_k]‖, eps))
    row_lse_ki = log Σ_{j counted} exp s_kij      row_pos_ki = s_ki,target(i), or 0
    col_lse_kj = log Σ_{i counted} exp s_kij

Which pairs are counted: those of different groups, and the targets (pairs.py). Gradients are those
of softmax_similarity and of l2_normalize, summed over the prefixes that hold a column.

x: (N, D); y: (M, D); scale: 0-D; ends: d_k of the K prefixes, ascending; target: (N,); groups as in
softmax_similarity. The statistics are float64, (K, N) and (K, M). `multiplies_bfloat16`, `kept` and
`wanted` (x, y, scale) as in softmax_similarity. is_apart: (K,) booleans, the prefixes whose
products were computed by themselves, as they have to be in the backward, for the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import choose, cpu, kept_products, selected, triton
from mmcore.backends.prefixes import PrefixLoop
from mmcore.backends.workspace import current
from mmcore.ops import l2_normalize, softmax_similarity
from mmcore.ops.autograd import differentiable, once_differentiable, wants_gradient
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.precision import as_multiplied, multiplies_bfloat16

# Reference

reference = PrefixLoop(
    l2_normalize.reference_forward,
    l2_normalize.reference_backward,
    softmax_similarity.reference_forward,
    softmax_similarity.reference_backward,
)

# Contract

_INPUTS = (
    "Tensor x, Tensor y, Tensor scale, int[] ends, float eps, Tensor target, Tensor? row_group, "
    "Tensor? col_group, bool multiplies_bfloat16"
)
SCHEMA = (
    f"({_INPUTS}, SymInt kept_size, str backend) "
    "-> (Tensor row_lse, Tensor col_lse, Tensor row_pos, Tensor kept, "
    "Tensor is_apart)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor row_lse, Tensor col_lse, Tensor row_pos, Tensor kept, "
    "Tensor is_apart, Tensor grad_row_lse, Tensor grad_col_lse, Tensor grad_row_pos, "
    "bool[] wanted, str backend) "
    "-> (Tensor grad_x, Tensor grad_y, Tensor grad_scale)"
)


def fake_forward(
    x: Tensor, y: Tensor, scale: Tensor, ends: Sequence[int], *arguments: Any
) -> tuple[Tensor, ...]:
    sizes = (x.shape[0], y.shape[0], x.shape[0])
    return (
        *(x.new_empty(len(ends), size, dtype=torch.float64) for size in sizes),
        x.new_empty(arguments[-2], dtype=torch.float32),
        x.new_empty(len(ends), dtype=torch.bool),
    )


def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:3], arguments[-2])


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, scale, ctx.ends, ctx.eps, target, row_group, col_group, *rest = inputs
    ctx.multiplies_bfloat16, _, ctx.backend = rest
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)  # zeros as large as `kept` otherwise
    ctx.save_for_backward(x, y, scale, target, row_group, col_group, *output)


def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, scale, target, row_group, col_group, *output = ctx.saved_tensors
    grad_statistics = (
        torch.zeros_like(like) if gradient is None else gradient.contiguous()
        for like, gradient in zip(output[:3], upstream[:3], strict=True)
    )
    wanted = list(ctx.needs_input_grad[:3])
    gradients: Sequence[Tensor] = _backward_op(
        x, y, scale, ctx.ends, ctx.eps, target, row_group, col_group, ctx.multiplies_bfloat16,
        *output, *grad_statistics, wanted, ctx.backend,
    )  # fmt: skip
    return (*only_wanted(gradients, wanted), *(None for _ in range(8)))


# Backends

define(
    "prefix_similarity",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": reference.forward,
        "cpu": cpu.prefix_similarity,
        "triton": triton.prefix_similarity,
    },
)
define(
    "prefix_similarity_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": reference.backward,
        "cpu": cpu.prefix_similarity_backward,
        "triton": triton.prefix_similarity_backward,
    },
)

_backward_op = once_differentiable(torch.ops.mmcore.prefix_similarity_backward.default)
_call = differentiable(torch.ops.mmcore.prefix_similarity.default, save=save, backward=backward)


def call(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    ends: Sequence[int],
    eps: float,
    target: Tensor,
    group: Tensor | None,
    *,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """row_lse, col_lse and row_pos of every prefix, differentiable."""
    requested, kept_size = selected(backend), 0
    queries = as_multiplied(x)
    if wants_gradient(x, y, scale):
        most = current(x.device.type)
        kept_size = kept_products(choose(requested, x), most, x.shape[0], y.shape[0], ends)
    row_lse, col_lse, row_pos, *_ = _call(
        queries, as_multiplied(y), scale, list(ends), eps, target, group, group,
        multiplies_bfloat16(queries), kept_size, requested,
    )  # fmt: skip
    return row_lse, col_lse, row_pos
