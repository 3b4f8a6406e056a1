"""The run folder of the example: nothing is lost, and what is wrong is said in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "glyphs"))
from run_folder import RunFolder


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", tmp_path)
    folder.save_checkpoint({"step": 3, "model": {"weight": torch.arange(4.0)}})
    state = RunFolder.existing(tmp_path / "run", tmp_path).load_checkpoint()
    assert state["step"] == 3
    assert torch.equal(state["model"]["weight"], torch.arange(4.0))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    folder = RunFolder.create(tmp_path / "run", tmp_path)
    folder.save_checkpoint({"step": 3, "weight": torch.randn(1000)})
    content = bytearray(folder.checkpoint.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray()
    folder.checkpoint.write_bytes(content)
    with pytest.raises(SystemExit, match="is damaged") as exit_:
        folder.load_checkpoint()
    assert "\n" not in str(exit_.value)
    assert folder.checkpoint.read_bytes() == bytes(content)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("keep")
    with pytest.raises(SystemExit, match="is not empty"):
        RunFolder.create(tmp_path / "run", tmp_path)
    assert (tmp_path / "run" / "precious").read_text() == "keep"


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write to the run folder") as exit_:
        RunFolder.create(tmp_path / "file" / "run", tmp_path)
    assert "\n" not in str(exit_.value)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no run to resume"):
        RunFolder.existing(None, tmp_path)


def test_the_log_forgets_steps_after_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", tmp_path)
    for step in (1, 2, 3):
        folder.append_to_log({"step": step})
    with folder.log.open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by an interruption
    folder.cut_log(2)
    assert [record["step"] for record in folder.read_log()] == [1, 2]
