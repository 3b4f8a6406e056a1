"""Statistics of each matrix's rows against the elementwise product of all others' rows.

    s_mij = scale·⟨z_mi, key_mj⟩     key_mj = Π_{l ≠ m} z_lj
    row_lse_mi = log Σ_j exp s_mij   row_pos_mi = s_mii

With `order`, a permutation of the rows of each matrix, tuples are mixed: key_mj holds row p(j) of
z_l, p = order_l ∘ order_m⁻¹. The sum then leaves out j = i, to make room for the positive;
row_pos is as without an order.

Gradients are those of softmax_similarity; z_l receives grad_key_m·Π_{k ∉ {l, m}} z_k besides.

Never stored: the logits, nor two keys at a time; the backward multiplies each anew, and adds what
it finds to the gradients in place. Loop order: one matrix against the others' product after the
other. Precision: as softmax_similarity; gradients are added up in float32 (float64 for float64
features) and rounded once. Positives beside an order are float64, a slab of rows at a time.

features: M matrices (N, D); scale: 0-D; order: (M, N) int64 or None. `dtype` is what z_m and key_m
are rounded to, where autocast asks for it. The statistics are float64, (M, N).
`multiplies_bfloat16` and each of `kept` as in softmax_similarity, which computes all of it.
`wanted` says whether the gradients of scale and of each of features are; the others come back
empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import choose, cpu, kept_tiles, selected, triton
from mmcore.backends.workspace import current
from mmcore.ops import softmax_similarity
from mmcore.ops.autograd import differentiable, once_differentiable, wants_gradient
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.pairs import Pairs
from mmcore.ops.precision import (
    arithmetic_dtype,
    as_multiplied,
    autocast_dtype,
    multiplies_bfloat16,
)

ROWS_AT_A_TIME = 1024

# On every backend's softmax_similarity


def forward(
    of_softmax: Callable[..., Any], features: Sequence[Tensor], scale: Tensor,
    order: Tensor | None, *arguments: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    *settings, kept_size = arguments
    found = [
        of_softmax(*_described(features, m, scale, order, *settings), kept_size)
        for m in _each(features)
    ]
    row_lse, _, row_pos, _, kept = zip(*found, strict=True)
    positives = torch.stack(row_pos)
    if order is not None:
        of_slabs = [_factors(features, rows).prod(0).sum(1) for rows in _slabs(features)]
        positives = (scale * torch.cat(of_slabs)).repeat(len(features), 1)
    return torch.stack(row_lse), positives, list(kept)


def backward_of(
    of_softmax: Callable[..., Any], features: Sequence[Tensor], scale: Tensor,
    order: Tensor | None, *arguments: Any,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    *settings, row_lse, kept, grad_row_lse, grad_row_pos, wanted = arguments
    gradients = Gradients.of(features, scale, wanted)
    nothing = row_lse.new_empty(0)
    if order is not None:
        _add_positives(features, scale, grad_row_pos.sum(0), gradients)
        grad_row_pos = torch.zeros_like(grad_row_pos)
    for m in _each(features):
        grad_x, grad_key, grad_scale, *_ = of_softmax(
            *_described(features, m, scale, order, *settings),
            row_lse[m], nothing, nothing, nothing, kept[m],
            grad_row_lse[m], nothing, grad_row_pos[m], nothing, gradients.wanted_of(m),
        )  # fmt: skip
        if gradients.wants[m]:
            gradients.features[m].add_(grad_x)
        if gradients.wants_scale:
            gradients.scale.add_(grad_scale)
        del grad_x
        for k in gradients.others_of(m):
            gradients.add(k, _met(order, m, k), grad_key, _product(features, order, m, k))
        del grad_key
    return [g.to(features[0].dtype) for g in gradients.features], gradients.scale


class Gradients(NamedTuple):
    """Sums of the gradients that are wanted; the others are empty."""

    features: list[Tensor]
    scale: Tensor
    wants: list[bool]
    wants_scale: bool

    @staticmethod
    def of(features: Sequence[Tensor], scale: Tensor, wanted: Sequence[bool]) -> Gradients:
        wants_scale, *wants = wanted
        dtype = arithmetic_dtype(features[0].dtype)
        sums = [
            z.new_zeros(z.shape if is_wanted else 0, dtype=dtype)
            for z, is_wanted in zip(features, wants, strict=True)
        ]
        return Gradients(sums, torch.zeros_like(scale), wants, wants_scale)

    def others_of(self, m: int) -> list[int]:
        return [k for k in _each(self.features) if k != m and self.wants[k]]

    def wanted_of(self, m: int) -> list[bool]:
        """Of softmax_similarity, of the rows of one matrix and the product of the others."""
        return [self.wants[m], bool(self.others_of(m)), self.wants_scale, False, False, False]

    def add(self, k: int, rows: Tensor | None, grad_key: Tensor, factor: Tensor) -> None:
        """grad_key·factor to the rows of a matrix, in the order in which they were taken."""
        total = self.features[k]
        grad_key, factor = grad_key.to(total.dtype), factor.to(total.dtype)
        if rows is None:
            total.addcmul_(grad_key, factor)
        else:
            total.index_add_(0, rows, grad_key * factor)


def _add_positives(
    features: Sequence[Tensor], scale: Tensor, gradient: Tensor, gradients: Gradients
) -> None:
    """What the tuples as they are send to each of their rows, and to the scale."""
    for rows in _slabs(features):
        factors, of_rows = _factors(features, rows), gradient[rows, None]
        if gradients.wants_scale:
            gradients.scale.add_((of_rows * factors.prod(0)).sum())
        for k in _each(features):
            if gradients.wants[k]:
                others = torch.cat([factors[:k], factors[k + 1 :]]).prod(0)
                gradients.features[k][rows].add_(scale * of_rows * others)


def _each(features: Sequence[Tensor]) -> range:
    return range(len(features))


def _slabs(features: Sequence[Tensor]) -> list[slice]:
    rows = features[0].shape[0]
    return [slice(first, first + ROWS_AT_A_TIME) for first in range(0, rows, ROWS_AT_A_TIME)]


def _factors(features: Sequence[Tensor], rows: slice) -> Tensor:
    return torch.stack([z[rows].double() for z in features])


def _described(
    features: Sequence[Tensor], m: int, scale: Tensor, order: Tensor | None, dtype: torch.dtype,
    is_bfloat16: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of softmax_similarity: no biases, the diagonal is positive, rows alone."""
    x, key = features[m].to(dtype), _product(features, order, m).to(dtype)
    pairs = Pairs(torch.arange(x.shape[0], device=x.device), None, None, None, None)
    denominator = "all" if order is None else "negatives"
    return (x, key, scale, None, None, None, *pairs, denominator, False, is_bfloat16, "sum")


def _met(order: Tensor | None, m: int, k: int) -> Tensor | None:
    """Which row of k is in each key that rows of m are compared with; None for the same row."""
    return None if order is None else order[k][order[m].argsort()]


def _product(features: Sequence[Tensor], order: Tensor | None, m: int, *left_out: int) -> Tensor:
    """Of the matrices but m and those left out, in the order in which rows of m meet them."""
    factors = (
        features[k] if (rows := _met(order, m, k)) is None else features[k].index_select(0, rows)
        for k in _each(features)
        if k != m and k not in left_out
    )
    first = next(factors, features[0].new_ones(()))
    return reduce(torch.mul, factors, first)


# Contract

_INPUTS = (
    "Tensor[] features, Tensor scale, Tensor? order, ScalarType dtype, bool multiplies_bfloat16"
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
    ctx.count, *rest = inputs
    features, (scale, order, *ctx.settings, _, ctx.backend) = rest[: ctx.count], rest[ctx.count :]
    row_lse, _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # zeros as large as `kept` otherwise
    ctx.save_for_backward(scale, order, row_lse, *features, *kept)


def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
    scale, order, row_lse, *rest = ctx.saved_tensors
    features, kept = rest[: ctx.count], rest[ctx.count :]
    wants_features = ctx.needs_input_grad[1 : 1 + ctx.count]
    wants_scale = ctx.needs_input_grad[1 + ctx.count]
    grad_statistics = (
        torch.zeros_like(row_lse) if gradient is None else gradient for gradient in upstream[:2]
    )
    *grad_features, grad_scale = _backward_op(
        features, scale, order, *ctx.settings, row_lse, kept, *grad_statistics,
        [wants_scale, *wants_features], ctx.backend,
    )  # fmt: skip
    of_features = only_wanted(grad_features, wants_features)
    return None, *of_features, grad_scale if wants_scale else None, *(None for _ in range(5))


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


_backward_op = once_differentiable(torch.ops.mmcore.product_similarity_backward.default)


def _call_flat(count: int, *inputs: Any) -> tuple[Tensor, ...]:
    """As autograd wants it: no lists of tensors, neither in nor out."""
    row_lse, row_pos, kept = torch.ops.mmcore.product_similarity(
        list(inputs[:count]), *inputs[count:]
    )
    return row_lse, row_pos, *kept


_call = differentiable(_call_flat, save=save, backward=backward)


def call(
    features: Sequence[Tensor], scale: Tensor, order: Tensor | None, *, backend: str | None
) -> tuple[Tensor, Tensor]:
    """row_lse and row_pos of every modality, differentiable."""
    first, requested, kept_size = features[0], selected(backend), 0
    dtype, rows = autocast_dtype(first) or first.dtype, first.shape[0]
    of_bfloat16 = multiplies_bfloat16(as_multiplied(first[:0]))
    if wants_gradient(*features, scale):
        most = current(first.device.type)
        kept_size = kept_tiles(choose(requested, first), most, rows, rows, of_bfloat16, False)
    row_lse, row_pos, *_ = _call(
        len(features), *features, scale, order, dtype, of_bfloat16, kept_size, requested
    )
    return row_lse, row_pos
