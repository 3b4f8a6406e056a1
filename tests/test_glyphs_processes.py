"""The glyph example in several processes: the steps are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "glyphs"))
import processes
from run_folder import RunFolder
from train import HERE

ROWS, CHANNELS = 7, 3
OPTIONS = ("--seed", "3", "--batch-size", "33")  # an uneven share for each of two processes


@pytest.mark.parametrize("size", [2, 3])
def test_batch_normalisation_over_processes(size: int) -> None:
    """Catches statistics of one share alone, their mean where shares differ in size, and a backward
    that leaves out what the other processes' rows do through the statistics.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, CHANNELS, 4, 2)
    x, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def normalised(norm: nn.BatchNorm2d, own: slice) -> list[Tensor]:
        part = (3 * x[own] + 2).requires_grad_()
        y = norm.double()(part)
        y.backward(gradient[own])
        assert part.grad is not None
        return [y.detach(), part.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]

    def of_rank(rank: int) -> list[Tensor]:
        return normalised(processes.BatchNorm(CHANNELS), processes.share(ROWS))

    *rows, scale, shift, mean, variance, _ = zip(*ranks.on_ranks(size, of_rank), strict=True)
    found = [*(torch.cat(each) for each in rows), sum(scale), sum(shift), mean[0], variance[0]]
    expected = normalised(nn.BatchNorm2d(CHANNELS), slice(None))
    torch.testing.assert_close(found, expected[:-1], rtol=1e-12, atol=1e-12)


def test_shares_make_the_batch() -> None:
    """Catches rows that two processes train on, or none."""
    shares = ranks.on_ranks(3, lambda rank: list(range(ROWS))[processes.share(ROWS)])
    assert [row for share in shares for row in share] == list(range(ROWS))
    assert {len(share) for share in shares} == {2, 3}


def run(count: int, folder: Path, *options: str) -> list[dict[str, Any]]:
    """Trains in so many processes; what the log says."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    launcher = several if count > 1 else []
    command = [sys.executable, *launcher, str(HERE / "train.py"), "--out", str(folder), *options]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("pictures and metrics.json are in") == 1
    return RunFolder(folder).read_log()


def losses(records: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([list(record["loss"].values()) for record in records])


@pytest.mark.full
@pytest.mark.parametrize("more", [["--cache-rows", "10"], ["--objective", "clip"]])
def test_two_processes_train_as_one(tmp_path: Path, more: list[str]) -> None:
    """Catches a loss of one share, other words left out, gradients that are not the mean over
    processes, and a checkpoint that only as many processes can read.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*OPTIONS, "--steps", "1", *more]
    first, second = run(1, one, *options), run(2, two, *options)
    torch.testing.assert_close(losses(second), losses(first), rtol=1e-5, atol=0)
    states = [RunFolder(folder).load_checkpoint() for folder in (one, two)]
    assert torch.equal(states[0]["random"], states[1]["random"])
    moments = [state["optimizer"]["state"] for state in states]  # after a step, of its gradients
    for of_one, of_two in zip(*(each.values() for each in moments), strict=True):
        x, y = of_one["exp_avg"], of_two["exp_avg"]
        assert (x - y).norm() <= 1e-3 * x.norm() + 1e-6


@pytest.mark.full
def test_one_process_continues_what_two_began(tmp_path: Path) -> None:
    """Catches names in the checkpoint that wrappers have changed, and random numbers that went on
    by the share.
    """
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    options = [*OPTIONS, "--steps", "3", "--cache-rows", "10"]
    expected = run(1, whole, *options)
    run(2, parted, *options)
    folder = RunFolder(parted)
    folder.metrics.unlink()  # as if it had been interrupted after the last step
    state = folder.load_checkpoint()
    assert state["step"] == 3
    folder.save_checkpoint({**state, "settings": {**state["settings"], "steps": 4}})
    found = run(1, parted, "--resume")
    assert len(found) == 4
    torch.testing.assert_close(losses(found[:3]), losses(expected), rtol=1e-4, atol=0)
    metrics = json.loads(folder.metrics.read_text())
    assert metrics["settings"]["steps"] == 4
