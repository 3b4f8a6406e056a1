"""Threads, forks, graphs that live on, sizes beyond 32 bits, and logits far apart."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.backends import cpu

pytestmark = pytest.mark.op

NAMES = ["row_lse", "col_lse", "row_pos", "col_pos", "grad_x", "grad_y", "grad_scale"]
DENOMINATORS = ["all", "negatives", "positives"]


def unit_rows(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def loss_and_gradients(x: Tensor, y: Tensor, function: Callable[..., Tensor]) -> list[Tensor]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    loss = function(x, y)
    return [loss.detach(), *torch.autograd.grad(loss, (x, y))]


def clip(x: Tensor, y: Tensor) -> Tensor:
    return functional.clip_loss(x, y, 20.0)


def siglip(x: Tensor, y: Tensor) -> Tensor:
    sums = functional.sigmoid_similarity(x, y, 10.0, -10.0)
    return (sums.total - sums.positive) / len(x)


LOSSES = pytest.mark.parametrize("function", [clip, siglip])


def same_bits(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Threads and processes


@LOSSES
def test_concurrent_calls(on_host: str, function: Callable[..., Tensor]) -> None:
    inputs = [(unit_rows(100 + i, 40), unit_rows(100 + i, 40)) for i in range(8)]

    def work(i: int) -> list[Tensor]:
        torch.set_num_threads(2)  # a thread of Python's has its own number
        return loss_and_gradients(*inputs[i % 8], function)

    with ThreadPoolExecutor(1) as alone:
        expected = list(alone.map(work, range(8)))
    with ThreadPoolExecutor(4) as together:
        results = list(together.map(work, range(80)))
    assert all(same_bits(result, expected[i % 8]) for i, result in enumerate(results))


FORK = """
import multiprocessing, sys
import torch, mmcore

def ours():
    x = torch.linspace(-1, 1, 300 * 64).view(300, 64).sin().requires_grad_()
    loss = mmcore.functional.clip_loss(x, x.detach().flip(1), 1.0)
    return torch.stack([loss.detach(), *torch.autograd.grad(loss, x)[0].norm(dim=1)])

def eager():
    return torch.ones(1000, 1000).exp().sum(1)

def child():
    torch.set_num_threads(int(sys.argv[2]))
    torch.testing.assert_close(function(), expected)

function = globals()[sys.argv[1]]
torch.set_num_threads(2)
expected = function()
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(float(sys.argv[3]))
if process.is_alive():
    process.kill()
    sys.exit("hangs")
sys.exit(process.exitcode)
"""


def fork(function: str, threads: int, seconds: float) -> str:
    """What went wrong in a child that was forked after its parent had used two threads."""
    arguments = [sys.executable, "-W", "ignore", "-c", FORK, function, str(threads), str(seconds)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    return "" if result.returncode == 0 else result.stderr.strip()


def test_after_fork_with_one_thread() -> None:
    """So a worker of a DataLoader runs: torch sets its number of threads to one."""
    assert fork("ours", 1, 60) == ""


def test_after_fork_with_threads() -> None:
    if fork("eager", 2, 3) == "hangs":
        pytest.skip("libgomp's threads do not survive a fork: eager PyTorch hangs as well")
    assert fork("ours", 2, 60) == ""


# Graphs


@LOSSES
def test_two_forwards_before_their_backwards(backend: str, function: Callable[..., Tensor]) -> None:
    inputs = [[unit_rows(n, 30).requires_grad_() for _ in range(2)] for n in (90, 70)]
    expected = [loss_and_gradients(*pair, function)[1:] for pair in inputs]
    losses = [function(*pair) for pair in inputs]
    for loss, pair, gradients in zip(losses, inputs, expected, strict=True):
        assert same_bits(torch.autograd.grad(loss, pair), gradients)
    (function(*inputs[0]) + 0 * function(*inputs[1])).backward()
    assert same_bits([leaf.grad for leaf in inputs[0] if leaf.grad is not None], expected[0])


@LOSSES
@pytest.mark.parametrize("size", [0, 2**28])
def test_backward_twice(backend: str, function: Callable[..., Tensor], size: int) -> None:
    x, y = unit_rows(250, 30).requires_grad_(), unit_rows(250, 30).requires_grad_()
    with mmcore.workspace(size):
        loss = function(x, y)
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    assert same_bits(first, torch.autograd.grad(loss, (x, y)))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, (x, y))


@LOSSES
def test_backward_where_threads_and_instructions_changed(
    compiled: str, threads: None, function: Callable[..., Tensor]
) -> None:
    """What the forward kept is of no use then, and must not be mistaken for something else."""
    torch.set_num_threads(2)
    x, y = unit_rows(400, 30).requires_grad_(), unit_rows(400, 30).requires_grad_()
    expected = torch.autograd.grad(function(x, y), (x, y))
    losses = [function(x, y) for _ in range(2)]
    torch.set_num_threads(3)
    gradients = torch.autograd.grad(losses[0], (x, y))
    for name in cpu.instruction_sets():
        cpu._C.select_instruction_set(name)
        gradients += torch.autograd.grad(losses[1], (x, y), retain_graph=True)
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, expected[i % 2], rtol=1e-4, atol=1e-7)


class Held:
    """A tensor that a graph holds, so that a weak reference tells whether it still does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # else an output would hold its own graph


@LOSSES
@pytest.mark.parametrize("is_used", [True, False])
def test_what_is_kept_is_freed_with_the_graph(
    compiled: str, function: Callable[..., Tensor], is_used: bool
) -> None:
    x, y = unit_rows(500, 64).requires_grad_(), unit_rows(500, 64).requires_grad_()
    kept: list[weakref.ref[Held]] = []

    def pack(tensor: Tensor) -> Held:
        held = Held(tensor)
        if tensor.numel() >= min(500 * 500, 2 * x.numel()):
            kept.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        loss = function(x, y)
    assert len(kept) == 1
    assert kept[0]() is not None
    if is_used:
        loss.backward()
    else:
        del loss
    assert kept[0]() is None


# Sizes beyond 32 bits


def few_values(count: int, values: int) -> tuple[Tensor, Tensor, Tensor]:
    """(count, 1) features of few values, the last row's its own; the values; how often each is."""
    which = torch.arange(count) % values
    which[-1] = values
    distinct = torch.linspace(-1, 1, values + 1)[torch.randperm(values + 1), None]
    return distinct[which], distinct.double(), which.bincount().double()


def test_more_than_two_to_the_31_pairs() -> None:
    x, x_values, x_counts = few_values(46_400, 7)
    y, y_values, y_counts = few_values(46_500, 5)
    x.requires_grad_()
    statistics = functional.softmax_similarity(x, y, 5.0)
    (gradient,) = torch.autograd.grad(statistics.row_lse.sum(), x)
    by_row = 5 * x.detach() * y_values.T + y_counts.log()
    by_column = 5 * y * x_values.T + x_counts.log()
    torch.testing.assert_close(statistics.row_lse, by_row.logsumexp(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(statistics.col_lse, by_column.logsumexp(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(statistics.row_pos, 5 * (x * y[: len(x)]).double().squeeze(1))
    expected = 5 * by_row.softmax(1) @ y_values
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


def test_more_than_two_to_the_31_pairs_of_one_tensor() -> None:
    x, values, counts = few_values(46_400, 7)
    x.requires_grad_()
    total, _ = functional.sigmoid_similarity(x, x, 5.0, -1.0)
    (gradient,) = torch.autograd.grad(total, x)
    logits = 5 * x.detach() * values.T - 1
    expected = (F.softplus(logits) * counts).sum()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    expected = 2 * 5 * (logits.sigmoid() * counts) @ values
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-2)


# Logits far apart


def check(draws: Sequence[Sequence[Tensor]], **options: Any) -> None:
    def call(backend: str | None) -> Callable[..., Sequence[Tensor]]:
        return lambda *a: functional.softmax_similarity(*a, **options, backend=backend)

    def reordered(x: Tensor, y: Tensor, scale: Tensor) -> Sequence[Tensor]:
        order = torch.randperm(x.shape[1])
        return call("reference")(x[:, order], y[:, order], scale)

    check_against_eager(call(None), [call("reference"), reordered, reordered], draws, NAMES)


@pytest.mark.parametrize(("scale", "length"), [(1e4, 1.0), (1.0, 30.0), (10.0, 100.0)])
def test_logits_up_to_1e5(compiled: str, scale: float, length: float) -> None:
    draws = []
    for _ in range(20):
        x, y = unit_rows(150, 64) * length, unit_rows(130, 64) * length
        y[:60] = x[:60]
        draws.append([x, y, torch.tensor(scale)])
    check(draws, target=torch.randint(-1, 130, (150,)))
    check(draws, row_label=torch.randint(-1, 9, (150,)), col_label=torch.randint(-1, 9, (130,)))


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("is_by_label", [False, True])
def test_best_logit_far_below_the_others(
    compiled: str, denominator: str, is_by_label: bool
) -> None:
    """Row 5 and column 9 are opposed to all others, and alike: 200 nats below, but for one pair."""
    draws = []
    for _ in range(4):
        direction = unit_rows(1, 64)
        x, y = (F.normalize(direction + 0.1 * unit_rows(rows, 64)) for rows in (230, 200))
        x[5], y[9] = -direction, -direction
        draws.append([x, y, torch.tensor(100.0)])
    target = torch.arange(230) % 200
    target[5] = 9
    pairs: dict[str, Tensor] = {"target": target}
    if is_by_label:
        pairs = {"row_label": target, "col_label": torch.arange(200)}
    check(draws, denominator=denominator, **pairs)


def test_negatives_far_below_the_positive(backend: str) -> None:
    """The positive is no part of this sum, and must not lend it its size."""
    x, y = torch.tensor([[1.0]]), torch.tensor([[1.0], [-1.0]])
    statistics = functional.softmax_similarity(x, y, 100.0, denominator="negatives")
    torch.testing.assert_close(statistics.row_lse, torch.tensor([-100.0]).double())


def test_negative_groups_match(backend: str) -> None:
    """Only -1 is equal to nothing. Row 1 names row 2, and (1, 0), the mirrored pair, stays out."""
    x, target = torch.eye(3), torch.tensor([1, 2, 0])
    statistics = (
        functional.softmax_similarity(x, x, target=target, row_group=torch.tensor([g, g, -1]))
        for g in (7, -7)
    )
    for one, other in zip(*statistics, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_all_biases_minus_infinity(backend: str, denominator: str) -> None:
    x, y = unit_rows(40, 16).requires_grad_(), unit_rows(30, 16).requires_grad_()
    nothing = torch.full((40,), -torch.inf).requires_grad_()
    options = {"target": torch.arange(40) % 30, "denominator": denominator}
    statistics = functional.softmax_similarity(x, y, 9.0, row_bias=nothing, **options)
    assert statistics.row_lse.isneginf().all()
    assert statistics.col_lse.isneginf().all()
    lse = statistics.row_lse.sum() + statistics.col_lse.sum()
    assert all((g == 0).all() for g in torch.autograd.grad(lse, (x, y, nothing)))
