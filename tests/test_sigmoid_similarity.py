"""sigmoid_similarity against eager PyTorch and float64, on inputs made hard on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from pair_cases import PAIRS, SYMMETRIC_PAIRS, Vectors, masks
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.op

SUMS = ["total", "positive"]
GRADIENTS = ["grad_x", "grad_y", "grad_scale", "grad_bias"]
LOSS = ["loss", *GRADIENTS]


def unit_rows(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def pairs_at_cosine(rows: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    x = unit_rows(rows, width)
    return x, F.normalize(x + noise * unit_rows(rows, width), dim=1)


def eager_sums(vectors: Vectors, order: int = 1) -> Callable[..., Sequence[Tensor]]:
    def run(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
        positive, excluded = masks(vectors, len(x), len(y))
        logits = scale * (x.flip(1) @ y.flip(1).T if order < 0 else x @ y.T) + bias
        return [(F.softplus(logits) * ~excluded).sum(), (logits * positive).sum()]

    return run


def kernel_sums(vectors: Vectors) -> Callable[..., Sequence[Tensor]]:
    return lambda *inputs: functional.sigmoid_similarity(*inputs, **vectors)


def eager_loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    """SigLIP's, as open_clip writes it."""
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return [-F.logsigmoid(signs * (scale * (x @ y.T) + bias)).sum() / len(x)]


def eager_loss_in_reverse(x: Tensor, y: Tensor, *scalars: Tensor) -> Sequence[Tensor]:
    return eager_loss(x.flip(0, 1), y.flip(0, 1), *scalars)


def kernel_loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    sums = functional.sigmoid_similarity(x, y, scale, bias)
    return [(sums.total - sums.positive) / len(x)]


def scalars(scale: float, bias: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.tensor(value, dtype=dtype) for value in (scale, bias)]


@pytest.mark.parametrize("size", [0, 2**30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (7, 64), (100, 100), (140, 96), (401, 96)])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -50.0)])
def test_siglip_loss(
    backend: str, rows: int, width: int, scale: float, bias: float, dtype: torch.dtype, size: int
) -> None:
    def draw() -> list[Tensor]:
        x, y = pairs_at_cosine(rows, width, 2.0)
        return [x.to(dtype), y.to(dtype), *scalars(scale, bias, dtype)]

    with mmcore.workspace(size):
        check_against_eager(
            kernel_loss,
            [eager_loss, eager_loss_in_reverse],
            [draw() for _ in range(2 if rows > 100 else 6)],
            LOSS,
        )


@pytest.mark.parametrize("size", [0, 2**30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_convergence(backend: str, dtype: torch.dtype, size: int) -> None:
    """Positives at cosine 0.999: their gradient is the small rest that σ leaves of 1."""

    def draw() -> list[Tensor]:
        x, y = pairs_at_cosine(300, 64, 0.045)
        return [x.to(dtype), y.to(dtype), *scalars(40.0, -25.0, dtype)]

    with mmcore.workspace(size):
        check_against_eager(
            kernel_loss, [eager_loss, eager_loss_in_reverse], [draw() for _ in range(4)], LOSS
        )


@pytest.mark.parametrize("size", [0, 2**30])
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("shape", [(60, 50, 20), (140, 200, 64), (250, 300, 64)])
def test_pairs(
    backend: str,
    shape: tuple[int, int, int],
    pairs: Callable[[int, int], Vectors],
    size: int,
) -> None:
    rows, columns, width = shape
    vectors = pairs(rows, columns)
    draws = [
        [unit_rows(rows, width), unit_rows(columns, width), *scalars(12.0, -3.0)] for _ in range(4)
    ]
    baselines = [eager_sums(vectors), eager_sums(vectors, -1)]
    with mmcore.workspace(size):
        check_against_eager(kernel_sums(vectors), baselines, draws, SUMS + GRADIENTS)


@pytest.mark.parametrize("size", [0, 2**30])
@pytest.mark.parametrize("pairs", SYMMETRIC_PAIRS)
@pytest.mark.parametrize("rows", [1, 20, 200, 500])
def test_where_y_is_x(
    backend: str, rows: int, pairs: Callable[[int, int], Vectors], size: int
) -> None:
    vectors = pairs(rows, rows)
    kernel, first, other = kernel_sums(vectors), eager_sums(vectors), eager_sums(vectors, -1)
    with mmcore.workspace(size):
        check_against_eager(
            lambda x, *a: kernel(x, x, *a),
            [lambda x, *a: first(x, x, *a), lambda x, *a: other(x, x, *a)],
            [[unit_rows(rows, 24), *scalars(12.0, -3.0)] for _ in range(6)],
            [*SUMS, "grad_x", "grad_scale", "grad_bias"],
        )


@pytest.mark.parametrize("pairs", PAIRS)
def test_gradients_in_float64(pairs: Callable[[int, int], Vectors]) -> None:
    leaves = [torch.randn(7, 3), torch.randn(6, 3), *scalars(2.0, 0.5)]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(kernel_sums(pairs(7, 6)), leaves)


@pytest.mark.parametrize("size", [0, 2**30])
def test_transposed_strided_and_zero_rows(backend: str, size: int) -> None:
    x, y = torch.randn(64, 100).T, torch.randn(300, 160)[::3, 7:71]
    x[3] = 0
    with mmcore.workspace(size):
        check_against_eager(
            kernel_loss, [eager_loss, eager_loss_in_reverse], [[x, y, *scalars(1.0, -2.0)]], LOSS
        )


def test_kept_gradients_serve_one_ratio_of_upstream_gradients_only(backend: str) -> None:
    """They are formed for total − positive; any other combination is computed anew."""
    x, y = unit_rows(90, 16).requires_grad_(), unit_rows(90, 16)
    with mmcore.workspace(2**30):
        kept = functional.sigmoid_similarity(x, y, 10.0, -5.0)
    with mmcore.workspace(0):
        lean = functional.sigmoid_similarity(x, y, 10.0, -5.0)
    for of_total, of_positive in ((3.0, -3.0), (1.0, 0.0), (0.0, 1.0), (2.0, 5.0)):
        gradients = [
            torch.autograd.grad(
                of_total * sums.total + of_positive * sums.positive, x, retain_graph=True
            )[0]
            for sums in (kept, lean)
        ]
        torch.testing.assert_close(gradients[0], gradients[1])


def test_extreme_logits(backend: str) -> None:
    x, y = unit_rows(40, 8), unit_rows(50, 8)
    x.requires_grad_()
    for scale, bias in ((1e4, 0.0), (1.0, 1e4), (1.0, -1e4)):
        sums = functional.sigmoid_similarity(x, y, scale, bias)
        logits = scale * (x.double() @ y.double().T) + bias
        torch.testing.assert_close(sums.total, F.softplus(logits).sum(), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(sums.total, x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_give_nan(backend: str, poison: float) -> None:
    x, y = unit_rows(20, 16), unit_rows(30, 16)
    x[4, 2] = poison
    x.requires_grad_()
    sums = functional.sigmoid_similarity(x, y, 10.0)
    assert not (sums.total - sums.positive).isfinite()
    if poison != poison:
        (gradient,) = torch.autograd.grad(sums.total - sums.positive, x)
        assert gradient[4].isnan().any()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_same_bits_twice(compiled: str, threads: None, count: int) -> None:
    torch.set_num_threads(count)
    x, y = unit_rows(500, 100).requires_grad_(), unit_rows(450, 100).requires_grad_()
    for keys in (y, x):

        def run(keys: Tensor = keys) -> list[Tensor]:
            sums = functional.sigmoid_similarity(x, keys, 10.0, target=torch.arange(500) % 450)
            return [*sums, *torch.autograd.grad(sums.total, (x, y), allow_unused=True)]

        pairs = zip(run(), run(), strict=True)
        assert all(a is b or torch.equal(a, b) for a, b in pairs)
