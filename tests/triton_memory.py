"""What launches of the Triton backend take, in formulas; docs/gpu-tuning.md has them in words."""

from __future__ import annotations

from typing import NamedTuple

import torch
from fake_gpu import PROCESSORS
from torch import Tensor

from mmcore.backends.triton import kept_size

MIB, GB = 2**20, 10**9
# float64 statistics, float32 terms, and what is between them, for a row or a column.
BYTES_OF_A_ROW = 200
TILE_ROWS, LEAST_BLOCKS, PROGRAMS = 128, 64, 2048


class Batch(NamedTuple):
    """One similarity matrix, and the workspace."""

    rows: int
    columns: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    workspace: int = 2**30
    is_own_transpose: bool = False

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """x, y, scale."""
        x = torch.empty(self.rows, self.width, dtype=self.dtype)
        y = None if self.is_own_transpose else torch.empty(self.columns, self.width, dtype=x.dtype)
        return x, y, torch.empty(())

    def target(self) -> Tensor:
        return torch.empty(self.rows, dtype=torch.int64)

    def has_kept(self) -> bool:
        """Whether E is kept of any rows: where products are of bfloat16."""
        if self.dtype != torch.bfloat16 or self.is_own_transpose:
            return False
        return self.workspace // 2 >= TILE_ROWS * self.columns * self.itemsize

    def kept_bytes(self, terms: int = 0) -> int:
        """E of whole blocks of rows in half the workspace, the matrix's numbers, terms of G."""
        size = kept_size.NUMBERS + terms
        if self.has_kept():
            size += kept_size.rows_of_exponentials(self.workspace, self.rows, self.columns)
        return 4 * size

    def chunk_bytes(self, others: int = 0, block: int = TILE_ROWS) -> int:
        """G of as many rows as the workspace holds beside `others`, one wave of tiles at least."""
        row = self.columns * self.itemsize
        held = (self.workspace - others) // row // block
        least = -(-PROCESSORS // -(-self.columns // TILE_ROWS))
        return block * min(max(held, least), -(-self.rows // block)) * row

    def vectors_bytes(self) -> int:
        return BYTES_OF_A_ROW * (self.rows + self.columns)

    def float32_bytes(self, rows: int) -> int:
        return 4 * rows * self.width


def softmax_forward_bytes(batch: Batch, terms: int = 0) -> int:
    """What is kept, and sums of columns of a slab of rows."""
    blocks = -(-batch.rows // TILE_ROWS)
    slab = min(blocks, max(LEAST_BLOCKS, batch.workspace // (4 * batch.columns)))
    return batch.kept_bytes(terms) + 4 * slab * batch.columns + batch.vectors_bytes()


def softmax_backward_bytes(batch: Batch, terms: int = 0) -> int:
    """What was kept, a chunk of G, its product, and both gradients.

    A product is rounded to a gradient at once, unless the scale's gradient is summed from it, or
    float16 needs a factor more. With several chunks the gradient of y is a float32 sum, and rounded
    at the end, without the chunk.
    """
    kept = batch.kept_bytes(terms)
    chunk = batch.chunk_bytes(kept)
    rows = min(batch.rows, chunk // (batch.columns * batch.itemsize))
    is_rounded_later = batch.has_kept() or batch.dtype == torch.float16
    product = (4 if is_rounded_later else batch.itemsize) * rows * batch.width
    columns = 0 if batch.is_own_transpose else batch.columns
    of_x, of_y = (batch.itemsize * size * batch.width for size in (batch.rows, columns))
    if rows == batch.rows:
        later = product if is_rounded_later else 0
        of_sums = batch.float32_bytes(columns) if batch.dtype == torch.float16 else 0
        return kept + chunk + of_x + max(later, of_sums + of_y) + batch.vectors_bytes()
    sums = batch.float32_bytes(columns)
    return kept + of_x + sums + max(chunk + product, of_y) + batch.vectors_bytes()
