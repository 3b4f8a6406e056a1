"""What surrounds mmcore::siglip: the calls that it serves, autocast, compilers, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from contracts import check_family, layouts
from machines import DEVICE
from siglip_cases import close, every_workspace, fused, gradients, leaves_of, unit_rows
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import mmcore
from mmcore import functional
from mmcore.backends.reference.siglip import SiglipInputs, SiglipWanted
from mmcore.ops import siglip

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


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


def test_nothing_is_kept_without_a_gradient() -> None:
    """Catches G and products for a loss that is only looked at."""
    x, y, scale, bias = (each.detach() for each in leaves_of())
    kept = siglip.family(SiglipInputs(x, y, scale, bias), kept_size=0, backend="triton")
    assert kept.kept.numel() == kept.kept_sums.numel() == 0
    assert torch.equal(kept.loss, fused(x, y, scale, bias)[0])
    with torch.no_grad():
        assert torch.equal(kept.loss, fused(x, y, scale, bias)[0])


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
    torch.use_deterministic_algorithms(True, warn_only=True)
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
