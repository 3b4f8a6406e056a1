"""What surrounds mmcore::clip and mmcore::siglip: calls that they serve, autocast, compilers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from contracts import check_family, layouts
from fused_losses import (
    Fused,
    close,
    every_loss,
    every_workspace,
    gradients,
    numbers,
    unit_rows,
)
from machines import DEVICE
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import mmcore
from mmcore.backends.triton import kept_size

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


# What the ops do not know of: arguments of both losses, or of one.
IDS = torch.arange(6)
COMPOSED: dict[str, list[dict[str, Any]]] = {
    "clip": [
        {"bias": 1.0}, {"label_smoothing": 0.1}, {"weight": torch.ones(6)}, {"group": IDS},
        {"direction": "rows"}, {"direction": "columns"},
    ],
    "siglip": [
        {"target": IDS}, {"row_label": IDS, "col_label": IDS}, {"row_group": IDS, "col_group": IDS},
    ],
}  # fmt: skip


@every_loss
def test_which_calls_are_fused(fused: Fused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a call whose options the op does not know, and one that goes the long way round."""
    count = 0

    def counted(*arguments: Any, **options: Any) -> Tensor:
        nonlocal count
        count += 1
        return call(*arguments, **options)

    call = fused.op.call
    monkeypatch.setattr(fused.op, "call", counted)
    x, y = unit_rows(6), unit_rows(6)
    fused.loss(x, y, 5.0)
    fused.loss(x, y, *fused.scalars, backend="triton")
    assert count == 2
    fused.loss(x, x, 5.0)
    for options in COMPOSED[fused.inputs.__name__.removesuffix("Inputs").lower()]:
        fused.loss(x, y, 5.0, **options)
    fused.loss(x, y, 5.0, backend="reference")
    fused.loss(x.double(), y.double(), 5.0, backend="auto")
    if DEVICE == "cpu":
        fused.loss(x, y, 5.0, backend="auto")
    assert count == 2


@every_loss
def test_errors_are_those_of_the_composition(fused: Fused) -> None:
    """Catches checks that the op's own way leaves out."""
    x, y = unit_rows(6), unit_rows(6)
    wrong: list[Callable[[], Tensor]] = [
        lambda: fused.loss(x, y[:, :8], 5.0),
        lambda: fused.loss(x, y, -1.0),
        lambda: fused.loss(x, y, torch.ones(2)),
        lambda: fused.loss(x[:0], y[:0], 1.0),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="must"):
            call()
    with pytest.raises(TypeError, match="y must have dtype"):
        fused.loss(x, y.bfloat16(), 5.0)


def sizes_kept(found: Any) -> list[int]:
    return [each.numel() for name, each in found._asdict().items() if name.startswith("kept")]


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_kept_without_a_gradient(fused: Fused, dtype: torch.dtype) -> None:
    """Catches G, or its terms, for a loss that is only looked at, and a loss of other bits."""
    leaves = fused.leaves(150, dtype)
    expected = fused.loss(*leaves)
    inputs = fused.inputs(*(each.detach() for each in leaves))
    inputs = inputs._replace(precision="medium" if dtype == torch.bfloat16 else "highest")
    found = fused.op.family(inputs, kept_size=0, backend="triton")
    assert set(sizes_kept(found)) == {0}
    assert not found.loss.requires_grad
    assert torch.equal(found.loss, expected)
    with torch.no_grad():
        assert torch.equal(fused.loss(*leaves), expected)
    assert torch.equal(fused.loss(*inputs[: len(leaves)]), expected)


@every_loss
@every_workspace
def test_autocast_rounds_features(fused: Fused, size: int) -> None:
    """Catches gradients in autocast's dtype, and products that it does not reach."""
    x, y, *others = fused.leaves(40)
    with mmcore.workspace(size):
        with torch.autocast(DEVICE, torch.bfloat16):
            found = fused.gradients([x, y, *others])
            mixed = fused.loss(x.bfloat16(), y, *others)
        leaves = [*(each.detach().bfloat16().requires_grad_() for each in (x, y)), *others]
        loss = fused.loss(*leaves)
        expected = gradients(loss, leaves)
    assert torch.equal(mixed, loss)
    assert all(torch.equal(one, other.float()) for one, other in zip(found, expected, strict=True))


@every_loss
@every_workspace
def test_compiles_to_one_graph(fused: Fused, size: int) -> None:
    """Catches a choice that torch.compile cannot trace."""
    torch.compiler.reset()
    leaves = fused.leaves()
    compiled = torch.compile(fused.loss, fullgraph=True, backend="aot_eager")
    with mmcore.workspace(size):
        found, expected = compiled(*leaves), fused.loss(*leaves)
        close([found], [expected])
        close(gradients(found, leaves), gradients(expected, leaves))


class Loss(torch.nn.Module):
    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.loss(*inputs)


@every_loss
def test_traces_have_the_op(fused: Fused) -> None:
    """Catches an op without a fake, and values that a trace would read."""
    inputs = [each.detach() for each in fused.leaves()]
    expected = fused.loss(*inputs)
    traced = make_fx(Loss(fused.loss), tracing_mode="fake")(*inputs)
    exported = torch.export.export(Loss(fused.loss), tuple(inputs))
    for graph in (traced, exported.module()):
        assert f"mmcore.{fused.op.family.name}.default" in graph.code
        torch.testing.assert_close(graph(*inputs), expected)
    with mmcore.backend("auto"):
        assert fused.loss(*(each.to("meta") for each in inputs)).shape == ()


@every_loss
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints(fused: Fused, dtype: torch.dtype, reentrant: bool) -> None:
    """Catches a recomputation that keeps what the forward did not."""
    leaves = fused.leaves(150, dtype)
    expected = fused.gradients(leaves)
    checkpoint(fused.loss, *leaves, use_reentrant=reentrant).backward()
    # Without what a forward keeps, G is formed from logits that are not rounded.
    tolerance = max(1e-5, 2 * torch.finfo(dtype).eps)
    close([leaf.grad for leaf in leaves], expected, tolerance)


@every_loss
def test_vmap_over_scales(fused: Fused) -> None:
    """Catches values that the choice or a check reads of one scale of several."""
    x, y, _, *others = (each.detach() for each in fused.leaves())
    scales = torch.tensor([1.0, 5.0, 20.0])

    def loss(scale: Tensor) -> Tensor:
        return fused.loss(x, y, scale, *others)

    found = torch.func.vmap(torch.func.grad_and_value(loss))(scales)
    each = [torch.func.grad_and_value(loss)(scale) for scale in scales]
    close(found, [torch.stack(part) for part in zip(*each, strict=True)], 1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_torchs_default_dtype_changes_nothing(fused: Fused, dtype: torch.dtype) -> None:
    """Catches memory of a dtype that nobody asked for."""
    leaves = fused.leaves(30, torch.bfloat16)
    found = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            value = fused.loss(*leaves)
            found.append([value, *gradients(value, leaves)])
        finally:
            torch.set_default_dtype(torch.float32)
    assert [each.dtype for each in found[0]] == [each.dtype for each in found[1]]
    assert all(map(torch.equal, *found))


@every_loss
def test_second_derivatives_are_refused(fused: Fused) -> None:
    """Catches a silent zero."""
    leaves = fused.leaves()
    (gradient,) = torch.autograd.grad(fused.loss(*leaves), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second time"):
        gradient.sum().backward()


# What Triton keeps of 10 rows of 6 numbers.
KEPT = {
    "clip": kept_size.NUMBERS + kept_size.terms_size(10, 10, kept_size.LOSS_TERMS),
    "siglip": 2 * 10 * 6,
}


@pytest.mark.op
@every_loss
@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("rounds", [True, False])
def test_opcheck(
    fused: Fused, machine: str, layout: int, keeps: bool, rounds: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Catches a fake of another shape or dtype, on every backend that the op may be given to."""
    scalars = numbers(*fused.scalars)
    inputs = fused.inputs(layouts()[layout], torch.randn(10, 6), *scalars)
    wanted = fused.wanted(True, True, False, *([True] if len(scalars) > 1 else []))
    kept = KEPT[fused.op.family.name] if keeps else 0
    # What is kept has gaps, which must be equal from call to call.
    monkeypatch.setattr(Tensor, "new_empty", Tensor.new_zeros)
    check_family(fused.op.family, inputs, wanted, machine, kept, rounds)
