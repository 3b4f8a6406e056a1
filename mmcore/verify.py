"""``python -m mmcore verify``: whether this machine computes what float64 computes, in a minute.

Every op family runs forward and backward on a few random inputs, in every dtype, and its values and
gradients are compared with the plain formula in float64. The `share` of a check is the largest
error divided by the budget of the tests: twice the error of eager PyTorch in the same dtype, and
one rounding of the largest value. The tests need many draws for that, and a few may lie above it by
chance. What a broken driver or compiler does lies far above: a check fails beyond TOLERANCE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

import mmcore
from mmcore import functional, retrieval
from mmcore.backends import cpu
from mmcore.bench.catalogue import CASES, Case, Draw, filled
from mmcore.ops import FAMILIES

TOLERANCE = 4.0
SIZES = ((17, 24), (300, 72))  # rows and columns of features: within a tile, and beyond several
DRAWS = 3
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Calls of objectives by the op family that they need, by their names in the catalogue.
OBJECTIVES = {
    "softmax_similarity": ("clip_loss", "sup_con_loss, four of each class"),
    "sigmoid_similarity": ("siglip_loss", "siglip_loss, labels"),
    "siglip": ("siglip_loss",),
    "clip": ("clip_loss",),
    "hardest_negatives": ("vse_loss",),
    "prefix_similarity": ("matryoshka_loss, four prefixes",),
    "product_similarity": ("symile_loss, 3 modalities",),
    "distillation": ("distill_clip_loss",),
    "gram": ("barlow_twins_loss, weight 0.005",),
    "volume": ("gram_loss, 3 modalities",),
}
Function = Callable[..., Any]


class Check(NamedTuple):
    """One op family on one backend, in one dtype."""

    backend: str  # with the instruction set of a CPU
    family: str
    dtype: str
    share: float  # inf where there was an error
    passed: bool
    problem: str  # the error; "" where there was none

    def as_json(self) -> dict[str, object]:
        """By name; the share is None where it is no number."""
        share = self.share if math.isfinite(self.share) else None
        return self._replace(share=share)._asdict()  # type: ignore[arg-type]


class Subject(NamedTuple):
    """A call of mmcore and its formula: functions of the tensors that have gradients."""

    function: Function
    plain: Function  # of tensors in float64, or in their own dtype
    tensors: Sequence[Tensor]


def _projection(x: Tensor, weight: Tensor) -> Tensor:
    return functional.project(x, weight, norm="layer")


def _plain_projection(x: Tensor, weight: Tensor) -> Tensor:
    return F.normalize(F.linear(F.layer_norm(x, x.shape[1:]), weight), dim=1)


def _objective(case: Case, draw: Draw) -> Subject:
    arguments = case.arguments(draw)
    leaves = case.leaves(arguments)

    def given(tensors: Sequence[Tensor]) -> Mapping[str, Any]:
        dtype = tensors[0].dtype

        def like_them(value: Any) -> Any:
            is_wide = isinstance(value, Tensor) and dtype == torch.float64
            return value.double() if is_wide and value.is_floating_point() else value

        return filled(tree_map(like_them, arguments), dict(zip(leaves, tensors, strict=True)))

    return Subject(
        lambda *z: case.function(draw.width)(**given(z)),
        lambda *z: case.plain(draw.width)(**given(z)),
        list(leaves.values()),
    )


def subjects(family: str, draw: Draw) -> list[Subject]:
    """What is called to check an op family."""
    x = draw.normal(draw.rows, draw.width)
    if family == "l2_normalize":
        return [Subject(functional.l2_normalize, lambda x: F.normalize(x, dim=1), [x])]
    if family == "project":
        weight = draw.normal(draw.width + 3, draw.width)
        return [Subject(_projection, _plain_projection, [x, weight])]
    return [_objective(CASES[name], draw) for name in OBJECTIVES[family]]


def _values_and_gradients(function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in tensors]
    found = function(*leaves)
    values = [found] if isinstance(found, Tensor) else list(found)
    # Of a sum with weights: rows of unit length have no gradient of their sum of squares.
    weights = [torch.linspace(-1, 2, each.numel(), device=each.device) for each in values]
    terms = [(v.double().flatten() * w).sum() for v, w in zip(values, weights, strict=True)]
    gradients = torch.autograd.grad(torch.stack(terms).sum(), leaves)
    return [each.detach().double() for each in (*values, *gradients)]


def _search_share(dtype: torch.dtype, rows: int, width: int) -> float:
    """0 where items and scores are those of the reference, bit for bit; else no share is enough."""
    draw = Draw(rows, width, dtype=dtype)
    queries, gallery = draw.normal(rows, width), draw.normal(3 * rows, width)
    found = retrieval.topk(queries, gallery, 5, score_dtype="float64")
    with mmcore.backend("reference"):
        exact = retrieval.topk(queries, gallery, 5, score_dtype="float64")
    return 0.0 if all(map(torch.equal, found, exact)) else torch.inf


def _share(family: str, dtype: torch.dtype, rows: int, width: int) -> float:
    """The largest share of the budget, of every value and gradient over the draws."""
    if family == "topk":
        return _search_share(dtype, rows, width)
    largest: dict[tuple[int, int], list[float]] = {}
    for seed in range(DRAWS):
        draw = Draw(rows, width, dtype=dtype, seed=seed)
        for number, subject in enumerate(subjects(family, draw)):
            exact = _values_and_gradients(subject.plain, [z.double() for z in subject.tensors])
            with mmcore.backend("reference"):
                eager = _values_and_gradients(subject.plain, subject.tensors)
            found = _values_and_gradients(subject.function, subject.tensors)
            for i, (one, other, truth) in enumerate(zip(found, eager, exact, strict=True)):
                sizes = [(one - truth).abs(), (other - truth).abs(), truth.abs()]
                numbers = [float(each.nan_to_num(torch.inf).max()) for each in sizes]
                before = largest.get((number, i), [0.0] * 3)
                largest[number, i] = list(map(max, before, numbers))
    budgets = (2 * other + torch.finfo(dtype).eps * size for _, other, size in largest.values())
    shares = (
        error / budget if budget else (torch.inf if error else 0.0)
        for (error, _, _), budget in zip(largest.values(), budgets, strict=True)
    )
    return max(shares)


def _check(backend: str, family: str, dtype: torch.dtype) -> Check:
    name = str(dtype).removeprefix("torch.")
    try:
        share = max(_share(family, dtype, rows, width) for rows, width in SIZES)
    except Exception as error:  # whatever it is, it is what the user wants to know
        problem = f"{type(error).__name__}: {error}"
        return Check(backend, family, name, torch.inf, False, problem)
    return Check(backend, family, name, share, share <= TOLERANCE, "")


@contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    before = cpu._C.instruction_set()
    cpu._C.select_instruction_set(name)
    try:
        yield
    finally:
        cpu._C.select_instruction_set(before)


def checks(device: torch.device) -> Iterator[Check]:
    """Every family in every dtype: on Triton for a GPU, at every instruction set for a CPU."""
    every = [(family, dtype) for family in FAMILIES for dtype in DTYPES]
    if device.type != "cpu":
        with device, mmcore.backend("triton"):
            yield from (_check("triton", *each) for each in every)
        return
    if cpu.missing_module is not None:
        with mmcore.backend("reference"):
            yield from (_check("reference", *each) for each in every)
        return
    for name in cpu.instruction_sets():
        with _instruction_set(name), mmcore.backend("cpu"):
            yield from (_check(f"cpu {name}", *each) for each in every)


def table(found: Iterable[Check]) -> Iterator[str]:
    """A line for each backend and family: the shares of the dtypes, and what failed."""
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    yield " ".join(["backend and op family".ljust(34), *(name.rjust(8) for name in names)])
    for (backend, family), each in groupby(found, lambda check: check[:2]):
        cells, problems = [], []
        for check in each:
            cells.append(f"{check.share:.2f}" if check.passed else "FAILED")
            if not check.passed:
                problems.append(check.problem or f"{check.dtype}: {check.share:.3g} of its budget")
        yield " ".join([f"{backend} {family}".ljust(34), *(cell.rjust(8) for cell in cells)])
        yield from (f"    {problem}" for problem in problems)


def summary(found: Sequence[Check]) -> str:
    """Which backends failed, and what to do; or that all passed."""
    failed = sorted({check.backend for check in found if not check.passed})
    if not failed:
        return f"all {len(found)} checks passed"
    return (
        f"{sum(not check.passed for check in found)} of {len(found)} checks failed, on "
        f"{', '.join(failed)}: do not use it (MMCORE_CPU_ISA and MMCORE_BACKEND choose another)"
    )
