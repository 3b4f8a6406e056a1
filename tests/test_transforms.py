"""torch.func over every op and objective: grad, vjp, vmap; errors where there is no rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from objective_cases import Call, every_case, results
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import CASES, ROWS, Case, filled

pytestmark = pytest.mark.op

Loss = Callable[[Tensor, Tensor], Tensor]


def weighted_sum(z: Tensor) -> Tensor:
    return (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum()


def of_case(name: str) -> Loss:
    """A case of the catalogue as a loss of its first two features, 6 rows of 8 columns each."""
    call = Call.of(CASES[name], 6, 8, scale=5.0)
    function, (first, *others) = call.case.function(8), call.leaves

    def loss(x: Tensor, y: Tensor) -> Tensor:
        has_two = others and call.leaves[others[0]].ndim == 2
        given = {first: x, others[0]: y} if has_two else {first: x}
        return sum(results(function(**filled(call.arguments, given))), 0 * y.sum())

    return loss


# By op: a loss of x and y, (N, 8) each.
LOSSES: dict[str, Loss] = {
    "l2_normalize": lambda x, y: weighted_sum(functional.l2_normalize(x) * y),
    "project": lambda x, y: weighted_sum(functional.project(x, y, norm="layer")),
    "softmax_similarity": of_case("clip_loss"),
    "softmax_similarity of x": of_case("sup_con_loss"),
    "sigmoid_similarity": of_case("siglip_loss"),
    "hardest_negatives": of_case("vse_loss"),
    "prefix_similarity": of_case("matryoshka_loss, four prefixes"),
    "distillation": of_case("distill_clip_loss"),
    "product_similarity": of_case("symile_loss, 2 modalities"),
    "volume": of_case("gram_loss, 2 modalities"),
    "gram": of_case("barlow_twins_loss, weight 0.005"),
}
# Their labels or their teacher have 6 rows.
FIXED = ("softmax_similarity of x", "distillation")
every_loss = pytest.mark.parametrize("name", LOSSES)
# The usual call of each objective.
every_objective = every_case([row.cases()[0] for row in ROWS.values()])


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def machine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test on plain PyTorch and on compiled kernels."""
    with mmcore.backend(request.param):
        yield request.param


def rows(*batch: int, count: int = 6) -> Tensor:
    return F.normalize(torch.randn(*batch, count, 8), dim=-1)


def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
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


@every_objective
def test_objectives_under_grad_and_vmap(machine: str, case: Case) -> None:
    """Catches an objective that leaves torch.func, or whose rows depend on the batch's."""
    calls = [Call.of(case, 6, 8, scale=5.0 + seed, seed=seed) for seed in range(2)]
    loss, inputs = calls[0].loss, [list(call.leaves.values()) for call in calls]
    gradient = torch.func.grad(loss, tuple(range(len(inputs[0]))))
    expected = [gradients(loss, *each) for each in inputs]
    torch.testing.assert_close(list(gradient(*inputs[0])), expected[0])
    batch = [torch.stack(each) for each in zip(*inputs, strict=True)]
    found = torch.func.vmap(gradient)(*batch)
    for one, other in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(other))


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
@pytest.mark.parametrize(
    "machine", [pytest.param("reference", marks=pytest.mark.full), "cpu"], indirect=True
)
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
