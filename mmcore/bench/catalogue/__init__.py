"""The catalogue: one row for each objective of `mmcore.functional`.

A row has the function and its module, how to make arguments at any size, the variants of the call
that are worth a test or a benchmark, the plain formula over whole matrices, the multiplications
that it takes, and how other libraries compute the same. Tests and benchmarks read it; a new
objective is a new row in the file of its family.
"""

from mmcore.bench.catalogue import (
    captioning,
    contrastive,
    distillation,
    geometry,
    gram,
    hard_negatives,
    matryoshka,
    multimodal,
    ranking,
    supervised,
    views,
    volume,
)
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.row import Case, Row, Variant, filled

__all__ = ["CASES", "ROWS", "Case", "Draw", "Row", "Variant", "filled"]

FAMILIES = (
    contrastive,
    supervised,
    views,
    ranking,
    hard_negatives,
    distillation,
    captioning,
    geometry,
    matryoshka,
    multimodal,
    volume,
    gram,
)
ROWS = {row.name: row for family in FAMILIES for row in family.ROWS}
CASES = {case.id: case for row in ROWS.values() for case in row.cases()}
