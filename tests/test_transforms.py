"""torch.func over every op that has a gradient: grad, vjp, vmap; errors where there is no rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.op

LABEL = torch.arange(6) // 2


def weighted_sum(z: Tensor) -> Tensor:
    return (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum()


# By op: a loss of x and y, (N, 8) each.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2_normalize": lambda x, y: weighted_sum(functional.l2_normalize(x) * y),
    "project": lambda x, y: weighted_sum(functional.project(x, y, norm="layer")),
    "softmax_similarity": lambda x, y: functional.clip_loss(x, y, 5.0),
    "softmax_similarity of x": lambda x, y: functional.sup_con_loss(x, LABEL, 5.0) + 0 * y.sum(),
    "sigmoid_similarity": lambda x, y: functional.siglip_loss(x, y, 5.0, -5.0),
    "hardest_negatives": lambda x, y: functional.vse_loss(x, y),
    "prefix_similarity": lambda x, y: functional.matryoshka_loss(x, y, 5.0, dims=(4, 8)),
    "distillation": lambda x, y: sum(
        functional.distill_clip_loss(x, y, 5.0, TEACHER, TEACHER.flip(0), 9.0), torch.zeros(())
    ),
    "product_similarity": lambda x, y: functional.symile_loss({"a": x, "b": y}, 5.0),
    "volume": lambda x, y: functional.gram_loss({"a": x, "b": y}, 5.0, anchor="a"),
    "gram": lambda x, y: functional.barlow_twins_loss(x, y),
}
TEACHER = F.normalize(torch.linspace(-1, 1, 48).sin().view(6, 8), dim=1)
# Their labels or their teacher have 6 rows.
FIXED = ("softmax_similarity of x", "distillation")
every_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def machine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test on plain PyTorch and on compiled kernels."""
    with mmcore.backend(request.param):
        yield request.param


def rows(*batch: int, count: int = 6) -> Tensor:
    return F.normalize(torch.randn(*batch, count, 8), dim=-1)


def gradients(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    return list(torch.autograd.grad(loss(*leaves), leaves))


@every_loss
def test_grad_and_vjp_are_those_of_autograd(machine: str, name: str) -> None:
    x, y = rows(), rows()
    expected = gradients(LOSSES[name], x, y)
    torch.testing.assert_close(list(torch.func.grad(LOSSES[name], (0, 1))(x, y)), expected)
    value, pull_back = torch.func.vjp(LOSSES[name], x, y)
    torch.testing.assert_close(value, LOSSES[name](x, y))
    torch.testing.assert_close(list(pull_back(torch.ones_like(value))), expected)


@every_loss
def test_vmap_of_grad_is_a_loop_over_the_batch(machine: str, name: str) -> None:
    x, y = rows(3), rows(3)
    found = torch.func.vmap(torch.func.grad(LOSSES[name], (0, 1)))(x, y)
    pairs = [gradients(LOSSES[name], *pair) for pair in zip(x, y, strict=True)]
    for i, expected in enumerate(zip(*pairs, strict=True)):
        torch.testing.assert_close(found[i], torch.stack(expected))


@every_loss
def test_forward_mode_is_an_error_not_a_zero(machine: str, name: str) -> None:
    x, y = rows(), rows()
    with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
        torch.func.jvp(LOSSES[name], (x, y), (torch.ones_like(x), torch.ones_like(y)))


@every_loss
def test_a_second_derivative_is_an_error_not_a_zero(machine: str, name: str) -> None:
    x, y = rows().requires_grad_(), rows()
    (gradient,) = torch.autograd.grad(LOSSES[name](x, y), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated a second time"):
        gradient.square().sum().backward()


@every_loss
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_compiles_for_any_number_of_rows(machine: str, name: str) -> None:
    torch.compiler.reset()
    loss = LOSSES[name]
    is_fixed = name in FIXED
    compiled = torch.compile(loss, fullgraph=True, dynamic=not is_fixed, backend="aot_eager")
    for count in (6,) if is_fixed else (6, 9, 4):
        x, y = rows(count=count), rows(count=count)
        torch.testing.assert_close(compiled(x, y), loss(x, y))
        torch.testing.assert_close(gradients(compiled, x, y), gradients(loss, x, y))


def test_an_op_by_itself_has_no_gradient_and_says_so(machine: str) -> None:
    x = rows().requires_grad_()
    y, _ = torch.ops.mmcore.l2_normalize(x, 1e-12, machine)
    with pytest.raises(NotImplementedError, match=r"has no gradient: call mmcore\.functional"):
        y.sum().backward()
