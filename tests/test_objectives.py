"""Every objective against its plain formula: values and gradients, on every backend; compilation.

The catalogue (mmcore/bench/catalogue/) has the formulas, written from the papers, and the variants.
"""

from __future__ import annotations

import pytest
import torch
from machines import DEVICE
from objective_cases import (
    DRAWS,
    WIDTH,
    Call,
    check_case,
    every_case,
    every_case_and_kind,
    unit_rows,
)
from torch import Tensor

from mmcore import functional
from mmcore.backends.reference import volume
from mmcore.bench.catalogue import CASES, Case, Draw

# Eager rounds a negative that equals the positive as it rounds the positive, and both cancel; here
# the positive is float64. In float32, of one side, this exceeds the budget on Triton.
MISSED = ("clip_loss, weights, rows", "clip_loss, weights, columns")
# How many of its rows match depends on values, which no graph can hold.
NOT_COMPILED = "multimodal_loss, ids"


@pytest.fixture(autouse=True)
def short_tiles(several_slabs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram matrices in several slabs, volumes in several tiles; the last one is short."""
    monkeypatch.setattr(volume, "CPU_TILE", 17)
    monkeypatch.setattr(volume, "GPU_TILE", 17)


def check(case: Case, kind: str, backend: str = "") -> None:
    scales, draws = case.row.scales, DRAWS
    if case.id in MISSED and backend == "triton" and kind == "duplicates":
        scales = scales[:-1]
    if len(scales) == 1:
        draws = 2 * DRAWS if backend == "triton" else 3 * DRAWS
    if backend == "triton" and case.row.kernels == "own":
        # Its interpreter takes long.
        scales, draws = scales[1:2], DRAWS // 2
    check_case(case, kind, scales, draws)


@pytest.mark.op
@every_case_and_kind("own")
def test_objectives_with_kernels_of_their_own(backend: str, case: Case, kind: str) -> None:
    """Catches a wrong value or gradient of any option, on any instruction set."""
    check(case, kind, backend)


@pytest.mark.objective(one_case=True)
@every_case_and_kind("shared")
def test_objectives_composed_of_ops(backend: str, case: Case, kind: str) -> None:
    """Catches a wrong value or gradient of any option, on every backend."""
    check(case, kind, backend)


@pytest.mark.objective
@every_case_and_kind("none")
def test_objectives_in_torch_alone(case: Case, kind: str) -> None:
    """Catches a wrong value or gradient of any option."""
    check(case, kind)


@pytest.mark.objective
def test_label_smoothing_under_autocast(backend: str) -> None:
    """The mean of the logits is as exact as they are: of float32 sums of float32 products."""
    x, y = unit_rows(), unit_rows()

    def share() -> Tensor:
        losses = [functional.clip_loss(x, y, 100.0, label_smoothing=e) for e in (0.0, 0.5)]
        return losses[1] - losses[0]

    exact = share()
    with torch.autocast(DEVICE, torch.bfloat16):
        # The positives' part is that of rounded features.
        difference = share() - exact
        positives = (x.bfloat16().double() * y.bfloat16().double() - x.double() * y.double()).sum(1)
    torch.testing.assert_close(difference.double(), 50 * positives.mean(), rtol=0, atol=2e-5)


def graphs() -> list[Case]:
    """Cases that differ in more than the size of a number: each of them may be another graph."""
    found: dict[str, Case] = {}
    for case in CASES.values():
        options = {
            name: value != 0 if isinstance(value, float) else value
            for name, value in case.options(WIDTH).items()
        }
        arguments = sorted(case.arguments(Draw(12, WIDTH)))
        found.setdefault(f"{case.row.name} {options} {arguments}", case)
    return [case for case in found.values() if case.id != NOT_COMPILED]


@pytest.mark.objective(one_case=True)
@every_case(graphs())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_every_objective_compiles_to_one_graph(case: Case) -> None:
    """Catches a graph break, and a compiled call that differs in its value or a gradient."""
    torch.compiler.reset()
    call = Call.of(case, scale=5.0)
    leaves, loss = call.tensors(), call.loss
    torch.manual_seed(1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
    torch.manual_seed(1)
    eager = loss(*leaves)
    torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaves) for loss in (compiled, eager)))
