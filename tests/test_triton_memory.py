"""Launches of the Triton backend on a GPU that is not there: they never wait, and what they take.

Sizes are those of real batches; no kernel runs. triton_memory.py has the formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mmcore

pytest.importorskip("triton")
from fake_gpu import Launches, Memory, fake_gpu
from triton_memory import GB, MIB, Batch, softmax_backward_bytes, softmax_forward_bytes

from mmcore.backends.inputs import (
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.backends.reference import distillation
from mmcore.backends.reference.hardest_negatives import (
    NegativesInputs,
    NegativesUpstream,
    NegativesWanted,
)
from mmcore.backends.reference.prefix_similarity import PrefixInputs, PrefixUpstream, PrefixWanted
from mmcore.backends.reference.project import (
    ProjectionInputs,
    ProjectionUpstream,
    ProjectionWanted,
)
from mmcore.backends.triton import hardest_negatives, kept_size
from mmcore.backends.triton.l2_normalize import backward as l2_normalize_backward
from mmcore.backends.triton.l2_normalize import forward as l2_normalize_forward
from mmcore.backends.triton.prefix_similarity import backward as prefix_backward
from mmcore.backends.triton.prefix_similarity import forward as prefix_forward
from mmcore.backends.triton.project import backward as project_backward
from mmcore.backends.triton.project import forward as project_forward
from mmcore.backends.triton.sigmoid_similarity import backward as sigmoid_backward
from mmcore.backends.triton.sigmoid_similarity import forward as sigmoid_forward
from mmcore.backends.triton.softmax_similarity import backward as softmax_backward
from mmcore.backends.triton.softmax_similarity import forward as softmax_forward


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    with fake_gpu(monkeypatch) as launches:
        yield launches


def softmax_peaks(batch: Batch, positives: str = "sum", **pairs: Tensor) -> tuple[int, int]:
    """Bytes above the inputs in the forward, and in the backward with the gradients."""
    x, y, scale = batch.inputs()
    names = ("target", "row_label", "col_label", "row_group", "col_group")
    vectors = [pairs.get(name) for name in names]
    inputs = SimilarityInputs(
        x, y, scale, None, None, None, *vectors, "all", not batch.is_own_transpose,
        "medium" if batch.dtype == torch.bfloat16 else "highest", positives,
    )  # fmt: skip
    with mmcore.workspace(batch.workspace), Memory(x, y, scale, *vectors) as memory:
        found = softmax_forward(inputs, kept_size.softmax_similarity(batch.workspace, inputs))
        forward = memory.peak
        memory.peak = memory.now
        upstream = SoftmaxUpstream(*(torch.empty_like(part) for part in found[:4]))
        wanted = SoftmaxWanted(True, y is not None, True)
        gradients = softmax_backward(inputs, found, upstream, wanted, rounds=True)
        assert gradients[0] is not None
        assert gradients[0].shape == x.shape
        return forward, memory.peak


BATCHES = [
    Batch(65536, 65536, 768),
    Batch(65536, 65536, 768, workspace=0),
    Batch(32768, 32768, 512, workspace=2**28),
    Batch(8192, 40000, 512),
    Batch(8192, 8192, 512, torch.float32),
    Batch(8192, 8192, 512, torch.float16, workspace=2**26),
    Batch(16384, 16384, 512, is_own_transpose=True),
    Batch(8192, 8192, 512, workspace=0, is_own_transpose=True),
]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_a_softmax_takes_what_the_formula_says(gpu: Launches, batch: Batch) -> None:
    forward, backward = softmax_peaks(batch, target=batch.target())
    for peak, most in (
        (forward, softmax_forward_bytes(batch)),
        (backward, softmax_backward_bytes(batch)),
    ):
        assert most - batch.vectors_bytes() <= peak <= most


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_joined_positives_take_the_gradients_of_one_pass_more(gpu: Launches, batch: Batch) -> None:
    row_label, col_label = (
        torch.empty(size, dtype=torch.int64) for size in (batch.rows, batch.columns)
    )
    labels = {"row_label": row_label}
    if not batch.is_own_transpose:
        labels["col_label"] = col_label
    (_, summed), (forward, joined) = (
        softmax_peaks(batch, positives, **labels) for positives in ("sum", "log_sum_exp")
    )
    sides = batch.rows + (0 if batch.is_own_transpose else batch.columns)
    of_first = batch.itemsize * sides * batch.width
    assert summed < joined <= summed + of_first + batch.vectors_bytes()
    assert forward <= 2 * softmax_forward_bytes(batch)


def sigmoid_peaks(batch: Batch, keeps: bool, has_backward: bool = True) -> tuple[int, int]:
    """As softmax_peaks, of SigLIP."""
    x, y, scale = batch.inputs()
    target, bias = batch.target(), torch.empty(())
    inputs = SimilarityInputs(x, y, scale, bias, None, None, target, None, None, None, None)
    size = x.numel() + (0 if y is None else y.numel())
    with mmcore.workspace(batch.workspace), Memory(x, y, scale, bias, target) as memory:
        found = sigmoid_forward(inputs, size if keeps else 0)
        forward = memory.peak
        memory.peak = memory.now
        if not has_backward:
            return forward, 0
        wanted = SigmoidWanted(True, y is not None, True, True)
        sigmoid_backward(inputs, found, SigmoidUpstream(*found[:2]), wanted, rounds=True)
        return forward, memory.peak


def sigmoid_pass_bytes(batch: Batch, keeps: bool) -> int:
    """Both products in float32, and a chunk of G; with a product, unless both are kept."""
    sides = batch.rows + (0 if batch.is_own_transpose else batch.columns)
    chunk = batch.chunk_bytes(block=64 if batch.is_own_transpose else 128)
    product = 0 if keeps else batch.float32_bytes(chunk // (batch.columns * batch.itemsize))
    return batch.float32_bytes(sides) + chunk + product


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("keeps", [True, False])
def test_a_sigmoid_takes_what_the_formula_says(gpu: Launches, batch: Batch, keeps: bool) -> None:
    forward, backward = sigmoid_peaks(batch, keeps)
    sides = batch.rows + (0 if batch.is_own_transpose else batch.columns)
    sums, results = batch.float32_bytes(sides), batch.itemsize * sides * batch.width
    a_pass = sigmoid_pass_bytes(batch, keeps)
    most_forward = a_pass if keeps else 0
    most_backward = sums + results if keeps else max(a_pass, sums + results)
    vectors = batch.vectors_bytes() + 2 * 8 * 4 * (batch.rows // 128 + 1) * (
        batch.columns // 64 + 1
    )
    assert most_forward <= forward <= most_forward + vectors
    assert backward <= most_backward + vectors


@pytest.mark.parametrize("is_own_transpose", [False, True])
def test_sums_alone_take_little_at_any_size(gpu: Launches, is_own_transpose: bool) -> None:
    """Without gradients nothing but sums is stored; fake_gpu.py refuses a grid that is too long."""
    batch = Batch(2**20, 2**20, 64, is_own_transpose=is_own_transpose)
    forward, _ = sigmoid_peaks(batch, keeps=False, has_backward=False)
    assert forward <= batch.vectors_bytes() + 32 * MIB


def test_the_goals_of_memory(gpu: Launches) -> None:
    """N = 65,536, D = 768, gradients included; and four million rows on one GPU."""
    lean = Batch(65536, 65536, 768, workspace=0)
    assert max(softmax_peaks(lean, target=lean.target())) <= 0.50 * GB
    huge = Batch(2**22, 2**22, 512)
    assert max(softmax_forward_bytes(huge), softmax_backward_bytes(huge)) <= 30 * GB


@pytest.mark.parametrize("pairs", ["target", "labels", "labels and groups"])
@pytest.mark.parametrize("is_own_transpose", [True, False])
def test_no_launch_waits_for_the_device(gpu: Launches, pairs: str, is_own_transpose: bool) -> None:
    batch = Batch(3000, 3000, 256, is_own_transpose=is_own_transpose)
    ids = torch.empty(3000, dtype=torch.int64)
    names = {
        "target": ["target"],
        "labels": ["row_label"],
        "labels and groups": ["row_label", "row_group"],
    }
    vectors = dict.fromkeys(names[pairs], ids)
    if not is_own_transpose:
        vectors |= {name.replace("row", "col"): ids for name in names[pairs] if "row" in name}
    softmax_peaks(batch, **vectors)
    is_plain = pairs == "target" and not is_own_transpose
    sums = "hopper_sum_exponentials_kernel" if is_plain else "sum_exponentials_kernel"
    assert {sums, "store_gradient_kernel"} <= set(gpu.names())


def test_what_would_wait_is_noticed(gpu: Launches) -> None:
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        torch.empty(3).sum().item()


def test_rows_and_projections_do_not_wait(gpu: Launches) -> None:
    x, weight, bias = torch.empty(500, 96), torch.empty(64, 96), torch.empty(64)
    norm = torch.empty(96)
    inputs = ProjectionInputs(x, weight, bias, "layer", norm, norm, 1e-5, True, 1e-12)
    with Memory(x, weight, bias, norm):
        outputs = project_forward(inputs)
        upstream = ProjectionUpstream(torch.empty_like(outputs[0]))
        wanted = ProjectionWanted(*[True] * 5)
        gradients: Any = project_backward(inputs, outputs, upstream, wanted, True)
        normalised = l2_normalize_forward(x, 1e-12)
        l2_normalize_backward(*normalised, torch.empty_like(x), 1e-12)
    likes = (x, weight, bias, norm, norm)
    assert [each.shape for each in gradients] == [like.shape for like in likes]


def test_objectives_of_their_own_do_not_wait(gpu: Launches) -> None:
    x, y = (torch.empty(3000, 256, dtype=torch.bfloat16) for _ in range(2))
    scale, ids = torch.empty(()), torch.empty(3000, dtype=torch.int64)
    with Memory(x, y, scale, ids):
        inputs = PrefixInputs(x, y, scale, [64, 256], 1e-12, ids, ids, ids, "medium")
        statistics = prefix_forward(inputs, 0)
        upstream = PrefixUpstream(*(torch.empty_like(part) for part in statistics[:3]))
        prefix_backward(inputs, statistics, upstream, PrefixWanted(*[True] * 3), True)
        pair = distillation.DistillationInputs(x, y, scale, x, y, scale, "medium")
        found = distillation.forward(pair)
        grads = distillation.DistillationUpstream(*(torch.empty_like(it) for it in found[:5]))
        wanted = distillation.DistillationWanted(True, True, True)
        distillation.backward(pair, found, grads, wanted, True)
        negatives = NegativesInputs(x, y, ids, ids, "medium")
        hardest = hardest_negatives.forward(negatives)
        products = NegativesUpstream(*(torch.empty_like(part) for part in hardest[:3]))
        hardest_negatives.backward(negatives, hardest, products, NegativesWanted(True, True), True)
    assert gpu.names().count("hardest_negatives_kernel") == 2
