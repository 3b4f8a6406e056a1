"""Statistics of each matrix's rows against the elementwise product of all others' rows.

    s_mij = scale·⟨z_mi, key_mj⟩     key_m = Π_{l ≠ m} z_l
    row_lse_mi = log Σ_j exp s_mij   row_pos_mi = s_mii   over all j, or those of `denominator`

Gradients are those of softmax_similarity; z_l receives grad_key_m·Π_{k ∉ {l, m}} z_k besides.

Never stored: the logits, nor two keys at a time; the backward multiplies each anew, and adds what
it finds to the gradients in place. Loop order: one matrix against the others' product after the
other. Precision: as softmax_similarity; gradients are added up in float32 (float64 for float64
features) and rounded once.

features: M matrices (N, D); scale: 0-D. `dtype` is what z_m and key_m are rounded to, where
autocast asks for it. The statistics are float64, (M, N). `multiplies_bfloat16`, `denominator` and
each of `kept` as in softmax_similarity, which computes all of it. `wanted` says whether the
gradients of scale and of each of features are; the others come back empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import cpu, triton
from mmcore.ops import softmax_similarity
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.pairs import Pairs
from mmcore.ops.precision import arithmetic_dtype

# On every backend's softmax_similarity


def forward(
    of_softmax: Callable[..., Any], features: Sequence[Tensor], *arguments: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    *settings, kept_size = arguments
    found = [of_softmax(*_described(features, m, *settings), kept_size) for m in _each(features)]
    row_lse, _, row_pos, _, kept = zip(*found, strict=True)
    return torch.stack(row_lse), torch.stack(row_pos), list(kept)


def backward_of(
    of_softmax: Callable[..., Any], features: Sequence[Tensor], *arguments: Any
) -> tuple[list[Tensor], Tensor]:
    *settings, row_lse, kept, grad_row_lse, grad_row_pos, wanted = arguments
    dtype, nothing = arithmetic_dtype(features[0].dtype), row_lse.new_empty(0)
    gradients = [
        z.new_zeros(z.shape if is_wanted else 0, dtype=dtype)
        for z, is_wanted in zip(features, wanted[1:], strict=True)
    ]
    grad_scale = torch.zeros_like(settings[0])
    for m in _each(features):
        statistics = (
            row_lse[m], nothing, nothing, nothing, kept[m],
            grad_row_lse[m], nothing, grad_row_pos[m], nothing,
        )  # fmt: skip
        _add_gradients(of_softmax, features, m, settings, statistics, wanted, gradients, grad_scale)
    return [g.to(features[0].dtype) for g in gradients], grad_scale


def _add_gradients(
    of_softmax: Callable[..., Any],
    features: Sequence[Tensor],
    m: int,
    settings: Sequence[Any],
    statistics: Sequence[Tensor],
    wanted: Sequence[bool],
    gradients: Sequence[Tensor],
    grad_scale: Tensor,
) -> None:
    """What the rows of one matrix against the product of the others send to all."""
    wants_scale, *wants = wanted
    others = [k for k in _each(features) if k != m and wants[k]]
    grad_x, grad_key, of_scale, *_ = of_softmax(
        *_described(features, m, *settings),
        *statistics,
        [wants[m], bool(others), wants_scale, False, False, False],
    )
    if wants_scale:
        grad_scale += of_scale
    if wants[m]:
        gradients[m].add_(grad_x)
    for k in others:
        dtype = gradients[k].dtype
        gradients[k].addcmul_(grad_key.to(dtype), _product(features, m, k).to(dtype))


def _each(features: Sequence[Tensor]) -> range:
    return range(len(features))


def _described(
    features: Sequence[Tensor], m: int, scale: Tensor, dtype: torch.dtype, is_bfloat16: bool,
    denominator: str,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of softmax_similarity: no biases, the diagonal is positive, rows alone."""
    x, key = features[m].to(dtype), _product(features, m).to(dtype)
    pairs = Pairs(torch.arange(x.shape[0], device=x.device), None, None, None, None)
    return (x, key, scale, None, None, None, *pairs, denominator, False, is_bfloat16, "sum")


def _product(features: Sequence[Tensor], *left_out: int) -> Tensor:
    factors = [z for k, z in enumerate(features) if k not in left_out]
    return reduce(torch.mul, factors) if factors else features[0].new_ones(())


# Contract

_INPUTS = (
    "Tensor[] features, Tensor scale, ScalarType dtype, bool multiplies_bfloat16, str denominator"
)
SCHEMA = (
    f"({_INPUTS}, SymInt kept_size, str backend) -> (Tensor row_lse, Tensor row_pos, Tensor[] kept)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor row_lse, Tensor[] kept, Tensor grad_row_lse, Tensor grad_row_pos, "
    "bool[] wanted, str backend) -> (Tensor[] grad_features, Tensor grad_scale)"
)


def fake_forward(
    features: Sequence[Tensor], scale: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    row_lse = scale.new_empty((len(features), features[0].shape[0]), dtype=torch.float64)
    kept = [scale.new_empty(arguments[-2], dtype=torch.float32) for _ in features]
    return row_lse, torch.empty_like(row_lse), kept


def fake_backward(
    features: Sequence[Tensor], scale: Tensor, *arguments: Any
) -> tuple[list[Tensor], Tensor]:
    return list(fake_gradients(features, arguments[-2][1:])), torch.empty_like(scale)


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    features, scale, *ctx.settings, _, ctx.backend = inputs
    row_lse, _, kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # zeros as large as `kept` otherwise
    ctx.count = len(features)
    ctx.save_for_backward(scale, row_lse, *features, *kept)


def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
    scale, row_lse, *rest = ctx.saved_tensors
    features, kept = rest[: ctx.count], rest[ctx.count :]
    wants_features, wants_scale, *_ = ctx.needs_input_grad
    grad_statistics = (
        torch.zeros_like(row_lse) if gradient is None else gradient for gradient in upstream[:2]
    )
    grad_features, grad_scale = torch.ops.mmcore.product_similarity_backward(
        features, scale, *ctx.settings, row_lse, kept, *grad_statistics,
        [wants_scale, *wants_features], ctx.backend,
    )  # fmt: skip
    of_features = only_wanted(grad_features, wants_features)
    return list(of_features), grad_scale if wants_scale else None, None, None, None, None, None


# Backends

define(
    "product_similarity",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": partial(forward, softmax_similarity.reference_forward),
        "cpu": partial(forward, cpu.softmax_similarity),
        "triton": partial(forward, triton.softmax_similarity),
    },
    save=save,
    backward=backward,
)
define(
    "product_similarity_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": partial(backward_of, softmax_similarity.reference_backward),
        "cpu": partial(backward_of, cpu.softmax_similarity_backward),
        "triton": partial(backward_of, triton.softmax_similarity_backward),
    },
)
