"""``python -m mmcore retrieve``: files in, lines or a file out, faults in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmcore import __main__
from mmcore.retrieval import Interrupted, TopK, command, safetensors_file, topk


@pytest.fixture
def queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[Any]:
    """Two files of features in the current folder, q.npy and g.npy."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    queries, gallery = (generator.normal(size=(rows, 6)).astype("f") for rows in (4, 30))
    np.save("q.npy", queries)
    np.save("g.npy", gallery)
    return queries


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mmcore", "retrieve", *arguments])
    __main__.run()


def test_lines(
    queries: NDArray[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches items in another order, or numbered otherwise, than `topk` returns them."""
    run(monkeypatch, "q.npy", "g.npy", "-k", "3", "--metric", "l2")
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["query", "rank", "item", "score"]
    found = topk(queries, "g.npy", 3, metric="l2")
    assert lines == [
        f"{query}\t{rank + 1}\t{found.indices[query, rank]}\t{found.scores[query, rank]:.7g}"
        for query in range(4)
        for rank in range(3)
    ]


def test_a_file_and_the_rows_themselves(
    queries: NDArray[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an output that lacks a part, and a row that finds itself."""
    run(monkeypatch, "g.npy", "g.npy", "--exclude-self", "--output", "found.npz")
    assert capsys.readouterr().out == ""
    saved = np.load("found.npz")
    expected = topk(np.load("g.npy"), "g.npy", 10, exclude_self=False)
    assert saved["indices"].shape == (30, 10)
    assert not (saved["indices"] == np.arange(30)[:, None]).any()
    assert saved["scores"].dtype == expected.scores.dtype


def test_other_files(
    queries: NDArray[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches queries of a file of safetensors, whose results are tensors."""
    tensors = {"features": torch.from_numpy(queries)}
    safetensors_file.write("q.safetensors", tensors, {})
    for name in ("q.npy", "q.safetensors"):
        run(monkeypatch, name, "g.npy", "-k", "2")
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q.npy", "missing.npy"], "missing.npy"),
        (["q.npy", "g.txt"], "must end in .npy, .safetensors or .parquet, got 'g.txt'"),
        (["q.npy", "g.npy", "-k", "0"], "k must be at least 1, got 0"),
        (["q.npy", "g.npy", "--output", "found.txt"], "--output must end in .npz, got found.txt"),
        (["q.npy", "g.npy", "--output", "no/x.npz"], "--output must be in a folder that exists"),
        (["q.npy", "g.npy", "--exclude-self"], "exclude_self needs the queries themselves"),
    ],
)
def test_faults(
    queries: NDArray[Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """Catches a traceback, and a search whose result cannot be written."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    assert str(caught.value).startswith("retrieve: ")
    assert message in str(caught.value)


def test_an_interrupt_writes_what_was_found(
    queries: NDArray[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches Ctrl-C that leaves nothing behind."""
    part = topk(queries, np.load("g.npy")[:9], 2, score_dtype="float64")

    def stopped(*arguments: Any, **options: Any) -> TopK:
        raise Interrupted(part, 9)

    monkeypatch.setattr(command, "topk", stopped)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "q.npy", "g.npy", "--output", "found.npz")
    assert caught.value.code == 130
    assert "only the first 9 rows of the gallery were searched" in capsys.readouterr().err
    assert np.array_equal(np.load("found.npz")["indices"], part.indices)


def test_the_command_as_it_is_typed(queries: NDArray[Any]) -> None:
    """Catches a command that is not registered, or needs what is not there."""
    command = [sys.executable, "-m", "mmcore", "retrieve", "q.npy", "g.npy", "-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 5
