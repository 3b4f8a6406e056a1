"""Tiles that are looked for, filed, and found again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import IS_GPU

pytest.importorskip("triton")
from mmcore import tuning
from mmcore.backends.triton import launch, tuned_tiles
from mmcore.backends.triton.tuned_tiles import ProductTile

SMALL, LARGE = ProductTile(16, 16, 16, 4, 1), ProductTile(32, 32, 16, 4, 1)
BROKEN = ProductTile(24, 32, 16, 4, 1)  # no power of two


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of tiles for this test alone."""
    path = tmp_path / "cache" / "tiles.json"
    monkeypatch.setenv("MMCORE_TILES", str(path))
    tuned_tiles.load.cache_clear()
    yield path
    tuned_tiles.load.cache_clear()


def pretended(times: dict[ProductTile, float]) -> Callable[[Callable[[], object]], float]:
    """Milliseconds as a table has them, of the one tile that is tried."""

    def time_ms(call: Callable[[], object]) -> float:
        call()
        (tile,) = launch.FORCED_TILES.values()
        return times[tile]

    return time_ms


def test_the_fastest_tile_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED_TILE", SMALL)
    said: list[str] = []
    times = {SMALL: 2.0, LARGE: 1.0}
    found = tuning.tune(40, 24, torch.bfloat16, [BROKEN, LARGE], pretended(times), said.append)
    assert found == {f"{kind}, 24, bfloat16": LARGE for kind in tuning.KINDS}
    assert len(said) == len(tuning.KINDS)
    assert launch.FORCED_TILES == {}


def test_a_kind_without_any_tile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED_TILE", SMALL)
    said: list[str] = []
    no_times = pretended({})  # as where shared memory is short for every tile
    assert tuning.tune(40, 24, torch.bfloat16, [LARGE], no_times, said.append) == {}
    assert all(line.endswith("no tile runs") for line in said)


def test_what_was_filed_is_found_by_gpu_kind_and_width(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_tiles, "gpu_name", lambda _: "Some GPU")
    device = torch.device("cuda:0")
    assert tuned_tiles.find(device, "sums", 512, torch.bfloat16) is None
    tuned_tiles.save("Some GPU", {"sums, 512, bfloat16": LARGE})
    tuned_tiles.save("Some GPU", {"gradient, 512, bfloat16": SMALL})
    tuned_tiles.save("Another GPU", {"sums, 512, bfloat16": SMALL})
    assert tuned_tiles.find(device, "sums", 512, torch.bfloat16) == LARGE
    assert tuned_tiles.find(device, "gradient", 512, torch.bfloat16) == SMALL
    assert tuned_tiles.find(device, "sums", 768, torch.bfloat16) is None
    assert json.loads(file.read_text()).keys() == {"Some GPU", "Another GPU"}
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(IS_GPU, reason="pretends to be a GPU")
def test_launches_take_what_was_filed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_tiles, "gpu_name", lambda _: "Some GPU")
    monkeypatch.setattr(launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    x: Any = torch.empty(4, 512, device="meta")
    assert (
        launch.product_tile(x, torch.bfloat16, "sums")
        == launch.HALF_PRECISION_TILES["sm_90"]["sums"]
    )
    tuned_tiles.save("Some GPU", {"sums, 512, bfloat16": LARGE})
    assert launch.product_tile(x, torch.bfloat16, "sums") == LARGE
    assert launch.product_tile(x, torch.float32, "sums") == launch.FLOAT32_TILE


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"a": {"b": 3}}', '{"a": {"b": [1, 2]}}', '{"a": {"b": [256, 64, 64, 8, 3]}}'],
)
def test_a_spoilt_file_is_named(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match=r"must be as .* writes it, got tiles\.json"):
        tuned_tiles.find(torch.device("cuda:0"), "sums", 512, torch.bfloat16)


def test_no_file_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCORE_TILES", "")
    assert tuned_tiles.find(torch.device("cuda:0"), "sums", 512, torch.bfloat16) is None
    with pytest.raises(ValueError, match="must name a file"):
        tuned_tiles.save("Some GPU", {})


def test_candidates_fit_what_is_kept() -> None:
    tiles = list(tuning.candidates(has_copy_engine=True))
    assert len(tiles) == len(set(tiles))
    assert all(128 % tile.BM == 0 and 256 % tile.BN == 0 for tile in tiles)
    assert not any(tile.USES_DESCRIPTORS for tile in tuning.candidates(has_copy_engine=False))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "mmcore", "tune"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch sees no GPU" in done.stderr
