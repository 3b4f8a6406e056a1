"""Steps of clip_loss and siglip_loss on a GPU that is not there: memory, and no look at the device.

What a CUDA graph captures must not wait for the device or read from it. Kernels that need memory
of Triton's own have no launch plan: test_launch_plan.py fails where one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import mmcore

pytest.importorskip("triton")
from fake_gpu import Launches, Memory, fake_gpu
from fused_losses import Fused, every_loss
from step_counts import TorchOps, counted_gpu, features, number
from triton_memory import Batch, softmax_backward_bytes, softmax_forward_bytes

from mmcore.backends.reference.clip import ClipInputs, ClipUpstream, ClipWanted
from mmcore.backends.reference.siglip import SiglipInputs, SiglipUpstream, SiglipWanted
from mmcore.backends.triton import clip, kept_size, siglip

ROWS = 4096


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    with fake_gpu(monkeypatch) as launches:
        yield launches


BATCHES = [
    Batch(65536, 65536, 768),
    Batch(65536, 65536, 768, workspace=0),
    Batch(32768, 32768, 512, workspace=2**28),
    Batch(8192, 8192, 512),
    Batch(8192, 8192, 512, torch.float32),
    Batch(8192, 8192, 512, torch.float16),
    Batch(8192, 8192, 512, torch.float16, workspace=2**26),
]
every_batch = pytest.mark.parametrize("batch", BATCHES, ids=str)


def precision(batch: Batch) -> str:
    return "medium" if batch.dtype == torch.bfloat16 else "highest"


def clip_peaks(batch: Batch, keeps: bool) -> tuple[int, int]:
    """Bytes above the inputs in the forward, and in the backward with the gradients."""
    x, y, scale = batch.inputs()
    assert y is not None
    inputs = ClipInputs(x, y, scale, precision(batch))
    with mmcore.workspace(batch.workspace), Memory(x, y, scale) as memory:
        found = clip.forward(inputs, kept_size.clip(batch.workspace, inputs) if keeps else 0)
        forward = memory.peak
        memory.peak = memory.now
        if keeps:
            clip.backward(
                inputs, found, ClipUpstream(found.loss), ClipWanted(True, True, True), True
            )
        return forward, memory.peak


@every_batch
def test_a_clip_takes_what_the_formula_says(gpu: Launches, batch: Batch) -> None:
    """Catches a buffer more, and chunks beside what was kept that exceed the workspace."""
    terms = kept_size.terms_size(batch.rows, batch.rows, kept_size.LOSS_TERMS)
    forward, backward = clip_peaks(batch, keeps=True)
    for peak, most in (
        (forward, softmax_forward_bytes(batch, terms)),
        (backward, softmax_backward_bytes(batch, terms)),
    ):
        assert most - batch.vectors_bytes() <= peak <= most


@every_batch
def test_a_clip_without_gradients_keeps_nothing(gpu: Launches, batch: Batch) -> None:
    """Catches E, or terms of G, that nothing will read."""
    forward, _ = clip_peaks(batch, keeps=False)
    assert forward <= softmax_forward_bytes(batch) - batch.kept_bytes()


def siglip_peaks(batch: Batch, keeps: bool) -> tuple[int, int]:
    """As clip_peaks."""
    x, y, scale = batch.inputs()
    assert y is not None
    bias = torch.empty(())
    inputs = SiglipInputs(x, y, scale, bias, precision(batch))
    with mmcore.workspace(batch.workspace), Memory(x, y, scale, bias) as memory:
        found = siglip.forward(inputs, x.numel() + y.numel() if keeps else 0)
        forward = memory.peak
        memory.peak = memory.now
        wanted = SiglipWanted(True, True, True, True)
        siglip.backward(inputs, found, SiglipUpstream(found.loss), wanted, True)
        return forward, memory.peak


@every_batch
@pytest.mark.parametrize("keeps", [True, False])
def test_a_siglip_takes_what_the_formula_says(gpu: Launches, batch: Batch, keeps: bool) -> None:
    """Catches a buffer more, and gradients that are held twice."""
    forward, backward = siglip_peaks(batch, keeps)
    sums = batch.float32_bytes(2 * batch.rows)
    results, chunk = batch.itemsize * 2 * batch.rows * batch.width, batch.chunk_bytes()
    tiles = 2 * 8 * 4 * (batch.rows // 128 + 1) * (batch.columns // 64 + 1)
    others = batch.vectors_bytes() + tiles
    product = batch.float32_bytes(chunk // (batch.columns * batch.itemsize))
    if keeps:
        assert sums + chunk <= forward <= sums + chunk + others
        assert sums + results <= backward <= sums + results + others
    else:
        assert forward <= others
        assert backward <= max(sums + chunk + product, sums + results) + others


class OnDevice(TorchOps):
    """Refuses whatever is not on the device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        found = super().__torch_dispatch__(function, types, arguments, options)
        for leaf in tree_leaves((arguments, found)):
            if isinstance(leaf, Tensor):
                assert leaf.device.type == "meta", f"{function} has a tensor on {leaf.device}"
        return found


@every_loss
@pytest.mark.parametrize("size", [0, 2**30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_numbers", [True, False])
def test_a_step_can_be_captured(
    fused: Fused, size: int, dtype: torch.dtype, has_numbers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a value that the host reads, and a number that it copies: CUDA graphs allow neither.

    Meta tensors have no values to read, and what is copied comes from the CPU.
    """
    with counted_gpu(monkeypatch) as launches, mmcore.workspace(size), OnDevice():
        x, y = features(ROWS, dtype), features(ROWS, dtype)
        scalars = fused.scalars if has_numbers else [number() for _ in fused.scalars]
        loss = fused.loss(x, y, *scalars)
        loss.backward()
    assert len(launches) >= 4
    assert x.grad is not None
    assert x.grad.dtype == dtype
