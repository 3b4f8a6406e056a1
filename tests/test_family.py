"""What `Family` derives from the tuples of a contract, shown on a family that nobody else has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mmcore import backends
from mmcore.ops.family import Family


class EnergyInputs(NamedTuple):
    """Rows."""

    x: Tensor  # (N, D)
    power: float


class Energy(NamedTuple):
    """Σ_j |x_ij|^power."""

    energy: Tensor  # (N,)


class EnergyWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool


def forward(inputs: EnergyInputs) -> Energy:
    return Energy(inputs.x.abs().pow(inputs.power).sum(1))


def backward(
    inputs: EnergyInputs, found: Energy, upstream: Energy, wanted: EnergyWanted, rounds: bool
) -> list[Tensor]:
    x, power = inputs
    return [power * x.sign() * x.abs().pow(power - 1) * upstream.energy[:, None]]


def fake(inputs: EnergyInputs) -> Energy:
    return Energy(inputs.x.new_empty(inputs.x.shape[0]))


FAMILY = Family(
    "row_energy_of_a_test", inputs=EnergyInputs, results=Energy, upstream=Energy,
    wanted=EnergyWanted, fake=fake,
)  # fmt: skip


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    file = SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setattr(backends, "implementation", lambda name, family: file)


def energy(x: Tensor) -> Tensor:
    return FAMILY(EnergyInputs(x, 3.0), backend="reference").energy


def test_the_schema_is_that_of_the_tuples() -> None:
    """Catches a field that is lost, or has another type or place."""
    schema = str(torch.ops.mmcore.row_energy_of_a_test_backward.default._schema)
    assert schema == (
        "mmcore::row_energy_of_a_test_backward(Tensor x, float power, Tensor energy, "
        "Tensor grad_energy, bool[] wanted, bool rounds, str backend) -> Tensor grad_x"
    )


def test_one_result_and_one_gradient() -> None:
    """Catches a tuple where torch expects the only result."""
    x = torch.randn(5, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(energy, (x,))
    (expected,) = torch.autograd.grad(energy(x).sum(), x)
    rows = torch.func.vmap(torch.func.grad(lambda row: energy(row[None]).sum()))(x)
    torch.testing.assert_close(rows, expected)
    compiled = torch.compile(lambda x: energy(x).sum(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected)


def test_a_backward_that_does_not_round() -> None:
    """Catches gradients that are rounded to 16 bits before several processes add theirs."""
    inputs = EnergyInputs(torch.randn(4, 3).bfloat16(), 2.0)
    found = FAMILY(inputs, backend="reference")
    for rounds, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        (gradient,) = FAMILY.backward(
            inputs, found, Energy(torch.ones(4)), EnergyWanted(True), rounds=rounds,
            backend="reference",
        )  # fmt: skip
        assert isinstance(gradient, Tensor)
        assert gradient.dtype == dtype
