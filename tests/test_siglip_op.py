"""mmcore::siglip, the loss of SigLIP in one op, as siglip_loss calls it on a GPU.

Values and every gradient against float64 on hard inputs; whatever else surrounds a training step.
How many kernels a step has: test_siglip_launches.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from contracts import check_family, layouts
from machines import DEVICE, HALVES
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import mmcore
from mmcore import functional
from mmcore.backends.reference.siglip import SiglipInputs, SiglipWanted
from mmcore.ops import siglip

pytest.importorskip("triton")

LEAN, ROOMY = 0, 2**30
LOSS = ["loss", "grad_x", "grad_y", "grad_scale", "grad_bias"]
every_workspace = pytest.mark.parametrize("size", [LEAN, ROOMY])


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


def unit_rows(rows: int, width: int = 16) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def scalars(scale: float, bias: float) -> list[Tensor]:
    return [torch.tensor(scale), torch.tensor(bias)]


def fused(*inputs: Any) -> Sequence[Tensor]:
    return [functional.siglip_loss(*inputs)]


def composed(*inputs: Any) -> Tensor:
    """What the CPU and the reference compute."""
    return functional.siglip_loss(*inputs, backend="reference")


def eager(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    """As open_clip writes it."""
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return [-F.logsigmoid(signs * (scale * (x @ y.T) + bias)).sum() / len(x)]


def eager_in_reverse(x: Tensor, y: Tensor, *others: Tensor) -> Sequence[Tensor]:
    return eager(x.flip(0, 1), y.flip(0, 1), *others)


def gradients(loss: Tensor, leaves: Sequence[Tensor], upstream: float = 1.0) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, torch.full_like(loss, upstream)))


def leaves_of(rows: int = 20, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    sides = [unit_rows(rows).to(dtype), unit_rows(rows).to(dtype)]
    return [each.requires_grad_() for each in (*sides, *scalars(10.0, -5.0))]


def close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = other.detach().abs().max().item()
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


def pairs_at_cosine(rows: int) -> list[Tensor]:
    """Near convergence, where positives leave σ a small rest of 1."""
    x = unit_rows(rows, 40)
    return [x, F.normalize(x + 0.05 * unit_rows(rows, 40), dim=1)]


def duplicates(rows: int) -> list[Tensor]:
    return [unit_rows(rows, 40)[torch.arange(rows) // copies] for copies in (3, 2)]


def zero_rows(rows: int) -> list[Tensor]:
    x, y = unit_rows(rows, 40), unit_rows(rows, 40)
    x[::3], y[1::4] = 0, 0
    return [x, y]


def strided(rows: int) -> list[Tensor]:
    return [torch.randn(40, rows).T, torch.randn(3 * rows, 90)[::3, 5:45]]


def unnormalised(rows: int) -> list[Tensor]:
    return [torch.randn(rows, 40), 3 * torch.randn(rows, 40)]


@pytest.mark.op
@every_workspace
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [pairs_at_cosine, duplicates, zero_rows, strided, unnormalised])
@pytest.mark.parametrize("rows", [1, 7, 130, 257])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -50.0)])
def test_values_and_gradients(
    rows: int, kind: Callable[[int], list[Tensor]], scale: float, bias: float,
    dtype: torch.dtype, size: int,
) -> None:  # fmt: skip
    """Catches a wrong entry of G, a factor that is missing, a tail that is read or not stored."""

    def draw() -> list[Tensor]:
        sides = (z if z.dtype == dtype else z.to(dtype) for z in kind(rows))
        return [*sides, *(each.to(dtype) for each in scalars(scale, bias))]

    draws = [draw() for _ in range(20 if rows < 100 else 4)]
    with mmcore.workspace(size):
        check_against_eager(fused, [eager, eager_in_reverse], draws, LOSS)


@every_workspace
@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_gradients_keep_their_digits(dtype: torch.dtype, size: int) -> None:
    """Catches a unit of float16 that is applied twice or not at all, and a second rounding."""
    leaves = leaves_of(140, dtype)
    wide = [each.detach().double().requires_grad_() for each in leaves]
    with mmcore.workspace(size):
        found = gradients(fused(*leaves)[0], leaves, 2.0**10)
    for one, exact in zip(found, gradients(composed(*wide), wide, 2.0**10), strict=True):
        limit = 2**-8 if dtype == torch.bfloat16 else 2**-11
        assert (one.double() - exact).norm() <= limit * exact.norm()


def test_which_calls_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a call whose pairs the op does not know, and one that goes the long way round."""
    count = 0

    def counted(*arguments: Any, **options: Any) -> Tensor:
        nonlocal count
        count += 1
        return call(*arguments, **options)

    call = siglip.call
    monkeypatch.setattr(siglip, "call", counted)
    x, y, ids = unit_rows(6), unit_rows(6), torch.arange(6)
    functional.siglip_loss(x, y, 5.0)
    functional.siglip_loss(x, y, 5.0, -1.0, backend="triton")
    assert count == 2
    functional.siglip_loss(x, x, 5.0)
    functional.siglip_loss(x, unit_rows(9), 5.0)
    functional.siglip_loss(x, y, 5.0, target=ids)
    functional.siglip_loss(x, y, 5.0, row_label=ids, col_label=ids)
    functional.siglip_loss(x, y, 5.0, row_group=ids, col_group=ids)
    functional.siglip_loss(x, y, 5.0, backend="reference")
    if DEVICE == "cpu":
        functional.siglip_loss(x, y, 5.0, backend="auto")
    assert count == 2


def test_errors_are_those_of_the_composition() -> None:
    """Catches checks that the op's own way leaves out."""
    x, y = unit_rows(6), unit_rows(6)
    for wrong in (
        lambda: functional.siglip_loss(x, y[:, :8], 5.0),
        lambda: functional.siglip_loss(x, y, -1.0),
        lambda: functional.siglip_loss(x, y, torch.ones(2)),
        lambda: functional.siglip_loss(x[:0], y[:0], 1.0),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()
    with pytest.raises(TypeError, match="y must have dtype"):
        functional.siglip_loss(x, y.bfloat16(), 5.0)


@every_workspace
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 2], [1, 3]])
def test_wanted_gradients_do_not_depend_on_each_other(wanted: list[int], size: int) -> None:
    """Catches a gradient that is stored for another input, or only beside another one."""

    def run(of: list[int]) -> list[Tensor | None]:
        leaves = [each.detach().requires_grad_(i in of) for i, each in enumerate(inputs)]
        fused(*leaves)[0].backward()
        return [leaf.grad for leaf in leaves]

    inputs = leaves_of(30)
    with mmcore.workspace(size):
        for i, (full, part) in enumerate(zip(run([0, 1, 2, 3]), run(wanted), strict=True)):
            assert full is not None
            assert part is None if i not in wanted else torch.equal(full, part)


@every_workspace
def test_scalars_of_every_kind(size: int) -> None:
    """Catches a gradient in another shape or dtype than its input, and numbers for tensors."""
    x, y = unit_rows(20).bfloat16().requires_grad_(), unit_rows(20).bfloat16()
    scale, bias = torch.tensor([10.0], requires_grad=True), torch.tensor(-5.0).half()
    bias.requires_grad_()
    with mmcore.workspace(size):
        loss = functional.siglip_loss(x, y, scale, bias)
        found = gradients(loss, [x, scale, bias])
        (of_number,) = gradients(functional.siglip_loss(x, y, 10.0, -5.0), [x])
        (without,) = gradients(functional.siglip_loss(x, y, scale), [scale])
        (zero,) = gradients(functional.siglip_loss(x, y, scale, 0.0), [scale])
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32, torch.float16]
    assert [each.shape for each in found] == [x.shape, scale.shape, bias.shape]
    assert torch.equal(found[0], of_number)
    assert torch.equal(without, zero)


def test_nothing_is_kept_without_a_gradient() -> None:
    """Catches G and products for a loss that is only looked at."""
    x, y, scale, bias = (each.detach() for each in leaves_of())
    kept = siglip.family(SiglipInputs(x, y, scale, bias), kept_size=0, backend="triton")
    assert kept.kept.numel() == kept.kept_sums.numel() == 0
    assert torch.equal(kept.loss, fused(x, y, scale, bias)[0])
    with torch.no_grad():
        assert torch.equal(kept.loss, fused(*leaves_of()[:0], x, y, scale, bias)[0])


@every_workspace
def test_two_backward_passes_give_the_same_bits(size: int) -> None:
    """Catches a backward that scales what was kept in place."""
    leaves = leaves_of(150)
    with mmcore.workspace(size):
        loss = fused(*leaves)[0]
        first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
        again = gradients(fused(*leaves)[0], leaves)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, again))


@every_workspace
@pytest.mark.parametrize("upstream", [0.0, -3.0, 1e30, math.nan])
def test_upstream_gradients(upstream: float, size: int) -> None:
    """Catches a unit that overflows, and an upstream gradient that is taken for 1."""
    leaves = leaves_of()
    with mmcore.workspace(size):
        found = gradients(fused(*leaves)[0], leaves, upstream)
    expected = gradients(composed(*leaves), leaves, upstream)
    for one, other in zip(found, expected, strict=True):
        largest = other.nan_to_num().abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest, equal_nan=True)


@every_workspace
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["x", "y", "scale", "bias"])
def test_nan_and_inf_reach_the_loss(where: str, poison: float, size: int) -> None:
    """Catches a mask that hides what is not a number, and a row of G that does not hand it on."""
    inputs = [each.detach().clone() for each in leaves_of()]
    at = ["x", "y", "scale", "bias"].index(where)
    inputs[at].view(-1)[0] = poison
    leaves = [each.requires_grad_() for each in inputs]
    with mmcore.workspace(size):
        loss = fused(*leaves)[0]
        found = gradients(loss, leaves)
    assert not loss.isfinite()
    if poison != poison:
        assert found[2].isnan()
        assert found[0][0].isnan().all()


@every_workspace
def test_autocast_rounds_features(size: int) -> None:
    """Catches gradients in autocast's dtype, and products that it does not reach."""
    x, y, scale, bias = leaves_of(40)
    with mmcore.workspace(size):
        with torch.autocast(DEVICE, torch.bfloat16):
            found = gradients(fused(x, y, scale, bias)[0], [x, y, scale, bias])
            mixed = fused(x.bfloat16(), y, scale, bias)[0]
        rounded = [x.detach().bfloat16().requires_grad_(), y.detach().bfloat16().requires_grad_()]
        leaves = [*rounded, scale, bias]
        loss = fused(*leaves)[0]
        expected = gradients(loss, leaves)
    assert torch.equal(mixed, loss)
    assert all(torch.equal(one, other.float()) for one, other in zip(found, expected, strict=True))


@every_workspace
def test_compiles_to_one_graph(size: int) -> None:
    """Catches a choice that torch.compile cannot trace."""
    torch.compiler.reset()
    leaves = leaves_of()
    compiled = torch.compile(functional.siglip_loss, fullgraph=True, backend="aot_eager")
    with mmcore.workspace(size):
        found, expected = compiled(*leaves), fused(*leaves)[0]
        close([found], [expected])
        close(gradients(found, leaves), gradients(expected, leaves))


class Loss(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return functional.siglip_loss(x, y, scale, bias)


def test_traces_have_the_op() -> None:
    """Catches an op without a fake, and values that a trace would read."""
    inputs = [each.detach() for each in leaves_of()]
    expected = fused(*inputs)[0]
    traced = make_fx(Loss(), tracing_mode="fake")(*inputs)
    exported = torch.export.export(Loss(), tuple(inputs))
    for graph in (traced, exported.module()):
        assert "mmcore.siglip.default" in graph.code
        torch.testing.assert_close(graph(*inputs), expected)
    with mmcore.backend("auto"):
        assert functional.siglip_loss(*(each.to("meta") for each in inputs)).shape == ()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant: bool) -> None:
    """Catches a recomputation that keeps what the forward did not."""
    leaves = leaves_of(150)
    expected = gradients(fused(*leaves)[0], leaves)
    checkpoint(functional.siglip_loss, *leaves, use_reentrant=reentrant).backward()
    close([leaf.grad for leaf in leaves], expected)


def test_vmap_over_scales() -> None:
    """Catches values that the choice or a check reads of one scale of several."""
    x, y, _, bias = (each.detach() for each in leaves_of())
    scales = torch.tensor([1.0, 5.0, 20.0])

    def loss(scale: Tensor) -> Tensor:
        return functional.siglip_loss(x, y, scale, bias)

    found = torch.func.vmap(torch.func.grad_and_value(loss))(scales)
    each = [torch.func.grad_and_value(loss)(scale) for scale in scales]
    close(found, [torch.stack(part) for part in zip(*each, strict=True)], 1e-6)


@pytest.fixture
def _unwritten_is_nan() -> Iterator[None]:
    """Memory that nothing has written to yet holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_unwritten_is_nan")
@every_workspace
def test_nothing_is_read_before_it_is_stored(size: int) -> None:
    """Catches sums of a tile that no program stores: nothing clears them."""
    (x, y, *others), ids = leaves_of(300), torch.arange(300) // 2
    with mmcore.workspace(size):
        losses = [
            fused(x, y, *others)[0],
            functional.siglip_loss(x, x, *others),
            functional.siglip_loss(x, x, *others, row_label=ids),
            functional.siglip_loss(x, y, *others, row_label=ids, col_label=ids),
        ]
        for loss in losses:
            found = torch.autograd.grad(loss, [x, *others])
            assert all(each.isfinite().all() for each in (loss, *found))


def test_second_derivatives_are_refused() -> None:
    """Catches a silent zero."""
    leaves = leaves_of()
    (gradient,) = torch.autograd.grad(fused(*leaves)[0], leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second time"):
        gradient.sum().backward()


@pytest.mark.op
@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("rounds", [True, False])
def test_opcheck(machine: str, layout: int, keeps: bool, rounds: bool) -> None:
    """Catches a fake of another shape or dtype, on every backend that the op may be given to."""
    inputs = SiglipInputs(
        layouts()[layout], torch.randn(10, 6), torch.tensor(2.0), torch.tensor(-1.0)
    )
    wanted = SiglipWanted(x=True, y=True, scale=False, bias=True)
    check_family(siglip.family, inputs, wanted, machine, 120 if keeps else 0, rounds)
