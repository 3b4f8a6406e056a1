"""Tiles that `python -m mmcore tune` found the fastest, in a file that outlives the process.

{GPU: {"kind of epilogue, columns of the features, dtype": tile}}. MMCORE_TILES names the file, or
with an empty value that there is none; the default is mmcore/tiles.json in the user's cache folder.
Processes read it once, at their first product.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from mmcore.backends.triton.kept_size import BLOCK_COLUMNS, BLOCK_ROWS


class ProductTile(NamedTuple):
    """What one program of a product takes at a time: BM × BN numbers, BK deep."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    # Whether the GPU's copy engine brings the operands (TMA of Hopper and later).
    USES_DESCRIPTORS: bool = False


Tuned = dict[str, dict[str, ProductTile]]


def file_of_tiles() -> Path | None:
    """The file that tiles are read from and written to; None if there is none."""
    named = os.environ.get("MMCORE_TILES")
    if named is not None:
        return Path(named) if named else None
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "mmcore" / "tiles.json"


@cache
def load() -> Tuned:
    """Every tile that a search has found; empty before the first search."""
    path = file_of_tiles()
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        return {
            gpu: {key: _checked(ProductTile(*tile)) for key, tile in tiles.items()}
            for gpu, tiles in found.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the file of tiles must be as `python -m mmcore tune` writes it, got {path.name} "
            f"with {error}; delete it, or set MMCORE_TILES"
        ) from error


def _checked(tile: ProductTile) -> ProductTile:
    """The tile, if its sides divide the blocks in which exponentials are kept."""
    if BLOCK_ROWS % tile.BM or BLOCK_COLUMNS % tile.BN:
        raise ValueError(f"a tile of {tile.BM} × {tile.BN}")
    return tile


def save(gpu: str, found: dict[str, ProductTile]) -> Path:
    """Adds tiles of one GPU to the file in one step, so that no other process reads half of it."""
    path = file_of_tiles()
    if path is None:
        raise ValueError("MMCORE_TILES must name a file to write tiles to, got an empty value")
    load.cache_clear()
    tuned = {**load()}
    tuned[gpu] = {**tuned.get(gpu, {}), **found}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(tuned, indent=1) + "\n")
    draft.replace(path)
    load.cache_clear()
    return path


def key_of(kind: str, columns: int, dtype: torch.dtype) -> str:
    """The key of a tile in the file."""
    return f"{kind}, {columns}, {str(dtype).removeprefix('torch.')}"


def find(device: torch.device, kind: str, columns: int, dtype: torch.dtype) -> ProductTile | None:
    """The tile that was found for this GPU, or None."""
    tuned = load()
    if not tuned:
        return None
    return tuned.get(gpu_name(device), {}).get(key_of(kind, columns, dtype))


@cache
def gpu_name(device: torch.device) -> str:
    """The driver's name for it."""
    name: str = torch.cuda.get_device_name(device)
    return name
