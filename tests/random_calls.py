"""Random calls and the budget they are held to.

Hypothesis draws a case, and the case's seed draws its numbers. Every value and gradient is held to
2·(error of the reference in the same dtype) + eps·max|exact| + an allowance, see LOGIT_ROUNDINGS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from budget import missed
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import mmcore

EPS = torch.finfo(torch.float32).eps
# A result that is one number, or a few, may be exact by luck in eager PyTorch, and where terms
# cancel it may be 0. So a few float32 roundings are allowed on top, relative to the sum of the
# absolute values of the terms: of every logit, and of sums, where hundreds of equal terms, such as
# equal rows give, all round the same way. A term that is missing or wrong is larger by far.
LOGIT_ROUNDINGS = 8
SUM_ROUNDINGS = 32
DTYPES = {
    "float32": torch.float32,
    "medium": torch.float32,  # multiplied as bfloat16, which its numbers are
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Around multiples of the tile, 12 × 32, and of the block, 192; of Triton's tile, 128.
LARGE = [84, 97, 191, 192, 193, 200, 289, 384, 385, 420]
SIZES = st.sampled_from([*range(1, 71)] * 2 + LARGE * 5)
SIZES_OF_TRITON = st.sampled_from([*range(1, 71), *[100, 127, 128, 129, 140, 200] * 8])
LAYOUTS = st.sampled_from(["dense", "transposed", "second columns", "expanded", "row slice"])


@dataclass(frozen=True)
class Case:
    rows: int
    columns: int
    width: int
    seed: int
    kind: str
    layouts: tuple[str, str]
    threads: int
    options: dict[str, Any]

    def place(self, values: Tensor, which: int = 0) -> Tensor:
        """`values` in the dtype and in one of the layouts of the case."""
        if self.kind == "medium":
            values = values.bfloat16()
        return laid_out(values.to(DTYPES[self.kind]), self.layouts[which])


def cases(
    count: int, sizes: st.SearchStrategy[int] = SIZES, **options: st.SearchStrategy[Any]
) -> Callable[[Any], Any]:
    """Runs a test on `count` cases, the same ones every time."""
    strategy = st.builds(
        Case,
        rows=sizes,
        columns=sizes,
        width=st.integers(1, 70),
        seed=st.integers(0, 2**31),
        kind=st.sampled_from(["float32", *DTYPES]),
        layouts=st.tuples(LAYOUTS, LAYOUTS),
        threads=st.sampled_from([1] * 8 + [2, 3, 3, 3, 7, 7, 20]),
        options=st.fixed_dictionaries(options),
    )
    repeated = settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: repeated(given(case=strategy)(test))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers in another layout, NaN in between; "expanded" repeats the first row."""
    rows, width = values.shape
    if layout == "dense":
        return values
    if layout == "transposed":
        return values.T.contiguous().T
    if layout == "expanded":
        return values[:1].expand(rows, width)
    memory = values.new_full((3 * rows, 2 * width + 3), torch.nan)
    place = memory[:rows, 1::2] if layout == "second columns" else memory[1::3, 2:]
    return place[:, :width].copy_(values)


class Numbers:
    """Random numbers that follow from the seed of a case."""

    def __init__(self, case: Case) -> None:
        self.generator = torch.Generator().manual_seed(case.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def unit_rows(self, rows: int, width: int) -> Tensor:
        return F.normalize(self.normal(rows, width))

    def integers(self, lowest: int, end: int, count: int) -> Tensor:
        return torch.randint(lowest, end, (count,), generator=self.generator)


@dataclass
class Call:
    """A function at tensors, and upstream gradients by name of the output.

    `wanted` names the tensors that want a gradient; by default all do.
    """

    function: Callable[..., Any]
    tensors: dict[str, Tensor]
    upstream: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    wanted: Sequence[str] = ()

    def run(self, dtype: torch.dtype | None = None, **options: Any) -> dict[str, Tensor]:
        """Outputs and gradients by name."""
        leaves = {
            name: value.detach() if dtype is None else value.detach().to(dtype)
            for name, value in self.tensors.items()
        }
        wanted = {name: leaves[name].requires_grad_() for name in self.wanted or leaves}
        result = self.function(**leaves, **self.options, **options)
        outputs = result._asdict() if isinstance(result, tuple) else {"output": result}
        gradients = torch.autograd.grad(
            [outputs[name] for name in self.upstream],
            list(wanted.values()),
            [value.to(outputs[name].dtype) for name, value in self.upstream.items()],
        )
        named = zip((f"grad_{name}" for name in wanted), gradients, strict=True)
        return {**{name: value.detach() for name, value in outputs.items()}, **dict(named)}

    def run_kernel(self, case: Case, workspace: int = 0, backend: str = "cpu") -> dict[str, Tensor]:
        """The same on a compiled backend, with the threads and the precision of the case."""
        torch.set_num_threads(case.threads)
        torch.set_float32_matmul_precision("medium" if case.kind == "medium" else "highest")
        try:
            with mmcore.workspace(workspace):
                return self.run(backend=backend)
        finally:
            torch.set_num_threads(1)  # for the reference: these problems are small
            torch.set_float32_matmul_precision("highest")


def largest(value: Tensor) -> float:
    return value.abs().max().item() if value.numel() else 0.0


def distance(name: str, value: Tensor, exact: Tensor) -> float:
    """max|value − exact|, where infinities must agree."""
    assert value.shape == exact.shape, f"{name}: shape {value.shape}, not {exact.shape}"
    value, is_finite = value.double(), exact.isfinite()
    assert torch.equal(value[~is_finite], exact[~is_finite]), f"{name}: infinities differ"
    assert value[is_finite].isfinite().all(), f"{name}: not finite"
    return largest(value[is_finite] - exact[is_finite])


def check(call: Call, actual: dict[str, Tensor], allowances: dict[str, float]) -> None:
    """Holds the results to the budget."""
    exact, eager = call.run(torch.float64, backend="reference"), call.run(backend="reference")
    for name, value in exact.items():
        error, of_eager = distance(name, actual[name], value), distance(name, eager[name], value)
        # Statistics are float64, but of float32 logits.
        eps, size = max(EPS, torch.finfo(actual[name].dtype).eps), largest(value[value.isfinite()])
        budget = 2 * of_eager + eps * size + allowances[name]
        assert error <= budget, (
            f"{name}: {missed(error, budget)}: eager's error is {of_eager:.3g}, "
            f"the largest value {size:.3g}, the allowance {allowances[name]:.3g}"
        )


def check_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Both are the same, to the last bit."""
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name}: other bits"
