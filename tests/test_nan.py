"""NaN or inf in one row reaches every value and gradient that depends on it, and raises nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from objective_cases import Call, every_case
from torch import Tensor

import mmcore
from mmcore import functional, metrics
from mmcore.bench.catalogue import Case

ROW = 3
POISON = pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
# Where that row takes no part: it has no positive or no partner, shares its group with all others,
# or belongs to a key that is nobody's.
LEFT_OUT = {
    ("mil_nce_loss", ("x",)),
    ("unicl_loss, one group, no negatives", ("x",)),
    ("multimodal_loss, ids", ("features", "image")),
    ("info_nce_loss, queue alone in groups", ("key",)),
    ("info_nce_loss, queue alone in groups", ("log_q",)),
}
# A positive at −inf, the only entry of a column, is what a column without entries looks like.
EMPTY_COLUMN = "unicl_loss, one group, no negatives"


def spreads(case: Case) -> bool:
    """Whether the plain formula makes NaN of more gradients than depend on it.

    amax hands NaN on to all that it compared, and a product multiplies it by the zeros of what is
    masked. Gradients of hardest negatives: test_hardest_negatives.
    """
    return case.row.name == "vse_loss" or case.options(0).get("negatives") == "queue"


@pytest.fixture(params=["reference", "cpu"])
def plain_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Objectives are compositions: the other backends' share is tested with the primitives."""
    with mmcore.backend(request.param):
        yield request.param


def poisoned(z: Tensor, poison: float) -> Tensor:
    """A copy of which one number is `poison`: in one row, if there are rows."""
    z = z.detach().clone()
    z[min(ROW, len(z) - 1) if z.ndim else ()].view(-1)[0] = poison
    return z.requires_grad_()


def values_and_gradients(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    found = [value for value in function(*tensors) if value.is_floating_point()]
    total = torch.stack([value.double().sum() for value in found]).sum()
    gradients = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    return found, list(gradients)


def lost(z: Tensor) -> Tensor:
    """Which rows have a number that is not finite."""
    is_lost = ~z.isfinite()
    return is_lost.flatten(1).any(1) if is_lost.ndim > 1 else is_lost


@POISON
@every_case()
def test_objectives(plain_backend: str, case: Case, poison: float) -> None:
    """Catches NaN that a comparison, a maximum or a mask takes for a number."""
    call = Call.of(case)
    for i, path in enumerate(call.leaves):
        if len(path) == 2 and isinstance(path[1], tuple):
            continue  # the scale of a pair, whose weight may be 0
        tensors = call.tensors()
        tensors[i] = poisoned(tensors[i], poison)
        if path == ("weight",) and case.row.name == "clip_loss" and math.isnan(poison):
            with pytest.raises(ValueError, match="weight must be at least 0, got nan"):
                call.function(*tensors)
            continue
        exact = [z.detach().double().requires_grad_() for z in tensors]
        found, gradients = values_and_gradients(call.function, tensors)
        try:
            expected, exact_gradients = values_and_gradients(call.plain, exact)
        except torch.linalg.LinAlgError:
            expected, exact_gradients = ([z * math.nan for z in parts] for parts in (found, exact))
        if (case.id, path) in LEFT_OUT:
            torch.testing.assert_close(found, expected, check_dtype=False)
            continue
        assert any(lost(value) for value in found), path
        for value, other in zip(found, expected, strict=True):
            assert lost(value) or not lost(other), path
        if spreads(case):
            are_lost = any(lost(gradient).any() for gradient in exact_gradients)
            assert any(lost(gradient).any() for gradient in gradients) or not are_lost, path
            continue
        for gradient, other in zip(gradients, exact_gradients, strict=True):
            if math.isnan(poison):
                assert not (lost(other) & ~lost(gradient)).any(), path
            elif case.id != EMPTY_COLUMN:
                # Products with inf and 0 make NaN of more gradients in plain PyTorch.
                assert lost(gradient).any() or not lost(other).any(), path


@pytest.mark.parametrize("side", [0, 1])
def test_distillation_of_inf(plain_backend: str, side: int) -> None:
    """Catches a column whose softmax over inf passes for 0, so that gradients stay finite."""
    inputs = [torch.randn(6, 5).requires_grad_() for _ in range(4)]
    inputs[side] = poisoned(inputs[side], math.inf)
    x, y, *teacher = inputs
    losses = functional.distill_clip_loss(x, y, 2.0, *(z.detach() for z in teacher), 3.0)
    for loss in losses:
        for gradient in torch.autograd.grad(loss, (x, y), retain_graph=True):
            assert lost(gradient).all()


METRICS = [
    (metrics.modality_gap, 2),
    (metrics.effective_rank, 1),
    (metrics.linear_cka, 2),
    (metrics.linear_separability, 2),
]


def test_every_metric_is_here() -> None:
    """Catches a metric that the next test does not know."""
    assert {function.__name__ for function, _ in METRICS} == set(metrics.__all__)


@pytest.mark.parametrize(("metric", "operands"), METRICS)
@POISON
@pytest.mark.parametrize("row", [ROW, ROW + 1])
def test_metrics(metric: Callable[..., Tensor], operands: int, poison: float, row: int) -> None:
    """Catches a score for features that are NaN, and LAPACK's error; rows are split in halves."""
    sides = [torch.randn(12, 5) for _ in range(operands)]
    for side in sides:
        kept = side[row, 2].item()
        side[row, 2] = poison
        assert not metric(*sides).isfinite()
        side[row, 2] = kept


GROUP = torch.tensor([-1, 0, 1, 1, 1, 2, 2, -1, 3])
GROUPS = {
    "none": None,
    "some": GROUP,
    "one": torch.zeros(9, dtype=torch.int64),
    "its own": torch.where(torch.arange(9) == ROW, 7, 8),
}


def hardest(x: Tensor, y: Tensor, group: Tensor | None) -> list[Tensor]:
    """In plain PyTorch; a row without negatives has a product of −∞."""
    products, is_left_out = x @ y.T, torch.eye(9, dtype=torch.bool)
    if group is not None:
        is_left_out = is_left_out | ((group[:, None] == group) & (group[:, None] != -1))
    negatives = products.masked_fill(is_left_out, -math.inf)
    return [products.diagonal(), negatives.max(1).values, negatives.max(0).values]


@pytest.mark.op
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("side", [0, 1])
def test_hardest_negatives(backend: str, groups: str, side: int) -> None:
    """Catches a search that passes over NaN: torch.max does not, nor does its gradient."""
    group, sides = GROUPS[groups], [torch.randn(9, 5).requires_grad_() for _ in range(2)]
    sides[side] = poisoned(sides[side], math.nan)
    exact = [z.detach().double().requires_grad_() for z in sides]
    found, gradients = values_and_gradients(
        lambda x, y: functional.hardest_negatives(x, y, group=group), sides
    )
    for value, other in zip(found, hardest(*exact, group), strict=True):
        assert torch.equal(value.isnan(), other.isnan())
        finite = ~other.isnan()
        torch.testing.assert_close(value[finite], other[finite], rtol=1e-5, atol=1e-5)
    indices = functional.hardest_negatives(*sides, group=group)[3:]
    for index, value in zip(indices, found[1:], strict=True):
        assert torch.equal(index == -1, value == -math.inf)
    own, other = gradients[side], gradients[1 - side]
    assert own[torch.arange(9) != ROW].isfinite().all()
    # Of the poisoned row's positive, and of every row whose negative it is.
    is_left_out = torch.zeros(9, dtype=torch.bool)
    if group is not None:
        is_left_out = (group == group[ROW]) & (group != -1) & (torch.arange(9) != ROW)
    assert torch.equal(lost(other), ~is_left_out)


OPERANDS = {
    None: ["x", "weight", "bias"],
    "rms": ["x", "weight", "bias", "norm_weight"],
    "layer": ["x", "weight", "bias", "norm_weight", "norm_bias"],
}


@pytest.mark.op
@POISON
@pytest.mark.parametrize(
    ("norm", "operand"), [(norm, name) for norm, names in OPERANDS.items() for name in names]
)
def test_projection(backend: str, norm: str | None, operand: str, poison: float) -> None:
    """Catches a norm that is clamped from NaN, and other rows that a poisoned one spoils."""
    inputs = {
        name: torch.randn((6, 6) if name in ("x", "weight") else 6).requires_grad_()
        for name in OPERANDS[norm]
    }
    inputs[operand] = poisoned(inputs[operand], poison)

    def ours(*tensors: Tensor) -> list[Tensor]:
        return [functional.project(**dict(zip(inputs, tensors, strict=True)), norm=norm)]

    def plain(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(inputs, tensors, strict=True))
        x, gain = given["x"], given.get("norm_weight")
        if norm == "layer":
            x = F.layer_norm(x, (6,), gain, given["norm_bias"])
        elif norm == "rms":
            x = F.rms_norm(x, (6,), gain, 1e-5)
        return [F.normalize(F.linear(x, given["weight"], given["bias"]))]

    tensors = list(inputs.values())
    exact = [z.detach().double().requires_grad_() for z in tensors]
    (found,), gradients = values_and_gradients(ours, tensors)
    (expected,), exact_gradients = values_and_gradients(plain, exact)
    assert torch.equal(lost(found), lost(expected))
    for gradient, other in zip(gradients, exact_gradients, strict=True):
        assert torch.equal(lost(gradient), lost(other))


@pytest.mark.op
@POISON
def test_l2_normalize(backend: str, poison: float) -> None:
    """Catches a norm that is clamped from NaN, and other rows that a poisoned one spoils."""
    x, weight = poisoned(torch.randn(6, 5), poison), torch.randn(6, 5)
    (found,), (gradient,) = values_and_gradients(
        lambda x: [weight * functional.l2_normalize(x)], [x]
    )
    (expected,), (exact,) = values_and_gradients(lambda x: [weight * F.normalize(x)], [x])
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert torch.equal(gradient.isfinite(), exact.isfinite())


@POISON
@pytest.mark.parametrize("centred", [False, True])
def test_gram(plain_backend: str, poison: float, centred: bool) -> None:
    """Catches a column that stays finite although one of its numbers is not."""
    x, y = poisoned(torch.randn(6, 5), poison), torch.randn(6, 4).requires_grad_()

    def plain(x: Tensor, y: Tensor) -> list[Tensor]:
        return [(x - x.mean(0)).T @ (y - y.mean(0)) if centred else x.T @ y]

    found = values_and_gradients(lambda x, y: [functional.gram(x, y, centred=centred)], [x, y])
    expected = values_and_gradients(plain, [x, y])
    for one, other in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("poison", [math.inf, -math.inf])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_queue_alone(plain_backend: str, side: str, poison: float, sign: float) -> None:
    """Catches an own logit of plus infinity, beside which all others count for nothing."""
    rows = {name: torch.full((4, 2), 0.5) for name in ("query", "key")}
    rows["key"][1, 0] *= sign
    rows[side][1, 0] = poison
    loss = functional.info_nce_loss(
        **rows, scale=5.0, queue=torch.full((3, 2), 0.5), negatives="queue"
    )
    assert loss.isnan()


def test_products_that_overflow(plain_backend: str) -> None:
    """Catches a log-sum-exp of infinity that is taken for that of a row with nothing to count."""
    x = (1e20 * torch.eye(2)).requires_grad_()
    y = (1e20 * torch.eye(2)).requires_grad_()
    loss = functional.clip_loss(x, y, 1.0)
    assert loss.isnan()
    assert all(gradient.isnan().any() for gradient in torch.autograd.grad(loss, (x, y)))
