"""Dtypes, layouts, copies, and what wraps a model: GradScaler, data-parallel training."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from metric_cases import METRICS, every_metric, measure, sides
from objective_cases import Call, every_case
from torch import Tensor, nn

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import ROWS, Case

pytestmark = pytest.mark.objective

every_objective = every_case([row.cases()[0] for row in ROWS.values()])


def in_dtype(arguments: Any, dtype: torch.dtype) -> Any:
    """Arguments of a case with features of a dtype."""
    if isinstance(arguments, dict):
        return {name: in_dtype(value, dtype) for name, value in arguments.items()}
    if isinstance(arguments, list):
        return [in_dtype(value, dtype) for value in arguments]
    has_features = isinstance(arguments, Tensor) and arguments.ndim > 1
    return arguments.to(dtype) if has_features and arguments.is_floating_point() else arguments


# Numbers and layouts


@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)],
)
@every_objective
def test_objectives_of_every_dtype(case: Case, dtype: torch.dtype, error: float) -> None:
    """Catches an objective that refuses a dtype, or computes in it what needs more digits. The
    errors are measured by other tests.
    """
    arguments = in_dtype(Call.of(case, 12, 8, scale=5.0).arguments, dtype)
    call, exact = (Call(case, each, 8) for each in (arguments, in_dtype(arguments, torch.float64)))
    expected_results = exact.plain(*exact.leaves.values())
    for found, expected in zip(call.function(*call.leaves.values()), expected_results, strict=True):
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


@every_objective
def test_strided_features(case: Case) -> None:
    """Catches a kernel that reads strided or transposed rows as dense; metrics likewise."""
    call = Call.of(case, 8, 8, scale=5.0)

    def laid_out(leaf: Tensor) -> Tensor:
        if leaf.ndim < 2:
            return leaf
        return leaf.mT.contiguous().mT

    def strided(leaf: Tensor) -> Tensor:
        return leaf if leaf.ndim < 2 else leaf.repeat_interleave(2, -1)[..., ::2]

    expected = call.function(*call.leaves.values())
    x, y = sides()
    for change in (laid_out, strided):
        torch.testing.assert_close(call.function(*map(change, call.leaves.values())), expected)
        for name in METRICS:
            torch.testing.assert_close(measure(name, change(x), change(y)), measure(name, x, y))


def test_a_scaled_step() -> None:
    """Catches gradients that overflow by the scaler's factor, or are not scaled by it."""
    head, (x, y) = mmcore.nn.ProjectionHead(6, 4), sides()
    parameters = list(head.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(parameters, lr=0.0)

    def loss() -> Tensor:
        return functional.clip_loss(head(x), functional.l2_normalize(y[:, :4]), 5.0)

    expected = torch.autograd.grad(loss(), parameters)
    scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**10


def test_modules_are_copied_and_saved() -> None:
    """Catches a module or a function with something that pickle cannot name."""
    x, y = sides()
    head, loss = mmcore.nn.ProjectionHead(6, 4), mmcore.nn.InfoNceLoss()
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(copied(x), head(x))
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(copied(x, y, 2.0), loss(x, y, 2.0))
    file, other = io.BytesIO(), mmcore.nn.ProjectionHead(6, 4)
    torch.save(head.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), head(x))
    assert loss.state_dict() == {}
    functions = [functional.clip_loss, functional.project, *METRICS.values()]
    assert all(pickle.loads(pickle.dumps(function)) is function for function in functions)


# Several processes


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def in_ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def in_fsdp1(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def in_fsdp2(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[1], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("wrap", [in_ddp, in_fsdp1, in_fsdp2])
def test_data_parallel_wrappers(one_process: None, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Catches a storage that can no longer be resized, and a head that wants plain parameters."""
    model, (x, y) = nn.Sequential(nn.Linear(6, 6), mmcore.nn.ProjectionHead(6, 4)), sides()

    def step(model: nn.Module) -> Tensor:
        loss = functional.clip_loss(model(x), functional.l2_normalize(y[:, :4]), 5.0)
        loss.backward()
        return loss.detach()

    expected = step(copy.deepcopy(model))
    wrapped = wrap(model)
    for _ in range(2):  # the second forward takes memory that the first gave back
        assert torch.equal(step(wrapped), expected)


@every_metric
def test_metrics_of_this_process(one_process: None, name: str) -> None:
    """Catches a metric that waits for other processes."""
    x, y = sides()
    found = measure(name, x, y)
    dist.barrier()
    assert torch.equal(found, measure(name, x, y))
