"""What torch expects of an op: schema, fakes, autograd registration, torch.compile in one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts import check_family, layouts, opcheck
from machines import values_seen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mmcore
from mmcore import functional
from mmcore.backends.inputs import SigmoidWanted, SimilarityInputs, SoftmaxUpstream, SoftmaxWanted
from mmcore.backends.reference.prefix_similarity import PrefixInputs, PrefixUpstream, PrefixWanted
from mmcore.backends.reference.project import ProjectionInputs, ProjectionWanted
from mmcore.ops import prefix_similarity, project, sigmoid_similarity, softmax_similarity
from mmcore.ops.pairs import Pairs
from mmcore.ops.precision import PRECISIONS

pytestmark = pytest.mark.op

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("layout", range(3))
def test_opcheck_l2_normalize(machine: str, layout: int) -> None:
    x, ops = layouts()[layout], torch.ops.mmcore
    opcheck(ops.l2_normalize, x, 1e-12, machine)
    y, inverse_norm = ops.l2_normalize(x, 1e-12, machine)
    opcheck(ops.l2_normalize_backward, y, inverse_norm, torch.randn(10, 6), 1e-12, machine)


@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_opcheck_project(machine: str, layout: int, norm: str) -> None:
    inputs = ProjectionInputs(
        x=layouts()[layout], weight=torch.randn(4, 6),
        bias=None if norm == "rms" else torch.randn(4), norm=norm,
        norm_weight=None if norm == "none" else torch.randn(6),
        norm_bias=torch.randn(6) if norm == "layer" else None, norm_eps=1e-5,
        normalize=norm != "rms", eps=1e-12, precision="medium",
    )  # fmt: skip
    wanted = ProjectionWanted(True, norm != "rms", True, False, norm == "layer")
    check_family(project.family, inputs, wanted, machine)


def pair_vectors(name: str) -> dict[str, Tensor | None]:
    """Targets, or labels and groups, of a (10, 8) matrix as the ops take them."""
    if name == "target":
        return Pairs(torch.randint(-1, 8, (10,)), None, None, None, None)._asdict()
    return Pairs(None, *(torch.randint(-1, 4, (size,)) for size in (10, 8, 10, 8)))._asdict()


@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize(
    ("pairs", "positives"), [("target", "sum"), ("labels", "sum"), ("labels", "log_sum_exp")]
)
@pytest.mark.parametrize("has_biases", [True, False])
@pytest.mark.parametrize("rounds", [True, False])
def test_opcheck_softmax_similarity(
    machine: str, layout: int, pairs: str, positives: str, has_biases: bool, rounds: bool
) -> None:
    bias, row_bias, col_bias = (
        torch.randn(shape) if has_biases else None for shape in ((), (10,), (8,))
    )
    inputs = SimilarityInputs(
        x=layouts()[layout], y=torch.randn(8, 6), scale=torch.tensor(2.0), bias=bias,
        row_bias=row_bias, col_bias=col_bias, **pair_vectors(pairs), denominator="negatives",
        has_columns=has_biases, precision="medium", positives=positives,
    )  # fmt: skip
    if not rounds:
        inputs = inputs._replace(x=inputs.x.bfloat16(), y=torch.randn(8, 6).bfloat16())
    wanted = SoftmaxWanted(x=True, y=False, scale=True, row_bias=has_biases)
    check_family(softmax_similarity.family, inputs, wanted, machine, 0, rounds)


@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("pairs", ["target", "labels"])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("rounds", [True, False])
def test_opcheck_sigmoid_similarity(
    machine: str, layout: int, pairs: str, keeps: bool, rounds: bool
) -> None:
    inputs = SimilarityInputs(
        x=layouts()[layout], y=torch.randn(8, 6), scale=torch.tensor(2.0),
        bias=torch.tensor(-1.0), row_bias=None, col_bias=None, **pair_vectors(pairs),
    )  # fmt: skip
    wanted = SigmoidWanted(x=True, y=True, scale=False, bias=True)
    size = 18 * 6 if keeps else 0
    check_family(sigmoid_similarity.family, inputs, wanted, machine, size, rounds)


def test_opcheck_where_y_is_x(machine: str) -> None:
    inputs = SimilarityInputs(
        x=torch.randn(10, 6), y=None, scale=torch.tensor(2.0), bias=None, row_bias=None,
        col_bias=None, target=None, row_label=torch.randint(-1, 4, (10,)), col_label=None,
        row_group=torch.arange(10), col_group=None,
    )  # fmt: skip
    softmax, sigmoid = softmax_similarity.family, sigmoid_similarity.family
    check_family(softmax, inputs, SoftmaxWanted(True, False, True), machine)
    check_family(sigmoid, inputs, SigmoidWanted(True, False, True, False), machine, 60)


def test_prefixes_that_are_not_rounded(machine: str) -> None:
    """Catches 16-bit gradients of a prefix that are widened afterwards."""
    x, y = (F.normalize(torch.randn(40, 16)).bfloat16() for _ in range(2))
    inputs = PrefixInputs(
        x, y, torch.tensor(10.0), [16], 1e-12, torch.arange(40), None, None, "medium"
    )
    family = prefix_similarity.family
    found = family(inputs, backend=machine)
    upstream = PrefixUpstream(*(torch.randn(1, 40, dtype=torch.float64) for _ in range(3)))
    gradients = family.backward(
        inputs, found, upstream, PrefixWanted(True, True, True), rounds=False, backend=machine
    )
    for gradient in gradients[:2]:
        assert isinstance(gradient, Tensor)
        assert gradient.dtype == torch.float32
        assert not torch.equal(gradient, gradient.bfloat16().float())


def test_gradients_that_are_not_rounded_are_float32(machine: str) -> None:
    """As distribution adds them up over processes."""
    inputs = SimilarityInputs(
        x=F.normalize(torch.randn(40, 16)).bfloat16(),
        y=F.normalize(torch.randn(40, 16)).bfloat16(), scale=torch.tensor(10.0), bias=None,
        row_bias=None, col_bias=None, target=torch.arange(40), row_label=None, col_label=None,
        row_group=None, col_group=None, precision="medium",
    )  # fmt: skip
    family = softmax_similarity.family
    found = family(inputs, backend=machine)
    upstream = SoftmaxUpstream(*(torch.randn(40, dtype=torch.float64) for _ in range(4)))
    wanted = SoftmaxWanted(True, True, True)
    rounded, exact = (
        family.backward(inputs, found, upstream, wanted, rounds=rounds, backend=machine)
        for rounds in (True, False)
    )
    for one, other in zip(rounded[:2], exact[:2], strict=True):
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert (one.dtype, other.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(one, other.bfloat16())


class Precisions(TorchDispatchMode):
    """Which precision each family is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        if func.namespace == "mmcore" and "precision" in names:
            self.found[func._opname] = args[names.index("precision")]
        return func(*args, **(kwargs or {}))


def call_every_family(x: Tensor, y: Tensor, teacher: Tensor) -> None:
    """Those that multiply features."""
    functional.project(x, y)
    functional.softmax_similarity(x, y)
    functional.sigmoid_similarity(x, y)
    functional.matryoshka_loss(x, y, 2.0, [4, 8])
    functional.hardest_negatives(x, y)
    functional.symile_loss({"a": x, "b": y, "c": x}, 2.0)
    functional.distill_clip_loss(x, y, 2.0, teacher, teacher, 2.0)


FAMILIES = {
    "project", "softmax_similarity", "sigmoid_similarity", "prefix_similarity", "hardest_negatives",
    "product_similarity", "distillation",
}  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_reaches_every_family(precision: str) -> None:
    """Catches a family that never hears of "high", or float16 whose precision is torch's."""
    single, half, brain = (torch.randn(10, 8).to(dtype) for dtype in DTYPES)
    torch.set_float32_matmul_precision(precision)
    try:
        for x, expected in ((single, precision), (half, "highest"), (brain, "medium")):
            with mmcore.backend("reference"), Precisions() as precisions:
                call_every_family(x, x.flip(0), x)
            assert precisions.found == dict.fromkeys(FAMILIES, expected)
        with mmcore.backend("reference"), Precisions() as precisions:
            call_every_family(brain, brain.flip(0), single)
        assert precisions.found["distillation"] == precision
    finally:
        torch.set_float32_matmul_precision("highest")


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
