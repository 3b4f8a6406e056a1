"""What is Triton's own: when it serves, targets on the device, chunks of G."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from machines import IS_GPU
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import mmcore
from mmcore import functional
from mmcore.backends import triton as backend

pytest.importorskip("triton")

project_backward = import_module("mmcore.backends.triton.project.backward")
interpreted = pytest.mark.skipif(IS_GPU, reason="of the interpreter")


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


def unit_rows(rows: int, width: int = 16) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


@interpreted
def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(
        RuntimeError, match=r"'triton' cannot serve this call: .* only with TRITON_INT"
    ):
        functional.l2_normalize(torch.ones(2, 2))


def test_float64_is_refused() -> None:
    with pytest.raises(RuntimeError, match="take float32, bfloat16 and float16, got float64"):
        functional.l2_normalize(torch.ones(2, 2).double())


@interpreted
def test_auto_never_takes_the_interpreter() -> None:
    with mmcore.backend("auto"):
        assert mmcore.backends.choose("auto", torch.ones(2, 2)) == "cpu"
    assert backend.obstacle(torch.ones(2, 2)) is None


@interpreted
def test_the_choice_for_a_gpu_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Dynamo of every version: what one of them cannot trace, this one is kept from tracing."""
    monkeypatch.setattr(backend, "find_spec", torch.compiler.disable(backend.find_spec))
    capability = torch.compiler.disable(lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)

    def choice(x: Tensor) -> tuple[Tensor, str]:
        return x + 1, mmcore.backends.choose("auto", x)

    with FakeTensorMode():
        x = torch.empty(6, 8, device="cuda")
        assert torch.compile(choice, fullgraph=True, backend="eager")(x)[1] == "triton"


@pytest.mark.parametrize("outside", [-2, 9, 2**40])
@pytest.mark.parametrize("denominator", ["all", "negatives", "positives"])
def test_a_target_outside_the_matrix_spoils_its_row_alone(outside: int, denominator: str) -> None:
    x, y = unit_rows(6), unit_rows(9)
    target = torch.tensor([0, 1, outside, 3, -1, 8])
    s = functional.softmax_similarity(x, y, target=target, denominator=denominator)
    kept = functional.softmax_similarity(
        x, y, target=target.where(target != outside, -1), denominator=denominator
    )
    others = torch.arange(6) != 2
    assert s.row_lse[2].isnan()
    assert s.row_pos[2].isnan()
    assert torch.equal(s.row_lse[others], kept.row_lse[others])
    assert torch.equal(s.row_pos[others], kept.row_pos[others])
    assert torch.equal(s.col_pos, kept.col_pos)


@pytest.mark.parametrize("outside", [-2, 9])
def test_a_target_outside_the_matrix_spoils_a_sigmoid_sum(outside: int) -> None:
    target = torch.tensor([0, outside])
    assert functional.sigmoid_similarity(unit_rows(2), unit_rows(9), target=target).total.isnan()


def gradients(size: int, *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    with mmcore.workspace(size):
        sums = functional.sigmoid_similarity(leaves[0], leaves[1], 10.0, -10.0)
        loss = functional.clip_loss(*leaves) + sums.total - sums.positive
        return list(torch.autograd.grad(loss, leaves))


def test_a_workspace_of_one_block_and_of_all_agree() -> None:
    x, y, scale = unit_rows(300), unit_rows(300), torch.tensor(30.0)
    for lean, whole in zip(gradients(0, x, y, scale), gradients(2**30, x, y, scale), strict=True):
        torch.testing.assert_close(lean, whole, rtol=1e-5, atol=1e-6)


def test_same_bits_twice() -> None:
    x, y, scale = unit_rows(150).bfloat16(), unit_rows(150).bfloat16(), torch.tensor(30.0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(gradients(0, x, y, scale), gradients(0, x, y, scale), strict=True)
    )


def test_upstream_gradients_that_do_not_cancel() -> None:
    """total and positive weighed apart: what was kept for a = −c is mended by the positives."""
    x, y, target = unit_rows(40), unit_rows(50), torch.randint(-1, 50, (40,))

    def run(name: str) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in (x, y, torch.tensor(9.0))]
        with mmcore.backend(name):
            sums = functional.sigmoid_similarity(*leaves, -3.0, target=target)
        return list(torch.autograd.grad(2 * sums.total + 0.5 * sums.positive, leaves))

    for ours, reference in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2]])
def test_wanted_gradients_do_not_depend_on_each_other(wanted: list[int]) -> None:
    def run(of: list[int]) -> list[Tensor | None]:
        leaves = [t.detach().requires_grad_(i in of) for i, t in enumerate(inputs)]
        functional.softmax_similarity(*leaves, columns=False).row_lse.sum().backward()
        return [leaf.grad for leaf in leaves]

    inputs = [unit_rows(30), unit_rows(50), torch.tensor(9.0)]
    for i, (full, part) in enumerate(zip(run([0, 1, 2]), run(wanted), strict=True)):
        assert full is not None
        assert part is None if i not in wanted else torch.equal(full, part)


def test_a_row_without_upstream_gradient_takes_no_part() -> None:
    """Not even where its statistics are NaN: in tiles of one exponential a side, too."""
    for scale in (20.0, 300.0):
        x, y = unit_rows(8).requires_grad_(), unit_rows(9).requires_grad_()
        target = torch.arange(8)
        target[5] = -9
        s = functional.softmax_similarity(x, y, scale, target=target)
        found = torch.autograd.grad(s.row_lse[:3].sum() + s.row_pos[:3].sum(), (x, y))
        assert all(gradient.isfinite().all() for gradient in found)
        assert torch.equal(found[0][3:], torch.zeros_like(found[0][3:]))


@pytest.mark.parametrize("upstream", [2.0**-6, 1.0, 2.0**12])
def test_float16_keeps_its_digits_whatever_the_upstream_gradient(upstream: float) -> None:
    """Loss scaling, and the mean over many rows: G itself would leave float16."""
    x, y, label = unit_rows(64).half(), unit_rows(64).half(), torch.arange(64) // 2

    def gradient(backend: str) -> Tensor:
        leaf = x.detach().requires_grad_()
        sums = functional.sigmoid_similarity(
            leaf, y, 5.0, -18.0, row_label=label, col_label=label + 100, backend=backend
        )
        (found,) = torch.autograd.grad(sums.total * upstream, leaf)
        return found.double() / upstream

    expected = gradient("reference")
    error = (gradient("triton") - expected).norm() / expected.norm()
    assert error < 2e-3


def test_torchs_newer_precision_switches_do_not_stop_16_bit_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> str:
        raise RuntimeError("mixed the legacy and the new API")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    x, y = unit_rows(20), unit_rows(20)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert functional.clip_loss(x.to(dtype), y.to(dtype), 10.0).isfinite()


@pytest.mark.parametrize("norm", ["layer", None])
def test_sums_of_more_slabs_than_are_added_at_a_time(
    norm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches slabs that a gradient of a parameter lacks, and rows that two slabs count."""
    monkeypatch.setattr(project_backward, "SLAB_ROWS", 32)
    rows, columns, width = 1100, 70, 66
    x, weight, bias = (torch.randn(*size) for size in ((rows, columns), (width, columns), (width,)))
    vectors = [torch.randn(columns) for _ in range(2)] if norm else [None, None]
    upstream = torch.randn(rows, width)

    def gradients(backend: str, dtype: torch.dtype) -> list[Tensor]:
        given = [each if each is None else each.to(dtype) for each in (x, weight, bias, *vectors)]
        leaves = [each.requires_grad_() for each in given if each is not None]
        first, matrix, vector, *of_norm = given
        assert first is not None
        assert matrix is not None
        y = functional.project(
            first, matrix, vector, norm=norm, norm_weight=of_norm[0], norm_bias=of_norm[1],
            backend=backend,
        )  # fmt: skip
        return list(torch.autograd.grad(y, leaves, upstream.to(dtype)))

    exact = gradients("reference", torch.float64)
    for found, expected in zip(gradients("triton", torch.float32), exact, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found.double() / scale, expected / scale, atol=2e-6, rtol=0)


def test_gradients_of_some_parameters_are_those_of_all() -> None:
    """Catches a launch that mixes the programs of x, of the norm and of the bias up."""
    tensors = {
        "x": torch.randn(300, 70), "weight": torch.randn(66, 70), "bias": torch.randn(66),
        "norm_weight": torch.randn(70), "norm_bias": torch.randn(70),
    }  # fmt: skip
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    upstream = torch.randn(300, 66).bfloat16()

    def gradients(*names: str) -> dict[str, Tensor]:
        leaves = {name: tensor.clone() for name, tensor in tensors.items()}
        wanted = [leaves[name].requires_grad_() for name in names]
        y = functional.project(norm="layer", **leaves)  # type: ignore[arg-type]
        return dict(zip(names, torch.autograd.grad(y, wanted, upstream), strict=True))

    every = gradients(*tensors)
    for names in (["x"], ["bias"], ["norm_bias"], ["weight", "bias"], ["x", "norm_weight"]):
        for name, gradient in gradients(*names).items():
            assert torch.equal(gradient, every[name]), name
