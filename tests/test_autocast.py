"""Operands of several dtypes: refused, but under autocast taken as eager PyTorch takes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from machines import DEVICE
from objective_cases import Call, every_case, results
from torch import Tensor, nn

import mmcore
from mmcore import functional, metrics
from mmcore.bench.catalogue import ROWS, Case

SHORT = [torch.bfloat16, torch.float16]
every_short = pytest.mark.parametrize("short", SHORT)
# The usual call of each objective that compares two tensors of features.
TWO_SIDED = [
    case
    for case in (row.cases()[0] for row in ROWS.values())
    if sum(leaf.ndim > 1 for leaf in Call.of(case).leaves.values()) > 1
]


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast(DEVICE, dtype)


def mixed(call: Call, short: torch.dtype) -> list[list[Tensor]]:
    """The leaves with one matrix in 16 bits, each in turn."""
    matrices = [i for i, leaf in enumerate(call.leaves.values()) if leaf.ndim > 1]
    return [
        [each.to(short) if j == i else each for j, each in enumerate(call.tensors())]
        for i in matrices
    ]


def gradients(call: Call, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [each.detach().requires_grad_() for each in leaves]
    return torch.autograd.grad(call.loss(*leaves), leaves)


@pytest.mark.objective
@every_short
@every_case(TWO_SIDED)
def test_objectives_of_mixed_dtypes(case: Case, short: torch.dtype) -> None:
    """Catches a side that is refused, rounded when it need not be, or whose gradient has the dtype
    of another: what is given in 16 bits counts as float32 numbers of the same value do.
    """
    call = Call.of(case, scale=5.0)
    for leaves in mixed(call, short):
        with pytest.raises((TypeError, RuntimeError), match="must have dtype"):
            call.loss(*leaves)
        with autocast():
            found, expected = call.function(*leaves), call.function(*[z.float() for z in leaves])
            slopes, expected_slopes = (
                gradients(call, each) for each in (leaves, [z.float() for z in leaves])
            )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert [each.dtype for each in slopes] == [each.dtype for each in leaves]
        for one, other in zip(slopes, expected_slopes, strict=True):
            # Of a 16-bit operand the gradient is rounded once more.
            torch.testing.assert_close(
                one.float(), other.float(), rtol=2e-2, atol=1e-2 * float(other.abs().max()) + 1e-6
            )


@pytest.mark.objective
@every_case(TWO_SIDED)
def test_autocast_never_touches_float64(case: Case) -> None:
    """Catches a float64 operand that is rounded, or another that is widened beside it."""
    call = Call.of(case, scale=5.0)
    wide = [each.double() for each in call.tensors()]
    call.arguments = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in call.arguments.items()
    }
    expected = call.function(*wide)
    with autocast():
        torch.testing.assert_close(call.function(*wide), expected, rtol=0, atol=0)
        for i, leaf in enumerate(wide):
            if leaf.ndim > 1:
                leaves = [z.float() if j == i else z for j, z in enumerate(wide)]
                with pytest.raises(
                    TypeError, match=r"must have dtype float(32|64)|must be float64"
                ):
                    call.loss(*leaves)


def relative(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach().double(), exact.detach()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.op
@every_short
def test_a_head_of_float32_weights_takes_16_bits(backend: str, short: torch.dtype) -> None:
    """Catches a refusal, another dtype of the output, and more error than eager's."""
    head = mmcore.nn.ProjectionHead(32, 24)
    norm, linear = nn.LayerNorm(32), nn.Linear(32, 24)
    linear.load_state_dict({"weight": head.weight, "bias": head.bias})
    x = torch.randn(40, 32).to(short).requires_grad_()
    up = torch.randn(40, 24)

    def eager(x: Tensor) -> Tensor:
        return F.normalize(linear(norm(x)), dim=-1)

    exact_x = x.detach().double().requires_grad_()
    norm.double(), linear.double()
    exact = eager(exact_x)
    exact_slopes = torch.autograd.grad((exact * up).sum(), (exact_x, linear.weight, norm.weight))
    norm.float(), linear.float()
    with autocast(short):
        found, usual = head(x), eager(x)
    assert found.dtype == short
    slopes = torch.autograd.grad((found * up).sum(), (x, head.weight, head.norm_weight))
    usual_slopes = torch.autograd.grad((usual * up).sum(), (x, linear.weight, norm.weight))
    assert [each.dtype for each in slopes] == [short, torch.float32, torch.float32]
    pairs = zip((found, *slopes), (usual, *usual_slopes), (exact, *exact_slopes), strict=True)
    for ours, theirs, truth in pairs:
        eps = torch.finfo(short).eps
        assert relative(ours, truth) <= 2 * (relative(theirs, truth) + eps)


def test_projection_of_float32_by_a_weight_of_16_bits() -> None:
    """Catches an input that is rounded before its norm, and a bias of 16 bits that is refused."""
    x, weight, bias = torch.randn(6, 8) + 100, torch.randn(4, 8).half(), torch.randn(4).half()
    with autocast():
        found = functional.project(x, weight, bias, norm="layer")
        expected = functional.project(x, weight.float(), bias.float(), norm="layer")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(TypeError, match="weight must have dtype float32 to match x, got float16"):
        functional.project(x, weight)


@pytest.mark.op
def test_a_float32_queue_beside_16_bits(backend: str) -> None:
    """Catches a queue that is refused, and a loss further from eager's than rounding."""
    query, key, queue = (F.normalize(torch.randn(n, 16), dim=1) for n in (8, 8, 20))
    query, key = query.bfloat16(), key.bfloat16()
    with autocast():
        found = functional.info_nce_loss(query, key, 10.0, queue=queue)
        logits = 10.0 * query @ torch.cat([key, queue]).T
        eager = F.cross_entropy(logits.float(), torch.arange(8))
    rounded = 10.0 * query.double() @ torch.cat([key.double(), queue.bfloat16().double()]).T
    exact = F.cross_entropy(rounded, torch.arange(8)).float()
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(eager, exact, rtol=2e-2, atol=0)


@pytest.mark.op
@every_short
def test_words_of_a_float32_layer(backend: str, short: torch.dtype) -> None:
    """Catches hidden states of 16 bits that the float32 weight of a vocabulary refuses."""
    hidden, target = torch.randn(10, 16).to(short), torch.randint(30, (10,))
    layer = nn.Linear(16, 30)
    with autocast(short):
        found = functional.linear_cross_entropy_loss(hidden, layer.weight, target, layer.bias)
    logits = F.linear(hidden.double(), layer.weight.to(short).double(), layer.bias.double())
    torch.testing.assert_close(found, F.cross_entropy(logits, target).float(), rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(found, layer.weight)
    assert slope.dtype == torch.float32


VECTORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "weight": lambda x, y, v: functional.clip_loss(x, y, 5.0, weight=v),
    "log_q": lambda x, y, v: functional.info_nce_loss(x, y, 5.0, log_q=v),
    "row_bias": lambda x, y, v: functional.softmax_similarity(x, y, row_bias=v).row_lse,
    "the bias of both": lambda x, y, v: (
        functional.softmax_similarity(x, x, row_bias=v, col_bias=v).row_lse
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_16_bits(name: str) -> None:
    """Catches a vector beside the features that is refused for its 16 bits."""
    x, y = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    vector = torch.rand(6).half()
    with pytest.raises(TypeError, match="got float16"):
        VECTORS[name](x, y, vector)
    with autocast():
        found, expected = (VECTORS[name](x, y, each) for each in (vector, vector.float()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in metrics.__all__ if name != "effective_rank"])
def test_metrics_of_mixed_dtypes(name: str) -> None:
    """Catches a metric that refuses two modalities of different dtypes, or rounds one."""
    metric, x, y = getattr(metrics, name), torch.randn(20, 4).bfloat16(), torch.randn(20, 4)
    with autocast():
        torch.testing.assert_close(metric(x, y), metric(x.float(), y), rtol=0, atol=0)


PRIMITIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax_similarity": lambda x, y: functional.softmax_similarity(x, y, 5.0).row_lse,
    "sigmoid_similarity": lambda x, y: functional.sigmoid_similarity(x, y, 5.0).total,
    "hardest_negatives": lambda x, y: functional.hardest_negatives(x, y).positive,
    "gram": lambda x, y: functional.gram(x, y),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_of_mixed_dtypes(name: str) -> None:
    """Catches a primitive that refuses what the objectives made of it take."""
    x, y = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    with autocast():
        for sides in ((x.bfloat16(), y), (x, y.bfloat16())):
            found = PRIMITIVES[name](*sides)
            expected = PRIMITIVES[name](*(side.float() for side in sides))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.op
def test_distances_are_those_of_the_rounded_features(backend: str) -> None:
    """Catches norms of features as they are beside products of rounded ones, whose difference is
    larger than the distances of rows that lie together.
    """
    x = F.normalize(torch.ones(30, 16) + 0.02 * torch.randn(30, 16), dim=1)
    with autocast():
        found = functional.uniformity_loss(x)
    distances = torch.pdist(x.bfloat16().double())
    exact = distances.square().mul(-2).exp().mean().log()
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=0)


def test_compiled_calls_follow_autocast() -> None:
    """Catches a conversion that torch.compile cannot trace."""
    x, y = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    torch.compiler.reset()
    compiled = torch.compile(functional.clip_loss, fullgraph=True, backend="eager")
    with autocast():
        found = results(compiled(x.bfloat16(), y, 5.0))
        torch.testing.assert_close(found, results(functional.clip_loss(x.bfloat16(), y, 5.0)))


@pytest.mark.objective
@every_short
@every_case(TWO_SIDED)
def test_objectives_of_the_other_16_bits(case: Case, short: torch.dtype) -> None:
    """Catches torch functions that autocast gives one 16-bit dtype and refuses the other."""
    call = Call.of(case, scale=5.0)
    leaves = [z.to(short) if z.ndim > 1 else z for z in call.leaves.values()]
    other = torch.float16 if short == torch.bfloat16 else torch.bfloat16
    with torch.autocast(DEVICE, other):
        found = call.function(*leaves)
    assert all(each.isfinite().all() for each in (found if isinstance(found, tuple) else [found]))
