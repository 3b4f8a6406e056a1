"""l2_normalize, project and their modules against eager PyTorch and float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.op

SHAPES = [(1, 1, 1), (7, 64, 100), (100, 100, 7), (1000, 512, 64), (193, 1000, 130), (50, 300, 512)]


@pytest.mark.parametrize("rows", [1, 7, 130, 1025])
@pytest.mark.parametrize("width", [1, 64, 100, 1000])
def test_l2_normalize(backend: str, rows: int, width: int) -> None:
    draws = [[torch.randn(rows, width) * 10] for _ in range(4)]
    if rows > 1:
        draws[0][0][1] = 0
    check_against_eager(
        lambda x: [functional.l2_normalize(x)],
        [lambda x: [F.normalize(x, dim=-1)], lambda x: [F.normalize(x.flip(1), dim=1).flip(1)]],
        draws,
        ["y", "grad_x"],
    )


def test_l2_normalize_of_short_rows_divides_by_eps(backend: str) -> None:
    x = torch.randn(4, 8) * 1e-3
    x[1] *= 1e6
    check_against_eager(
        lambda x: [functional.l2_normalize(x, eps=0.1)],
        [lambda x: [F.normalize(x, dim=-1, eps=0.1)]],
        [[x]],
        ["y", "grad_x"],
    )


def test_l2_normalize_keeps_leading_dimensions_and_dtype(backend: str) -> None:
    x = torch.randn(2, 3, 5, dtype=torch.bfloat16)
    y = functional.l2_normalize(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    torch.testing.assert_close(y, F.normalize(x.float(), dim=-1).bfloat16())
    assert functional.l2_normalize(torch.randn(8)).shape == (8,)
    assert functional.l2_normalize(torch.randn(0, 8)).shape == (0, 8)


def eager_projection(norm: str | None, normalize: bool) -> Callable[..., Sequence[Tensor]]:
    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor | None = None,
        norm_bias: Tensor | None = None,
    ) -> Sequence[Tensor]:
        if norm == "layer":
            x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias)
        elif norm == "rms":
            x = F.rms_norm(x, x.shape[-1:], norm_weight, 1e-5)
        output = F.linear(x, weight, bias)
        return [F.normalize(output, dim=-1) if normalize else output]

    return run


def kernel_projection(norm: str | None, normalize: bool) -> Callable[..., Sequence[Tensor]]:
    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor | None = None,
        norm_bias: Tensor | None = None,
    ) -> Sequence[Tensor]:
        settings = {"norm": norm, "norm_weight": norm_weight, "norm_bias": norm_bias}
        return [functional.project(x, weight, bias, normalize=normalize, **settings)]

    return run


def in_reverse(projection: Callable[..., Sequence[Tensor]]) -> Callable[..., Sequence[Tensor]]:
    """The same among more rows and in reverse: one order alone may be exact by luck."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, *norm: Tensor) -> Sequence[Tensor]:
        rows = torch.cat([torch.ones(64, x.shape[1], dtype=x.dtype), x.flip(0)]).flip(1)
        output = projection(rows, weight.flip(0, 1), bias.flip(0), *(v.flip(0) for v in norm))[0]
        return [output[64:].flip(0, 1)]

    return run


NAMES = ["output", "grad_x", "grad_weight", "grad_bias", "grad_norm_weight", "grad_norm_bias"]


def projection_inputs(rows: int, inputs: int, width: int, norm: str | None) -> list[Tensor]:
    tensors = [torch.randn(rows, inputs) + 1, torch.randn(width, inputs), torch.randn(width)]
    if norm is not None:
        tensors.append(torch.randn(inputs))
    if norm == "layer":
        tensors.append(torch.randn(inputs))
    return tensors


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("norm", [None, "layer", "rms"])
@pytest.mark.parametrize("shape", SHAPES)
def test_project(
    backend: str, shape: tuple[int, int, int], norm: str | None, normalize: bool
) -> None:
    draws = [projection_inputs(*shape, norm) for _ in range(3)]
    names = NAMES[: 1 + len(draws[0])]
    kernel, eager = kernel_projection(norm, normalize), eager_projection(norm, normalize)
    check_against_eager(kernel, [eager, in_reverse(eager)], draws, names)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("width", [3, 5, 40])
def test_norms_of_short_rows(backend: str, width: int, norm: str) -> None:
    """Each deviation misses what rounding took from the mean: in near equals, much of itself."""
    draws = [[100 + torch.randn(200, width), torch.randn(6, width), torch.randn(6)]]
    kernel, eager = kernel_projection(norm, False), eager_projection(norm, False)
    check_against_eager(kernel, [eager], draws, NAMES[:4])


def test_project_takes_transposed_and_strided_inputs(backend: str) -> None:
    x, weight, bias = torch.randn(40, 60).T, torch.randn(200, 80)[::5, ::2], torch.randn(40)
    names = NAMES[:4]
    kernel, eager = kernel_projection("layer", True), eager_projection("layer", True)
    check_against_eager(kernel, [eager, in_reverse(eager)], [[x, weight, bias]], names)


def test_project_without_parameters_and_with_leading_dimensions(backend: str) -> None:
    x, weight = torch.randn(2, 3, 16), torch.randn(5, 16)
    output = functional.project(x, weight)
    torch.testing.assert_close(output, F.normalize(F.linear(x, weight), dim=-1))
    assert functional.project(torch.randn(0, 16), weight).shape == (0, 5)


def test_rows_of_zeros_stay_zeros_with_finite_gradients(backend: str) -> None:
    x = torch.zeros(4, 8, requires_grad=True)
    weight = torch.randn(6, 8, requires_grad=True)
    functional.project(x, weight, norm="layer").sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("norm", [None, "layer", "rms"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_in_float64(norm: str | None, normalize: bool) -> None:
    leaves = [t.double().requires_grad_() for t in projection_inputs(5, 6, 4, norm)]
    assert torch.autograd.gradcheck(lambda *a: kernel_projection(norm, normalize)(*a)[0], leaves)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(functional.l2_normalize, (x,))


def test_same_bits_twice(compiled: str, threads: None) -> None:
    torch.set_num_threads(3)
    leaves = [t.requires_grad_() for t in projection_inputs(500, 130, 70, "layer")]

    def run() -> list[Tensor]:
        output = kernel_projection("layer", True)(*leaves)[0]
        return [output, *torch.autograd.grad(output.square().sum() + output.sum(), leaves)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("norm", [None, "layer", "rms"])
def test_projection_head_is_layer_norm_linear_normalize(backend: str, norm: str | None) -> None:
    head = mmcore.nn.ProjectionHead(12, 5, norm=norm, bias=False)
    x = torch.randn(7, 12)
    expected = x
    if norm == "layer":
        expected = F.layer_norm(x, (12,), head.norm_weight, head.norm_bias)
    elif norm == "rms":
        expected = F.rms_norm(x, (12,), head.norm_weight, 1e-5)
    expected = F.normalize(F.linear(expected, head.weight), dim=-1)
    torch.testing.assert_close(head(x), expected)


def test_modules_describe_themselves_and_load() -> None:
    head = mmcore.nn.ProjectionHead(12, 5)
    assert "in_features=12, out_features=5, norm='layer'" in repr(head)
    assert sorted(head.state_dict()) == ["bias", "norm_bias", "norm_weight", "weight"]
    other = mmcore.nn.ProjectionHead(12, 5)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight)
    assert repr(mmcore.nn.L2Normalize()) == "L2Normalize(eps=1e-12)"
