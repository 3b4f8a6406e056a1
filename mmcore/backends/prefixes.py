"""Prefixes of the width one after the other, over the normalisation and statistics of a backend.

What a backend does that has no kernel for all prefixes at once. A normalised copy of one prefix
rests in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import as_inputs

Tensors = tuple[Tensor, ...]


class PrefixCall(NamedTuple):
    """The arguments of the op by name."""

    x: Tensor
    y: Tensor
    scale: Tensor
    ends: Sequence[int]
    eps: float
    target: Tensor
    row_group: Tensor | None
    col_group: Tensor | None
    multiplies_bfloat16: bool

    def matrix(self, x: Tensor, y: Tensor) -> tuple[Any, ...]:
        """The arguments of softmax_similarity for two normalised prefixes."""
        pairs = (self.target, None, None, self.row_group, self.col_group)
        settings = ("all", True, self.multiplies_bfloat16, "sum")
        return (x, y, self.scale, None, None, None, *pairs, *settings)

    def zeros(self) -> Tensors:
        """Sums for the gradients of x, y and scale."""
        wide = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        # Dense, whatever the strides of x and y.
        of_x, of_y = (z.new_zeros(z.shape, dtype=wide) for z in (self.x, self.y))
        return of_x, of_y, torch.zeros_like(self.scale, dtype=torch.float64)

    def as_inputs(self, sums: Sequence[Tensor | None], wanted: Sequence[bool]) -> Tensors:
        """Gradients rounded to the dtypes of x, y and scale; empty where they are not wanted."""
        return as_inputs(sums, (self.x, self.y, self.scale), wanted)


class PrefixLoop(NamedTuple):
    """The two ops of a backend that are repeated, with their backwards."""

    l2_normalize: Callable[..., Tensors]
    l2_normalize_backward: Callable[..., Tensor]
    softmax_similarity: Callable[..., Tensors]
    softmax_similarity_backward: Callable[..., Tensors]

    def forward(self, *arguments: Any) -> Tensors:
        *described, kept_size = arguments
        call = PrefixCall(*described)
        parts = [self.statistics(call, end) for end in call.ends]
        kept = call.x.new_empty(kept_size, dtype=torch.float32)
        is_apart = call.x.new_ones(len(call.ends), dtype=torch.bool)
        return (*(torch.stack(part) for part in zip(*parts, strict=True)), kept, is_apart)

    def statistics(self, call: PrefixCall, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """row_lse, col_lse and row_pos of one prefix."""
        x, y = (self.l2_normalize(z[:, :end], call.eps)[0] for z in (call.x, call.y))
        row_lse, col_lse, row_pos, *_ = self.softmax_similarity(*call.matrix(x, y), 0)
        return row_lse, col_lse, row_pos

    def backward(self, *arguments: Any) -> Tensors:
        *described, row_lse, col_lse, _, _, _ = arguments[:14]
        *upstream, wanted = arguments[14:]
        call = PrefixCall(*described)
        sums = self.add_gradients(call, range(len(call.ends)), (row_lse, col_lse), upstream)
        return call.as_inputs(sums, wanted)

    def add_gradients(
        self,
        call: PrefixCall,
        prefixes: Sequence[int],
        log_sum_exps: Sequence[Tensor],
        upstream: Sequence[Tensor],
        sums: Tensors = (),
    ) -> Tensors:
        """The gradients of x, y and scale that some prefixes send, added to `sums`; not rounded."""
        grad_x, grad_y, grad_scale = sums or call.zeros()
        for k in prefixes:
            (x, x_norm), (y, y_norm) = (
                self.l2_normalize(z[:, : call.ends[k]], call.eps) for z in (call.x, call.y)
            )
            row_lse, col_lse = (part[k] for part in log_sum_exps)
            grad_row_lse, grad_col_lse, grad_pos = (part[k] for part in upstream)
            of_x, of_y, of_scale, *_ = self.softmax_similarity_backward(
                *call.matrix(x, y), row_lse, col_lse, row_lse, col_lse,
                x.new_empty(0, dtype=torch.float32), grad_row_lse, grad_col_lse,
                grad_pos, torch.zeros_like(col_lse), [True, True, True, False, False, False],
            )  # fmt: skip
            grad_scale = grad_scale + of_scale
            for total, z, norm, of_z in ((grad_x, x, x_norm, of_x), (grad_y, y, y_norm, of_y)):
                total[:, : call.ends[k]] += self.l2_normalize_backward(z, norm, of_z, call.eps)
        return grad_x, grad_y, grad_scale
