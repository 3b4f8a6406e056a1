"""What the compiled module takes and refuses: arrays by DLPack, which it borrows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from machines import IS_GPU
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

import mmcore
from mmcore import functional
from mmcore.backends import cpu
from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.reference.project import ProjectionInputs

pytestmark = pytest.mark.skipif(IS_GPU or cpu._C is None, reason="needs the compiled module")

_C: Any = cpu._C
Normalize = dict[str, Any]


def arguments(**changed: Any) -> Normalize:
    """Of l2_normalize_forward."""
    good = {
        "x": np.ones((4, 8), np.float32), "eps": 1e-12, "y": np.ones((4, 8), np.float32),
        "inverse_norm": np.ones(4, np.float32), "threads": 1,
    }  # fmt: skip
    return good | changed


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def consumed(tensor: Tensor) -> Any:
    capsule = to_dlpack(tensor)
    from_dlpack(capsule)
    return capsule


def unaligned() -> Any:
    return np.zeros(4 * 4 + 1, np.uint8)[1:].view(np.float32)


ONES = torch.ones(4, 8)
WRONG = {
    "no array": ({"x": [1.0]}, TypeError, r"x must be a DLPack capsule .* got list"),
    "None": ({"x": None}, TypeError, r"x must be a DLPack capsule .* got None"),
    "consumed": ({"x": consumed(ONES)}, TypeError, "x must be a DLPack capsule that is not"),
    "dtype": ({"x": ONES.double()}, TypeError, "x must be of float32, .* got float64"),
    "dtype of integers": ({"x": ONES.int()}, TypeError, "x must be of float32, .* got int32"),
    "dtype of booleans": ({"x": ONES.bool()}, TypeError, "x must be of float32, .* got bool"),
    "dtype of complex": ({"x": ONES + 0j}, TypeError, "x must be of float32, .* got complex64"),
    "bits of bfloat16": (
        {"x": ONES.bfloat16().view(torch.uint16)}, TypeError, "x must be of float32, .* got uint16"
    ),
    "other dtype": ({"y": ONES.half()}, TypeError, "y must have the dtype of x"),
    "dtype of a vector": (
        {"inverse_norm": torch.ones(4).double()},
        TypeError,
        "inverse_norm must be of float32, got float64",
    ),
    "vector": ({"x": torch.ones(4)}, ValueError, "x must have 2 dimensions, got 1"),
    "scalar": ({"x": torch.ones(())}, ValueError, "x must have 2 dimensions, got 0"),
    "rows": ({"y": torch.ones(3, 8)}, ValueError, r"y must have shape \(4, 8\), got \(3, 8\)"),
    "columns": ({"y": torch.ones(4, 9)}, ValueError, r"y must have shape \(4, 8\), got \(4, 9\)"),
    "size": (
        {"inverse_norm": torch.ones(3)},
        ValueError,
        r"inverse_norm must have shape \(4,\), got \(3,\)",
    ),
    "dimensions": (
        {"inverse_norm": torch.ones(4, 1)},
        ValueError,
        r"inverse_norm must have shape \(4,\), got \(4, 1\)",
    ),
    "columns apart": ({"x": torch.ones(8, 4).T}, ValueError, "x must have unit column stride"),
    "gaps": (
        {"inverse_norm": torch.ones(8)[::2]}, ValueError, "inverse_norm must be contiguous"
    ),
    "unaligned": ({"inverse_norm": unaligned()}, ValueError, "inverse_norm must be aligned"),
    "read only": (
        {"y": read_only(np.ones((4, 8), np.float32))}, ValueError, "y must be writeable"
    ),
    "threads": ({"threads": 0}, ValueError, "threads must be at least 1"),
    "another device": ({"x": torch.ones(4, 8, device="meta")}, BufferError, "meta"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_never_reach_a_kernel(case: str) -> None:
    """Catches an array that is believed: a kernel would read or write beyond it."""
    changed, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        _C.l2_normalize_forward(**arguments(**changed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_capsule", [True, False])
def test_capsules_tensors_and_strides(dtype: torch.dtype, is_capsule: bool) -> None:
    """Catches a wrong row stride or offset, and bfloat16 that is taken for something else."""
    wrap = to_dlpack if is_capsule else Tensor.detach
    wide = torch.randn(9, 20).to(dtype)
    x, out, norm = wide[1::2, 3:11], torch.zeros(4, 12, dtype=dtype), torch.zeros(4)
    _C.l2_normalize_forward(wrap(x), 1e-12, wrap(out[:, 2:10]), wrap(norm), 1)
    expected = torch.nn.functional.normalize(x.float(), dim=1).to(dtype)
    torch.testing.assert_close(out[:, 2:10], expected, rtol=0, atol=1e-2)
    assert (out[:, :2] == 0).all()
    assert (out[:, 10:] == 0).all()


def test_read_only_arrays_are_read() -> None:
    """Catches an input that is refused as if it were written."""
    y = np.zeros((4, 8), np.float32)
    _C.l2_normalize_forward(**arguments(x=read_only(np.ones((4, 8), np.float32)), y=y))
    np.testing.assert_allclose(y, 8**-0.5, rtol=1e-6)


def test_nothing_at_all() -> None:
    """Catches an array without memory that is refused though it is empty."""
    for shape in ((0, 8), (4, 0), (0, 0)):
        x, y = torch.ones(shape), torch.ones(shape)
        _C.l2_normalize_forward(to_dlpack(x), 1e-12, to_dlpack(y), torch.ones(shape[0]), 1)


def test_capsules_are_borrowed() -> None:
    """Catches a binding that consumes a capsule: its memory would be freed twice, or never."""
    x, y, norm = (to_dlpack(t) for t in (torch.ones(4, 8), torch.zeros(4, 8), torch.zeros(4)))
    for _ in range(2):
        _C.l2_normalize_forward(x, 1e-12, y, norm, 1)
    torch.testing.assert_close(from_dlpack(y), torch.full((4, 8), 8**-0.5))


def similarity(x: Any, y: Any, target: Any, precision: str = "highest") -> Any:
    nothing = [None] * 4
    return _C.SimilarityInputs(
        x, y, 1.0, 0.0, None, None, target, *nothing, "all", True, precision, "sum"
    )


def row_lse(described: Any) -> Tensor:
    statistics = [torch.zeros(4, dtype=torch.float64) for _ in range(4)]
    _C.softmax_similarity_forward(described, *statistics, torch.zeros(0), 1)
    return statistics[0]


def test_inputs_keep_their_arrays() -> None:
    """Catches inputs that outlive the memory that they point to."""
    expected = torch.full((4,), 8 + np.log(4), dtype=torch.float64)
    x, y = to_dlpack(torch.ones(4, 8)), np.ones((4, 8), np.float32)
    described = similarity(x, y, torch.arange(4))
    del x, y
    others = [torch.full((4, 8), 3.0) for _ in range(50)]  # would take the memory
    torch.testing.assert_close(row_lse(described), expected)
    assert len(others) == 50


def test_inputs_whose_capsule_is_gone() -> None:
    """Catches inputs of which another library has taken, and freed, an array."""
    capsule = to_dlpack(torch.ones(4, 8))
    described = similarity(capsule, None, torch.arange(4))
    from_dlpack(capsule)
    with pytest.raises(ValueError, match="must not be consumed"):
        row_lse(described)


@pytest.mark.parametrize("target", [[0, 1, 2, 4], [0, 1, 2, -2]])
def test_targets_beyond_the_columns(target: list[int]) -> None:
    """Catches a target that a kernel would take for a row of y."""
    with pytest.raises(ValueError, match=r"target must be in \[-1, 4\)"):
        similarity(torch.ones(4, 8), torch.ones(4, 8), torch.tensor(target))


@pytest.mark.parametrize("precision", ["", "low", "High", "bfloat16"])
def test_precisions_that_torch_does_not_have(precision: str) -> None:
    """Catches a precision that is taken for another one."""
    message = f"precision must be one of 'highest', 'high', 'medium', got '{precision}'"
    with pytest.raises(ValueError, match=message):
        similarity(torch.ones(4, 8), torch.ones(4, 8), torch.arange(4), precision)


@pytest.mark.parametrize("inputs", [SimilarityInputs, ProjectionInputs])
def test_one_order_of_fields(inputs: Any) -> None:
    """Catches a field that Python and C++ have in different places."""
    signature = getattr(_C, inputs.__name__).__init__.__doc__.splitlines()[0]
    fields = re.findall(r"(\w+): ", signature)
    assert fields == ["self", *inputs._fields]


def test_storages_stay_resizable() -> None:
    """Catches a tensor of the caller's that is marked as shared: FSDP resizes storages."""
    x, y = (torch.randn(20, 8, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(6, 8, requires_grad=True), torch.randn(6, requires_grad=True)
    projected = [functional.project(each, weight, bias, normalize=True) for each in (x, y)]
    functional.clip_loss(*projected, 10.0).backward()
    gradients = [each.grad for each in (x, y, weight, bias)]
    for tensor in (x, y, weight, bias, *projected, *gradients):
        assert tensor is not None
        assert tensor.untyped_storage().resizable()


def test_what_the_capsule_would_not_say() -> None:
    """Catches a tensor whose memory holds the negative of its values."""
    x = torch._neg_view(torch.randn(5, 8))
    assert x.is_neg()
    assert x.is_contiguous()
    with mmcore.backend("cpu"):
        torch.testing.assert_close(functional.l2_normalize(x), -functional.l2_normalize(-x.clone()))
        expected = functional.clip_loss(x.resolve_neg(), x.resolve_neg(), 3.0)
        torch.testing.assert_close(functional.clip_loss(x, x, 3.0), expected)
