"""Calls whose tensors have shapes and no numbers, or stand for others: nothing may read a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from objective_cases import Call, every_case, few_in_fast_tier, results
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from mmcore import functional, metrics, nn
from mmcore.bench.catalogue import CASES, ROWS, Case

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning")

# The usual call of each objective, and calls with weights, whose values are checked too.
USUAL = [row.cases()[0] for row in ROWS.values()]
WEIGHTED = [case for case in CASES.values() if "weights" in case.id and case not in USUAL]
USED = [*USUAL, *WEIGHTED]
WIDTH = 8


class Objective(torch.nn.Module):
    """An objective of all tensors of a call, in the order of its arguments."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        values, self.spec = tree_flatten(call.arguments)
        self.is_tensor = [isinstance(each, Tensor) for each in values]
        self.others = [None if isinstance(each, Tensor) else each for each in values]
        self.inputs = tuple(each for each in values if isinstance(each, Tensor))
        self.function = call.case.function(WIDTH)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        values = [
            next(rest) if is_tensor else other
            for is_tensor, other in zip(self.is_tensor, self.others, strict=True)
        ]
        return (sum(results(self.function(**tree_unflatten(values, self.spec)))),)


def call_of(case: Case) -> Call:
    return Call.of(case, 6, WIDTH, scale=5.0)


def gradients(loss: Callable[..., Tensor], *tensors: Tensor) -> Sequence[Tensor]:
    leaves = [each.detach().requires_grad_() for each in tensors]
    return torch.autograd.grad(loss(*leaves), leaves)


@every_case(USED)
def test_meta_tensors_have_shapes(case: Case) -> None:
    """Catches a value that the host reads of a tensor that has none, and a wrong shape or dtype."""
    call = call_of(case)
    expected = call.function(*call.leaves.values())
    leaves = [each.to("meta").requires_grad_() for each in call.leaves.values()]
    call.arguments = tree_map(
        lambda each: each.to("meta") if isinstance(each, Tensor) else each, call.arguments
    )
    found = results(case.function(WIDTH)(**call.given(leaves)))
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    assert all(each.is_meta for each in found)
    slopes = torch.autograd.grad(sum(found), leaves)
    assert [each.shape for each in slopes] == [each.shape for each in leaves]


@every_case(USED)
def test_fake_tensors(case: Case) -> None:
    """Catches a value that is read of a fake tensor, or of a real one beside it."""
    call = call_of(case)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(each) for each in call.leaves.values()]
        assert call.loss(*fake).shape == ()
        assert all(
            each.shape == leaf.shape
            for each, leaf in zip(gradients(call.loss, *fake), fake, strict=True)
        )


@few_in_fast_tier(USED)
def test_make_fx_records_a_call_and_its_gradients(case: Case) -> None:
    """Catches a value that is read while make_fx records, and a recorded value that differs."""
    call = call_of(case)
    leaves = list(call.leaves.values())

    def both(*tensors: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return (call.loss(*tensors), *gradients(call.loss, *tensors))

    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(both, tracing_mode=mode, _allow_non_fake_inputs=True)(*leaves)
        torch.testing.assert_close(graph(*leaves), both(*leaves))


@few_in_fast_tier(USED)
def test_export(case: Case) -> None:
    """Catches a value that is read while a module is exported, and an export that differs."""
    module = Objective(call_of(case))
    for strict in (False, True):
        torch.manual_seed(1)
        program = torch.export.export(module, module.inputs, strict=strict)
        torch.testing.assert_close(program.module()(*module.inputs), module(*module.inputs))


# torch cannot export the gradient of torch.linalg.cholesky so, nor that of the plain formula.
@few_in_fast_tier([case for case in USED if case.row.name != "cca_loss"])
def test_export_of_a_joint_graph(case: Case) -> None:
    """Catches a value that is read while forward and backward are exported together."""
    call = call_of(case)
    module, leaves = Objective(call), {id(each) for each in call.leaves.values()}
    inputs = [each.clone().requires_grad_(id(each) in leaves) for each in module.inputs]
    graph, _ = aot_export_module(module, inputs, trace_joint=True, output_loss_index=0)
    loss, *found = graph(*inputs)
    (expected,) = module(*inputs)
    torch.testing.assert_close(loss, expected)
    wanted = [each for each in inputs if each.requires_grad]
    found = [each for each in found if each is not None]
    torch.testing.assert_close(found, list(torch.autograd.grad(expected, wanted)))


@every_case([case for case in USED if ("scale",) in call_of(case).leaves])
def test_vmap_over_the_scale(case: Case) -> None:
    """Catches a scale whose value is read where it stands for several, and a wrong gradient."""
    call = call_of(case)
    at = list(call.leaves).index(("scale",))
    leaves = list(call.leaves.values())

    def loss(scale: Tensor) -> Tensor:
        return call.loss(*leaves[:at], scale, *leaves[at + 1 :])

    scales = torch.tensor([1.0, 5.0, 20.0])
    expected = [loss(scale) for scale in scales]
    torch.testing.assert_close(torch.func.vmap(loss)(scales), torch.stack(expected))
    slopes = [torch.func.grad(loss)(scale) for scale in scales]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(scales), torch.stack(slopes))


# By name: of (6, 8) features and an (8, 8) matrix.
OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2_normalize": lambda x, y: functional.l2_normalize(x),
    "project": lambda x, weight: functional.project(x, weight, norm="layer"),
    "hardest_negatives": lambda x, y: functional.hardest_negatives(x, x).positive,
    "gram": lambda x, y: functional.gram(x, centred=True),
    "modality_gap": metrics.modality_gap,
    "effective_rank": lambda x, y: metrics.effective_rank(x),
    "linear_cka": lambda x, y: metrics.linear_cka(x, x),
    "linear_separability": metrics.linear_separability,
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_on_meta_and_fake_tensors(name: str) -> None:
    """Catches a value that is read where there is none, or a backend that is asked for one."""
    x, y = torch.randn(6, 8), torch.randn(8, 8)
    shape = OTHERS[name](x, y).shape
    assert OTHERS[name](x.to("meta"), y.to("meta")).shape == shape
    with FakeTensorMode() as mode:
        assert OTHERS[name](mode.from_tensor(x), mode.from_tensor(y)).shape == shape


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_any_number_of_rows(strict: bool) -> None:
    """Catches a check or a constant that ties an exported module to the rows of its example."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.loss = nn.ProjectionHead(8, 4), nn.ClipLoss()
            self.scale = torch.nn.Parameter(torch.tensor(5.0))

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            x, y = self.head(x), self.head(y)
            return self.loss(x, y, self.scale), functional.uniformity_loss(x)

    model, rows = Model(), torch.export.Dim("rows", min=2)
    inputs = torch.randn(6, 8), torch.randn(6, 8)
    shapes = {"x": {0: rows}, "y": {0: rows}}
    program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=strict)
    others = torch.randn(9, 8), torch.randn(9, 8)
    torch.testing.assert_close(program.module()(*others), model(*others))


def test_ids_without_numbers_are_refused_with_the_reason() -> None:
    """Catches an error from inside torch that names no argument."""
    x, ids = torch.empty(6, 8, device="meta"), torch.empty(6, dtype=torch.int64, device="meta")
    with pytest.raises(RuntimeError, match="ids must be numbers that the host can read"):
        functional.multimodal_loss({"a": x, "b": x}, 5.0, ids={"a": ids, "b": ids})


def test_values_are_checked_under_grad() -> None:
    """Catches a check that is skipped where `torch.func.grad` wraps one number alone."""
    x = torch.randn(6, 8)
    with pytest.raises(ValueError, match=r"scale, .* must be at least 0, got -5.0"):
        torch.func.grad(lambda scale: functional.clip_loss(x, x, scale))(torch.tensor(-5.0))


def test_values_of_a_tensors_subclass_are_checked() -> None:
    """Catches a check that takes every subclass for one without numbers."""

    class Embedding(torch.Tensor):
        pass

    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        functional.clip_loss(x, x, torch.tensor(-1.0).as_subclass(Embedding))
