"""``python -m mmcore verify``: what is right passes, what is wrong fails by name."""

from __future__ import annotations

import json

import pytest
import torch
from machines import IS_GPU
from torch import Tensor

from mmcore import __main__, functional, verify
from mmcore.backends import cpu
from mmcore.ops import FAMILIES

pytestmark = pytest.mark.skipif(IS_GPU, reason="the checks of a GPU take a minute: run the command")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best instruction set, small features, one dtype."""
    best = cpu.instruction_sets()[:1]
    monkeypatch.setattr(cpu, "instruction_sets", lambda: best)
    monkeypatch.setattr(verify, "SIZES", ((17, 24),))
    monkeypatch.setattr(verify, "DTYPES", (torch.float32,))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of the command on the CPU."""
    command = ["mmcore", "verify", "--device", "cpu", *arguments]
    monkeypatch.setattr("sys.argv", command)
    try:
        __main__.run()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_what_is_right_passes(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a family that is not checked, and a formula that is not the family's."""
    assert run(monkeypatch, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [check["family"] for check in found] == list(FAMILIES)
    assert all(check["passed"] and check["share"] < 2 for check in found)


def test_what_is_wrong_fails_by_name(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a tolerance that a wrong digit passes, and a check that an error ends."""
    right = functional.l2_normalize

    def wrong(x: Tensor) -> Tensor:
        return right(x) * (1 + 1e-5)

    def broken(*arguments: object, **named: object) -> Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(functional, "l2_normalize", wrong)
    monkeypatch.setattr(functional, "project", broken)
    assert run(monkeypatch) == 1
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if "FAILED" in line]
    assert [line.split()[2] for line in lines] == ["l2_normalize", "project"]
    assert "RuntimeError: no kernel image is available" in text
    assert f"2 of {len(FAMILIES)} checks failed, on cpu {cpu.instruction_sets()[0]}" in text


def test_without_kernels_the_reference_is_checked(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a check of kernels that are not there."""
    monkeypatch.setattr(cpu, "missing_module", "there is none")
    assert run(monkeypatch) == 0
    assert f"all {len(FAMILIES)} checks passed" in capsys.readouterr().out


def test_an_error_has_no_share_in_json() -> None:
    """Catches "Infinity", which is no JSON."""
    failed = verify.Check("triton", "gram", "float32", float("inf"), False, "no driver")
    assert json.loads(json.dumps(failed.as_json(), allow_nan=False))["share"] is None
