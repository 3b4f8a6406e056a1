"""Inputs on which one short cut or another of the kernels must not be taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mmcore
from mmcore import functional
from mmcore.backends import buffer_pool
from mmcore.backends.buffer_pool import waiting

pytestmark = pytest.mark.op


def test_biases_too_far_apart_to_be_factors(backend: str) -> None:
    x, y, nobody = torch.ones(1, 1), torch.tensor([[-1.0], [1.0]]), torch.tensor([-1])
    col_bias = torch.tensor([110.0, 0.0], requires_grad=True)
    row_lse = functional.softmax_similarity(x, y, 77.0, target=nobody, col_bias=col_bias).row_lse
    torch.testing.assert_close(row_lse, torch.tensor([77.0]).double(), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(row_lse.sum(), col_bias)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.0]))


def test_an_excluded_column_with_the_largest_bias(backend: str) -> None:
    x, y = torch.ones(2, 1), torch.zeros(2, 1)
    vectors = {"row_group": torch.tensor([0, -1]), "col_group": torch.tensor([0, -1])}
    col_bias = torch.tensor([100.0, 0.0])
    row_lse = functional.softmax_similarity(
        x, y, target=torch.tensor([-1, -1]), col_bias=col_bias, **vectors
    ).row_lse
    torch.testing.assert_close(row_lse, torch.tensor([0.0, 100.0]).double(), rtol=0, atol=1e-5)


def test_sums_that_lose_terms_to_underflow(backend: str) -> None:
    """Not to 0: with one shift for the whole matrix, half of each sum lies below 2^-126."""
    cosine = torch.linspace(-0.44, -0.40, 50)
    y = torch.stack([cosine, (1 - cosine.double().square()).sqrt().float()], 1)
    x, nobody = torch.tensor([[1.0, 0.0]]), torch.tensor([-1])
    row_lse = functional.softmax_similarity(x, y, 100.0, target=nobody).row_lse
    expected = (100 * cosine.double()).logsumexp(0)
    torch.testing.assert_close(row_lse[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [33.3, 77.7, 100.0])
def test_exponents_have_more_digits_than_float32(backend: str, scale: float) -> None:
    """scale·log2(e) comes in two parts; without the low one, sums are off by 1e-6 and more."""
    x, y = torch.ones(1, 1), torch.ones(200, 1)
    row_lse = functional.softmax_similarity(x, y, scale, target=torch.tensor([-1])).row_lse
    expected = scale + torch.tensor(200.0).double().log()
    rounding = scale * 2**-23 if backend == "reference" else 4e-7
    torch.testing.assert_close(row_lse[0], expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("weight", [1.0, 1e-4, 1e-12])
@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_saturated_rows_with_a_small_weight(backend: str, scale: float, weight: float) -> None:
    """Every logit at the bound: the sums are as large as they get, their reciprocals as small."""
    x = torch.ones(1000, 1, requires_grad=True)
    statistics = functional.softmax_similarity(
        x, torch.ones(1000, 1), scale, target=torch.full((1000,), -1)
    )
    (gradient,) = torch.autograd.grad(weight * statistics.row_lse.mean(), x)
    torch.testing.assert_close(
        gradient, torch.full_like(gradient, weight * scale / 1000), rtol=1e-5, atol=0
    )


def test_logits_beyond_float32s_integers(backend: str) -> None:
    x, y = torch.tensor([[1e5]]), torch.tensor([[1e5], [1e5]])
    row_lse = functional.softmax_similarity(x, y, target=torch.tensor([-1])).row_lse
    torch.testing.assert_close(row_lse, torch.tensor([1e10]).double())


def test_label_positives_keep_the_digits_of_the_sigmoid_loss(backend: str) -> None:
    x, label = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    for scale in (10.0, 20.0):
        sums = functional.sigmoid_similarity(x, x.clone(), scale, row_label=label, col_label=label)
        expected = F.softplus(torch.tensor(-scale).double())
        torch.testing.assert_close(sums.total - sums.positive, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_torchs_default_dtype_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    x = F.normalize(torch.randn(50, 8), dim=1).requires_grad_()
    y, scale = F.normalize(torch.randn(50, 8), dim=1), torch.tensor(1e3, dtype=torch.float64)

    def gradients() -> list[torch.Tensor]:
        s = scale.clone().requires_grad_()
        sums = functional.sigmoid_similarity(x, y, s, -5.0)
        loss = functional.clip_loss(x, y, s) + 1e4 * (sums.total - sums.positive)
        return list(torch.autograd.grad(loss, (x, s)))

    expected = gradients()
    torch.set_default_dtype(dtype)
    try:
        actual = gradients()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(actual, expected)


def test_precision_is_that_of_the_forward(compiled: str) -> None:
    x = F.normalize(torch.randn(400, 32), dim=1).requires_grad_()
    y = F.normalize(torch.randn(400, 32), dim=1)
    torch.set_float32_matmul_precision("medium")
    try:
        with mmcore.workspace(2**30):
            loss = functional.clip_loss(x, y, 100.0)
        (inside,) = torch.autograd.grad(loss, x, retain_graph=True)
    finally:
        torch.set_float32_matmul_precision("highest")
    (outside,) = torch.autograd.grad(loss, x)
    assert torch.equal(inside, outside)


def test_targets_out_of_range_where_y_is_x(on_host: str) -> None:
    target, group = torch.tensor([0, 1, 9, 3]), torch.arange(4)
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"target must be in \[-1, 4\), got 9"):
        functional.softmax_similarity(x, x, target=target, row_group=group)


def test_buffers_wait_for_every_matrix_of_an_objective() -> None:
    """As a batch of keys and a queue ask for them: the small one first, which leaves the large."""
    with mmcore.workspace(4 * 1000):
        held = [buffer_pool.take(size) for size in (100, 600)]
        places = [part.data_ptr() for part in held]
        del held
        assert waiting() == [600, 100]
        held = [buffer_pool.take(size) for size in (90, 590, 400)]
        assert [part.data_ptr() for part in held[:2]] == places
        del held
        assert waiting() == [600, 400]  # no room for 100 numbers more
    with mmcore.workspace(4 * 500):
        assert waiting() == [400]
    with mmcore.workspace(0):
        assert waiting() == []


def test_two_threads_never_share_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a buffer that looks as if it waited, because its tensor is made too late."""
    others = []

    class Lock:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            if not others:  # another thread comes in at the very moment the lock is free
                others.append(torch.empty(0))
                others.append(buffer_pool.take(100))

    with mmcore.workspace(4 * 1000):
        monkeypatch.setattr(buffer_pool, "_lock", Lock())
        mine = buffer_pool.take(100)
        assert mine.data_ptr() != others[1].data_ptr()


def test_a_buffer_that_is_never_asked_for_is_let_go() -> None:
    with mmcore.workspace(4 * 1000):
        buffer_pool.take(900)
        for _ in range(buffer_pool.PATIENCE):
            assert waiting()[0] == 900
            buffer_pool.take(200)
        assert waiting() == [200]


def test_what_was_kept_serves_the_next_forward_until_it_is_let_go(compiled: str) -> None:
    x, y = (F.normalize(torch.randn(300, 8), dim=1).requires_grad_() for _ in range(2))

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(functional.clip_loss(x, y, 30.0), x)[0]

    with mmcore.workspace(2**24):
        first, second = gradient(), gradient()
        assert len(waiting()) == 1
        one, other = (functional.clip_loss(a, y, 30.0) for a in (x, x.detach().neg()))
        torch.autograd.grad(other, y)
        (third,) = torch.autograd.grad(one, x)
        alive = functional.clip_loss(x, y, 30.0)
    with mmcore.workspace(0):
        assert not waiting()
        lean = gradient()
        torch.autograd.grad(alive, x)
        assert not waiting()  # a graph that outlives its workspace takes it along
    assert torch.equal(first, lean)
    assert torch.equal(second, lean)
    assert torch.equal(third, lean)
