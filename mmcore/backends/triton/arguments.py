"""Arguments that kernels take in groups: each group is one NamedTuple.

A group whose fields are in capitals is known at compile time and passed as one `tl.constexpr`.
Tensor descriptors stay arguments of their own: Triton 3.6 takes none inside a tuple. It also treats
a field of a constant group as a plain integer and refuses it in a list of sizes, so kernels first
bind it: ``BM: tl.constexpr = TILE.BM``.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Ids(NamedTuple):
    """Which pairs are positives, and which are excluded (ops/pairs.py)."""

    target: Any  # (N,) int64
    row_label: Any  # (N,) int32, as all below
    col_label: Any  # (M,)
    row_group: Any  # (N,)
    col_group: Any  # (M,)


class Size(NamedTuple):
    """Of the similarity matrix."""

    rows: Any
    columns: Any


class Strides(NamedTuple):
    """Of rows, in numbers; 0 for what a kernel does not take."""

    x: Any
    y: Any
    out: Any = 0
    kept: Any = 0


class Chunk(NamedTuple):
    """Consecutive rows of the similarity matrix."""

    first_row: Any
    rows: Any


class Biases(NamedTuple):
    """Of all logits, of rows and of columns."""

    scalar: Any  # 0-D
    row: Any  # (N,)
    col: Any  # (M,)


class SideBiases(NamedTuple):
    """Biases of the rows, or of the columns (softmax_similarity/shared_shift.py)."""

    bias: Any  # in nats, float32
    factor: Any  # 2^(log2(e)·bias − largest) ≤ 1, float32
    largest: Any  # log2(e) times the largest bias, 0-D float64
    are_normal: Any  # whether no factor has lost digits of its bias: 1 or 0, 0-D float64


class BothSides(NamedTuple):
    """Something of the rows, and the same of the columns."""

    row: Any
    col: Any


class WhichPairs(NamedTuple):
    """How positives are named, and which pairs the denominators count."""

    DENOMINATOR: str
    HAS_TARGET: bool
    HAS_LABELS: bool
    HAS_GROUPS: bool
    IS_DIAGONAL: bool = False  # whether the positive of row i is column i, and no target is stored


class WhichBiases(NamedTuple):
    """Which of the biases there are."""

    HAS_BIAS: bool
    HAS_ROW_BIAS: bool
    HAS_COL_BIAS: bool


class Sides(NamedTuple):
    """What softmax statistics of rows and of columns need."""

    HAS_COLUMNS: bool  # whether columns have statistics
    IS_SYMMETRIC: bool  # whether y is x, and half of the matrix is computed
    HAS_ROW_BIAS: bool
    HAS_COL_BIAS: bool


class Tile(NamedTuple):
    """A tile of products: BM × BN numbers, BK deep at a time, and how they are multiplied."""

    BM: int
    BN: int
    BK: int
    USES_DESCRIPTORS: bool  # whether the GPU's copy engine brings the operands
    DEPTH: int  # the columns of x and y
    WIDENS: bool  # whether operands become float32 first, for Triton's interpreter
    IS_PRECISE: bool  # whether products are of float32
    PRECISION: str  # of such products
