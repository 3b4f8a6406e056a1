"""A matrix by slabs of rows, for the references: N×M is never stored, whatever the dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmcore.backends import workspace

# Of a slab a backward holds the products, the logits, G, masks, and float64 copies of some.
BYTES_OF_AN_ENTRY = 64
LEAST_ROWS = 32


def slabs(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Ranges of rows whose entries fit into the workspace, of LEAST_ROWS at least."""
    fitting = workspace.current(device.type) // (BYTES_OF_AN_ENTRY * columns)
    size = max(LEAST_ROWS, fitting)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))
