"""The hardest negative of every row and every column, and its product.

    row_index_i = argmax_{j counted} ⟨x_i, y_j⟩       row_hardest_i = ⟨x_i, y_row_index(i)⟩
    col_index_j = argmax_{i counted} ⟨x_i, y_j⟩       col_hardest_j = ⟨x_col_index(j), y_j⟩
    positive_i = ⟨x_i, y_i⟩

Counted is every pair off the diagonal of different groups (pairs.py). Where none is, the index is
−1 and the product −∞, with gradient 0. The gradient flows to the rows that were found, O(N·D).

x, y: (N, D); indices: (N,) int64; products: (N,) float64, whatever was rounded in the search.
"""

from __future__ import annotations

import torch

from mmcore.backends import selected
from mmcore.backends.reference.hardest_negatives import (
    HardestNegatives,
    NegativesUpstream,
    NegativesWanted,
)
from mmcore.backends.reference.hardest_negatives import NegativesInputs as NegativesInputs
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import as_multiplied, precision_of


def fake(inputs: NegativesInputs) -> HardestNegatives:
    x = inputs.x
    products = (x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(3))
    indices = (x.new_empty(x.shape[0], dtype=torch.int64) for _ in range(2))
    return HardestNegatives(*products, *indices)


def products(inputs: NegativesInputs, wanted: NegativesWanted) -> list[Product]:
    """The matrix that is searched. Its gradient goes to the rows that were found: no product."""
    return [Product(inputs.x.numel() * inputs.y.shape[0], False, False)]


family = Family(
    "hardest_negatives", inputs=NegativesInputs, results=HardestNegatives,
    upstream=NegativesUpstream, wanted=NegativesWanted, fake=fake,
    reads=lambda inputs: ("row_index", "col_index"), products=products,
)  # fmt: skip


def call(inputs: NegativesInputs, *, backend: str | None) -> HardestNegatives:
    """The products, differentiable, and the indices; the inputs are checked."""
    x = as_multiplied(inputs.x)
    inputs = inputs._replace(x=x, y=as_multiplied(inputs.y), precision=precision_of(x))
    return family(inputs, backend=selected(backend))
