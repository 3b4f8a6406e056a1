"""NumPy's scalars as numbers; targets and labels of any integer dtype; scales of integers."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from machines import DEVICE
from objective_cases import Call, every_case, results
from torch import Tensor
from torch.utils._pytree import tree_map

import mmcore
from mmcore import functional, metrics
from mmcore.bench.catalogue import CASES, Case
from mmcore.ops import softmax_similarity as softmax_op

WIDTH = 8
NUMPY = {"float32": np.float32, "float64": np.float64, "an array": np.array}
INTEGERS = [torch.int32, torch.int16, torch.int8, torch.uint8]


def as_numpy(value: Any) -> Any:
    """Every number as NumPy's: float32 for floats, which are then a little different, int64."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return np.int64(value) if isinstance(value, int) else np.float32(value)


def as_python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def with_number_for_scale(call: Call) -> dict[str, Any]:
    return call.arguments | ({"scale": 5.0} if ("scale",) in call.leaves else {})


@every_case(CASES.values())
def test_options_of_numpy_are_numbers(case: Case) -> None:
    """Catches an option that takes Python's numbers alone, or counts another value."""
    call = Call.of(case, width=WIDTH)
    given = tree_map(as_numpy, with_number_for_scale(call))
    options = tree_map(as_numpy, case.options(WIDTH))
    torch.manual_seed(1)
    found = results(case.row.function(**given, **options))
    torch.manual_seed(1)
    expected = results(
        case.row.function(**tree_map(as_python, given), **tree_map(as_python, options))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


X, Y = torch.randn(6, 8), torch.randn(6, 8)
WORDS, TARGET = torch.randn(20, 8), torch.arange(6)
# Options that the catalogue leaves at their defaults; each takes the number 1 or 0.5.
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "bias of clip_loss": lambda v: functional.clip_loss(X, Y, 1.0, v),
    "bias of siglip_loss": lambda v: functional.siglip_loss(X, Y, 1.0, v),
    "eps of l2_normalize": lambda v: functional.l2_normalize(X, eps=v),
    "eps of project": lambda v: functional.project(X, WORDS, norm="layer", norm_eps=v, eps=v),
    "eps of vicreg_loss": lambda v: functional.vicreg_loss(X, Y, eps=v),
    "weight of vicreg_loss": lambda v: functional.vicreg_loss(X, Y, variance_weight=v),
    "weight of cyclip_loss": lambda v: functional.cyclip_loss(X, Y, in_modal_weight=v),
    "regularization": lambda v: functional.cca_loss(X, Y, regularization=v),
    "power": lambda v: functional.alignment_loss(X, Y, power=v),
    "weights of multimodal_loss": lambda v: functional.multimodal_loss(
        {"a": X, "b": Y}, 1.0, weights={("a", "b"): v}
    ),
    "ridge": lambda v: metrics.linear_separability(X, Y, ridge=v),
    "eps of L2Normalize": lambda v: mmcore.nn.L2Normalize(eps=v)(X),
    "scale of a mapping": lambda v: functional.multimodal_loss({"a": X, "b": Y}, {("a", "b"): v}),
}


@pytest.mark.parametrize("kind", NUMPY)
@pytest.mark.parametrize("name", OPTIONS)
def test_other_options_of_numpy(name: str, kind: str) -> None:
    """Catches an option that takes Python's numbers alone."""
    torch.testing.assert_close(OPTIONS[name](NUMPY[kind](0.5)), OPTIONS[name](0.5), rtol=0, atol=0)


def test_integers_of_numpy() -> None:
    """Catches a size or an index that takes Python's integers alone."""
    head = mmcore.nn.ProjectionHead(np.int64(8), np.int32(4))
    assert head(X).shape == (6, 4)
    assert type(head.in_features) is int
    loss = functional.linear_cross_entropy_loss
    found = loss(X, WORDS, TARGET, ignore_index=np.int64(3))
    torch.testing.assert_close(found, loss(X, WORDS, TARGET, ignore_index=3), rtol=0, atol=0)
    with mmcore.workspace(np.int64(0)):
        assert functional.clip_loss(X, Y, 1.0).isfinite()
    assert torch.equal(functional.gram(X, centred=np.True_), functional.gram(X, centred=True))


def test_arrays_of_numbers() -> None:
    """Catches an option of several numbers that takes lists and tuples alone."""
    found = functional.matryoshka_loss(X, Y, 5.0, np.array([2, 8]), weights=np.array([1.0, 0.5]))
    expected = functional.matryoshka_loss(X, Y, 5.0, (2, 8), weights=(1.0, 0.5))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found = functional.mmd_loss(X, Y, bandwidths=np.array([1.0, 2.0]))
    torch.testing.assert_close(found, functional.mmd_loss(X, Y, bandwidths=(1.0, 2.0)))
    with pytest.raises(ValueError, match="dims must have 1 dimension, got 2"):
        functional.matryoshka_loss(X, Y, 5.0, np.array([[2, 8]]))


@pytest.mark.parametrize("value", [np.True_, np.array([1.0]), np.str_("1"), True])
def test_what_is_no_number_is_refused(value: Any) -> None:
    """Catches a flag, an array or a text that is taken for a number."""
    for call in (OPTIONS["power"], lambda v: functional.clip_loss(X, Y, v)):
        with pytest.raises(TypeError, match="must be a number"):
            call(value)


@pytest.mark.parametrize("value", [np.float32(-1), np.int64(-1)])
def test_numpy_scales_below_zero_are_refused(value: Any) -> None:
    """Catches a check of the value that looks at Python's numbers alone."""
    with pytest.raises(ValueError, match=r"must be at least 0, got -1"):
        functional.clip_loss(X, Y, value)


INDEXED = [
    case
    for case in CASES.values()
    if any(
        isinstance(each, Tensor) and each.dtype == torch.int64
        for each in Call.of(case, 6, WIDTH).arguments.values()
    )
    or "ids" in Call.of(case, 6, WIDTH).arguments
]


@pytest.mark.parametrize("dtype", INTEGERS)
@every_case(INDEXED)
def test_indices_of_any_integer_dtype(case: Case, dtype: torch.dtype) -> None:
    """Catches labels, groups, targets or ids that are refused for their dtype, or counted wrong."""
    call = Call.of(case, 12, WIDTH, scale=5.0)
    expected = call.function(*call.leaves.values())

    def shorter(each: Any) -> Any:
        is_index = isinstance(each, Tensor) and each.dtype == torch.int64
        return each.to(dtype) if is_index and (dtype.is_signed or bool((each >= 0).all())) else each

    call.arguments = tree_map(shorter, call.arguments)
    torch.testing.assert_close(call.function(*call.leaves.values()), expected, rtol=0, atol=0)


def test_one_vector_of_short_integers_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a conversion that makes two vectors of one: where y is x and both sides have the same
    labels and biases, half of the matrix is enough.
    """
    found = []
    call = softmax_op.call
    monkeypatch.setattr(softmax_op, "call", lambda it, **rest: found.append(it) or call(it, **rest))
    label, bias = torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32), torch.rand(6).half()
    with torch.autocast(DEVICE, torch.bfloat16):
        functional.softmax_similarity(
            X, X, row_label=label, col_label=label, row_bias=bias, col_bias=bias
        )
    assert found[0].y is None


SCALED = [
    row.cases()[0]
    for row in {case.row.name: case.row for case in CASES.values()}.values()
    if "scale" in signature(row.function).parameters
]


@every_case(SCALED)
def test_scales_of_integers(case: Case) -> None:
    """Catches a scale that is refused because it is a whole number, or an option beside it."""
    call = Call.of(case, 6, WIDTH)

    def found(scale: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return results(case.function(WIDTH)(**call.arguments | {"scale": scale}))

    expected = found(5.0)
    for scale in (torch.tensor(5), torch.tensor([5], dtype=torch.int32), np.int64(5), 5):
        torch.testing.assert_close(found(scale), expected, rtol=0, atol=0)


def test_an_integer_tensor_of_features_is_refused_with_the_cure() -> None:
    """Catches an error that does not say what to do."""
    with pytest.raises(TypeError, match=r"y must be .* got int64: convert it, such as by y\.float"):
        functional.clip_loss(X, Y.long(), 1.0)


@pytest.mark.parametrize("scale", [np.float32(5), np.float64(5), np.int64(5), 5, 5.0])
def test_numpy_scales_compile(scale: Any) -> None:
    """Catches a check that torch.compile cannot trace: a NumPy scalar is a tensor there."""
    torch.compiler.reset()
    compiled = torch.compile(functional.clip_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X, Y, scale), functional.clip_loss(X, Y, 5.0))
