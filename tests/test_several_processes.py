"""Two processes: the warning, objectives beside one process, DDP and FSDP."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import two_processes
from objective_cases import Call, every_case
from torch import Tensor
from two_processes import LOSSES, PROCESSES, SECONDS, Towers, batch, head, trained

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import Case
from mmcore.functional import local_batch

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both processes, which run once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    processes = torch.multiprocessing.start_processes(
        two_processes.run, (str(folder),), PROCESSES, join=False, start_method="spawn"
    )
    assert processes is not None
    end = time.monotonic() + 2 * SECONDS
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < end, "the processes hang"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_equal_one(ranks: list[dict[str, Any]], name: str) -> None:
    """Catches keys or gradients of keys that are missed, and a factor that DDP does not cancel."""
    model = Towers(torch.float64)
    x, y, scale = model(*batch(torch.float64))
    loss = LOSSES[name](x, y, scale)
    features = torch.autograd.grad(loss, (x, y), retain_graph=True)
    loss.backward()
    for i, gradient in enumerate(features):
        joined = torch.cat([rank[name]["features"][i] for rank in ranks])
        torch.testing.assert_close(joined, PROCESSES * gradient, **EXACT)
    for rank in ranks:
        torch.testing.assert_close(rank[name]["value"], loss.detach(), **EXACT)
        gradients = [parameter.grad for parameter in model.parameters()]
        torch.testing.assert_close(rank[name]["gradients"], gradients, **EXACT)


@pytest.mark.parametrize("kind", ["summed", "fsdp2"])
def test_gradients_of_clip_in_other_ways(ranks: list[dict[str, Any]], kind: str) -> None:
    """Catches a convention of sums that divides, and a scale that FSDP averages to another."""
    model = Towers(torch.float64)
    functional.clip_loss(*model(*batch(torch.float64))).backward()
    for rank in ranks:
        for found, parameter in zip(rank[kind], model.parameters(), strict=True):
            torch.testing.assert_close(found.reshape(parameter.shape), parameter.grad, **EXACT)


def test_a_ring_equals_one_process_and_itself(ranks: list[dict[str, Any]]) -> None:
    """Catches rows that go round in another order, and sums in the order in which they come."""
    x, y = (functional.l2_normalize(z).requires_grad_() for z in batch(torch.float32))
    loss = functional.clip_loss(x, y, 5.0)
    gradients = torch.autograd.grad(loss, (x, y))
    for rank in ranks:
        first, second = rank["ring"]
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        torch.testing.assert_close(first[0], loss.detach())
    for i, gradient in enumerate(gradients, start=1):
        joined = torch.cat([rank["ring"][0][i] for rank in ranks])
        torch.testing.assert_close(joined, PROCESSES * gradient)


def test_compiled_code_has_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    """Catches a graph break at a collective, and collectives that a compiler drops or moves."""
    for rank in ranks:
        eager, compiled = rank["compiled"]
        assert all(torch.equal(*pair) for pair in zip(eager, compiled, strict=True))


@pytest.mark.parametrize("kind", ["fully_shard", "FullyShardedDataParallel"])
def test_fsdp_equals_one_process(ranks: list[dict[str, Any]], kind: str) -> None:
    """Catches a storage that a kernel's call left as one that FSDP cannot resize."""
    model = head()
    trained(model, batch(torch.float32)[0])
    before = head().state_dict()
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name])
        for rank in ranks:
            torch.testing.assert_close(rank[kind][name], value, rtol=1e-5, atol=1e-6)


def test_a_group_does_not_warn_and_local_rows_warn_once(ranks: list[dict[str, Any]]) -> None:
    """Catches a warning that comes with every step, or from those who named a group."""
    assert [rank["warnings"] for rank in ranks] == [[0, 1]] * PROCESSES


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has others and has not warned."""
    monkeypatch.setattr(local_batch, "_has_warned", False)
    answers = {"is_available": True, "is_initialized": True, "get_world_size": PROCESSES}
    stub = SimpleNamespace(**{name: lambda value=value: value for name, value in answers.items()})
    monkeypatch.setattr(local_batch, "dist", stub)


def has_warned(call: Callable[[], Any]) -> bool:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return any(each.category is mmcore.LocalBatchWarning for each in found)


def is_said(case: Case, call: Call) -> bool:
    """Whether the call names its keys, or compares no rows of the batch."""
    if case.row.name == "info_nce_loss":
        return bool(call.arguments.keys() & {"target", "queue"})
    return case.row.name in ("alignment_loss", "linear_cross_entropy_loss")


@every_case()
def test_which_objectives_warn(many: None, case: Case) -> None:
    """Catches an objective that compares the rows of one process and does not say so."""
    call = Call.of(case)
    assert has_warned(lambda: call.loss(*call.leaves.values())) != is_said(case, call)
    assert not has_warned(lambda: call.loss(*call.leaves.values()))


def test_a_target_is_enough_for_the_sigmoid(many: None) -> None:
    """Catches a warning from siglip_loss over gathered keys."""
    x, target = torch.randn(4, 8), torch.arange(4)
    assert not has_warned(lambda: functional.siglip_loss(x, x, 1.0, target=target))


def test_the_warning_names_the_loss_and_the_callers_file(many: None) -> None:
    """Catches a warning that points into mmcore, where nobody can mend it."""
    with pytest.warns(mmcore.LocalBatchWarning, match="clip_loss .* 2 processes") as found:
        functional.clip_loss(torch.randn(4, 8), torch.randn(4, 8), 1.0)
    assert [Path(each.filename).name for each in found] == [Path(__file__).name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_warns_while_it_is_traced(many: None) -> None:
    """Catches a graph break, and training that is compiled and never warns."""
    torch.compiler.reset()
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    compiled = torch.compile(functional.clip_loss, fullgraph=True, backend="eager")
    assert has_warned(lambda: compiled(x, y, 3.0))
    torch.testing.assert_close(compiled(x, y, 3.0), functional.clip_loss(x, y, 3.0))


def storages(*tensors: Tensor | None) -> list[bool]:
    return [z.untyped_storage().resizable() for z in tensors if z is not None]


@every_case()
def test_storages_stay_resizable(case: Case) -> None:
    """Catches a tensor that a call shares with NumPy: FSDP cannot free such a weight."""
    with mmcore.backend("cpu"):
        call = Call.of(case)
        leaves = call.tensors()
        found = call.function(*leaves)
        gradients = torch.autograd.grad(sum(found), leaves, allow_unused=True)
    given = [value for value in call.arguments.values() if isinstance(value, Tensor)]
    assert all(storages(*leaves, *given, *found, *gradients))
    del found, gradients
    for leaf in leaves:
        leaf.untyped_storage().resize_(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [None, "layer"])
def test_storages_of_a_projection_stay_resizable(dtype: torch.dtype, norm: str | None) -> None:
    """Catches the same of features, weights, outputs and gradients of project and l2_normalize."""
    x, weight = (torch.randn(6, 6, dtype=dtype, requires_grad=True) for _ in range(2))
    with mmcore.backend("cpu"):
        found = functional.l2_normalize(functional.project(x, weight, norm=norm))
        gradients = torch.autograd.grad(found.sum(), (x, weight))
    assert all(storages(x, weight, found, *gradients))
    x.untyped_storage().resize_(0)
    weight.untyped_storage().resize_(0)
