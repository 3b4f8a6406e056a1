"""What torch expects of an op: schema, fakes, autograd registration, torch.compile in one graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from machines import values_seen
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.op

CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def layouts() -> list[Tensor]:
    """One matrix, dense, transposed and strided."""
    return [torch.randn(10, 6), torch.randn(6, 10).T, torch.randn(20, 12)[::2, ::2]]


@pytest.mark.parametrize("layout", range(3))
def test_opcheck_l2_normalize(machine: str, layout: int) -> None:
    x = layouts()[layout]
    torch.library.opcheck(
        torch.ops.mmcore.l2_normalize.default, (x, 1e-12, machine), test_utils=CHECKS
    )
    y, inverse_norm = torch.ops.mmcore.l2_normalize(x, 1e-12, machine)
    torch.library.opcheck(
        torch.ops.mmcore.l2_normalize_backward.default,
        (y, inverse_norm, torch.randn(10, 6), 1e-12, machine),
        test_utils=CHECKS,
    )


@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_opcheck_project(machine: str, layout: int, norm: str) -> None:
    x, weight = layouts()[layout], torch.randn(4, 6)
    bias = None if norm == "rms" else torch.randn(4)
    norm_weight = None if norm == "none" else torch.randn(6)
    norm_bias = torch.randn(6) if norm == "layer" else None
    arguments = (x, weight, bias, norm, norm_weight, norm_bias, 1e-5, norm != "rms", 1e-12, True)
    torch.library.opcheck(
        torch.ops.mmcore.project.default, (*arguments, machine), test_utils=CHECKS
    )
    outputs = torch.ops.mmcore.project(*arguments, machine)
    torch.library.opcheck(
        torch.ops.mmcore.project_backward.default,
        (
            *arguments,
            *outputs,
            torch.randn(10, 4),
            [True, norm != "rms", True, False, True],
            machine,
        ),
        test_utils=CHECKS,
    )


def pair_vectors(name: str) -> list[Tensor | None]:
    """Targets, or labels and groups, of a (10, 8) matrix as the ops take them."""
    if name == "target":
        return [torch.randint(-1, 8, (10,)), None, None, None, None]
    return [None, *(torch.randint(-1, 4, (size,)) for size in (10, 8, 10, 8))]


@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize(
    ("pairs", "positives"), [("target", "sum"), ("labels", "sum"), ("labels", "log_sum_exp")]
)
@pytest.mark.parametrize("has_biases", [True, False])
def test_opcheck_softmax_similarity(
    machine: str, layout: int, pairs: str, positives: str, has_biases: bool
) -> None:
    x, y = layouts()[layout], torch.randn(8, 6)
    scale = torch.tensor(2.0)
    biases: list[Tensor | None] = [None, None, None]
    if has_biases:
        biases = [torch.randn(shape) for shape in ((), (10,), (8,))]
    vectors = pair_vectors(pairs)
    arguments = (x, y, scale, *biases, *vectors, "negatives", has_biases, True, positives)
    torch.library.opcheck(
        torch.ops.mmcore.softmax_similarity.default, (*arguments, 0, machine), test_utils=CHECKS
    )
    found = torch.ops.mmcore.softmax_similarity(*arguments, 0, machine)
    wanted = [True, False, True, has_biases, has_biases, False]
    torch.library.opcheck(
        torch.ops.mmcore.softmax_similarity_backward.default,
        (*arguments, *found, *found[:4], wanted, machine),
        test_utils=CHECKS,
    )


@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("pairs", ["target", "labels"])
@pytest.mark.parametrize("keeps", [True, False])
def test_opcheck_sigmoid_similarity(machine: str, layout: int, pairs: str, keeps: bool) -> None:
    x, y = layouts()[layout], torch.randn(8, 6)
    scalars = [torch.tensor(value) for value in (2.0, -1.0)]
    arguments = (x, y, *scalars, *pair_vectors(pairs), False)
    torch.library.opcheck(
        torch.ops.mmcore.sigmoid_similarity.default, (*arguments, keeps, machine), test_utils=CHECKS
    )
    total, positive, kept, sums = torch.ops.mmcore.sigmoid_similarity(*arguments, keeps, machine)
    torch.library.opcheck(
        torch.ops.mmcore.sigmoid_similarity_backward.default,
        (*arguments, kept, sums, total, positive, [True, True, False, True], machine),
        test_utils=CHECKS,
    )


def test_opcheck_where_y_is_x(machine: str) -> None:
    x, scale = torch.randn(10, 6), torch.tensor(2.0)
    pairs = [None, torch.randint(-1, 4, (10,)), None, torch.arange(10), None]
    softmax = (x, None, scale, None, None, None, *pairs, "all", True, False, "sum", 0, machine)
    sigmoid = (x, None, scale, None, *pairs, False, True, machine)
    for op, arguments in (("softmax", softmax), ("sigmoid", sigmoid)):
        call = getattr(torch.ops.mmcore, f"{op}_similarity").default
        torch.library.opcheck(call, arguments, test_utils=CHECKS)


def training_step(x: Tensor, y: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    image = functional.project(x.T, weight, norm="layer")
    text = functional.l2_normalize(y[:, ::2])
    sigmoid = functional.sigmoid_similarity(image, text, scale.exp(), -scale)
    # Named: compiled code need not follow the tests' default device.
    labels = torch.arange(image.shape[0], device=image.device) % 4
    symmetric = functional.softmax_similarity(image, image, row_label=labels, columns=False)
    return (
        functional.clip_loss(image, text, scale.exp())
        + (sigmoid.total - sigmoid.positive).float()
        + (symmetric.row_lse - symmetric.row_pos).sum().float()
    )


@pytest.mark.parametrize("size", [0, 2**30])
def test_compiles_to_one_graph(machine: str, size: int) -> None:
    inputs = [torch.randn(16, 30), torch.randn(30, 20), torch.randn(10, 16), torch.tensor(2.0)]
    for value in inputs:
        value.requires_grad_()
    compiled = torch.compile(training_step, fullgraph=True)
    with mmcore.backend(machine), mmcore.workspace(size):
        expected = training_step(*inputs)
        expected_gradients = torch.autograd.grad(expected, inputs)
        loss = compiled(*inputs)
        gradients = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients)


def test_compiled_code_follows_the_backend_block() -> None:
    x = torch.randn(30, 8)
    compiled = torch.compile(lambda x: functional.l2_normalize(x), fullgraph=True)
    counted: list[str] = []
    original = mmcore.backends.choose
    mmcore.backends.choose = lambda requested, x: counted.append(requested) or "reference"  # type: ignore[func-returns-value]
    try:
        compiled(x)
        with mmcore.backend("reference"):
            compiled(x)
    finally:
        mmcore.backends.choose = original
    assert counted == ["auto", "reference"]


def test_dynamic_batch_sizes_compile_once() -> None:
    compiled = torch.compile(
        lambda x, y: functional.clip_loss(x, y, 10.0), fullgraph=True, dynamic=True
    )
    for rows in (5, 9, 33):
        x, y = F.normalize(torch.randn(rows, 8)), F.normalize(torch.randn(rows, 8))
        torch.testing.assert_close(compiled(x, y), functional.clip_loss(x, y, 10.0))


@values_seen
def test_values_are_checked_inside_compiled_code() -> None:
    compiled = torch.compile(
        lambda x, target: functional.softmax_similarity(x, x, target=target).row_lse, fullgraph=True
    )
    with pytest.raises(ValueError, match=r"target must be in \[-1, 4\), got 4"):
        compiled(torch.randn(4, 8), torch.tensor([0, 4, 1, 2]))


def test_modules_compile() -> None:
    head, loss = mmcore.nn.ProjectionHead(16, 8), mmcore.nn.ClipLoss()
    x, y = torch.randn(12, 16), torch.randn(12, 16)
    scale = torch.tensor(5.0)
    step = torch.compile(lambda x, y: loss(head(x), head(y), scale), fullgraph=True)
    torch.testing.assert_close(step(x, y), loss(head(x), head(y), scale))


def test_second_derivative_is_an_error_not_a_zero() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        functional.l2_normalize(x).square().sum() + functional.l2_normalize(x)[0, 0],
        x,
        create_graph=True,
    )
    with pytest.raises(NotImplementedError, match="cannot be differentiated a second time"):
        gradient.sum().backward()


def test_the_backward_runs_where_the_forward_ran() -> None:
    x = torch.randn(300, 16, requires_grad=True)
    with mmcore.backend("reference"):
        loss = functional.clip_loss(functional.l2_normalize(x), functional.l2_normalize(x), 9.0)
        (inside,) = torch.autograd.grad(loss, x, retain_graph=True)
    (outside,) = torch.autograd.grad(loss, x)
    assert torch.equal(inside, outside)
