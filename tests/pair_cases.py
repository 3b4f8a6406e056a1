"""Ways to say which pairs are positives and which are left out, and the masks that they mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Vectors = dict[str, Tensor]


def targets(rows: int, columns: int) -> Vectors:
    return {"target": torch.randint(-1, columns, (rows,))}


def labels(rows: int, columns: int) -> Vectors:
    row, col = torch.randint(-1, 6, (rows,)), torch.randint(-1, 6, (columns,))
    return {"row_label": row, "col_label": col}


def groups(rows: int, columns: int) -> Vectors:
    row, col = torch.randint(-1, 5, (rows,)), torch.randint(-1, 5, (columns,))
    return {"row_group": row, "col_group": col}


def targets_and_groups(rows: int, columns: int) -> Vectors:
    return targets(rows, columns) | groups(rows, columns)


def labels_and_groups(rows: int, columns: int) -> Vectors:
    return labels(rows, columns) | groups(rows, columns)


PAIRS: list[Callable[[int, int], Vectors]] = [
    targets,
    targets_and_groups,
    labels,
    labels_and_groups,
]


def other_views(rows: int, _: int) -> Vectors:
    """NT-Xent: the other view of the same picture; nothing is compared with itself."""
    return {"target": (torch.arange(rows) + rows // 2) % rows, "row_group": torch.arange(rows)}


def one_sided_targets(rows: int, _: int) -> Vectors:
    """Targets that are not mutual, some of them in their row's own group."""
    return {"target": torch.randint(-1, rows, (rows,)), "row_group": torch.randint(-1, 4, (rows,))}


def classes(rows: int, _: int) -> Vectors:
    """SupCon: positives by class, nothing is compared with itself."""
    return {"row_label": torch.randint(-1, 5, (rows,)), "row_group": torch.arange(rows)}


SYMMETRIC_PAIRS: list[Callable[[int, int], Vectors]] = [other_views, one_sided_targets, classes]


def masks(vectors: Vectors, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """(rows, columns) booleans: positives, and pairs that are left out of denominators."""

    def equal(kind: str) -> Tensor:
        row = vectors.get(f"row_{kind}", torch.full((rows,), -1))
        col = vectors.get(f"col_{kind}", row if rows == columns else None)
        if col is None:
            return torch.zeros(rows, columns, dtype=torch.bool)
        return (row[:, None] == col[None]) & (row[:, None] >= 0)

    same_group = equal("group")
    if "target" not in vectors:
        return equal("label") & ~same_group, same_group
    positive = vectors["target"][:, None] == torch.arange(columns)
    return positive, same_group & ~positive
