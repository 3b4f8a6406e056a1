"""The example: what its batches hold, and its run folder, which loses nothing."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import mmcore

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "glyphs"))
import compare
from batches import PAIRS, Batches
from data import Glyphs, load_glyphs, look_alikes
from run_folder import RunFolder
from train import CACHE, HERE, QUICK, choose_settings, versions
from training import Settings, Training


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return load_glyphs(CACHE)


def test_a_batch_of_clip_holds_a_character_once(glyphs: Glyphs) -> None:
    batch = Batches(glyphs, 1024, seed=0, objective="clip").training(0)
    assert len(batch.character.unique()) == 1024


def test_a_batch_of_unicl_holds_two_faces_of_a_character(glyphs: Glyphs) -> None:
    batches = Batches(glyphs, 1024, seed=0, objective="unicl")
    epoch = [batches.training(step) for step in range(len(batches.training_characters) // 512)]
    assert len(torch.cat([batch.character for batch in epoch]).unique()) == 512 * len(epoch)
    assert not np.isin(epoch[0].character, batches.test_characters).any()
    inputs, character, _ = batches.training(0)
    assert all(torch.equal(a, b) for a, b in zip(inputs, epoch[0].inputs, strict=True))
    for own in (np.flatnonzero(character == each) for each in character.unique()):
        first, second = own
        index = int(character[first])
        outlines = glyphs.outlines[slice(*glyphs.first_glyph[index : index + 2])]
        assert all((row == outlines).all((1, 2)).any() for row in inputs.outline[own].numpy())
        assert torch.equal(inputs.name[first], inputs.name[second])
        if len(np.unique(outlines, axis=0)) == len(outlines) > 1:
            assert not torch.equal(inputs.outline[first], inputs.outline[second])


def test_look_alikes_are_those_with_a_drawing_in_common(glyphs: Glyphs) -> None:
    group, owners = look_alikes(glyphs), defaultdict(set)
    character = np.repeat(np.arange(len(glyphs.code_points)), np.diff(glyphs.first_glyph))
    for drawings in (glyphs.images, glyphs.outlines):
        for index, drawing in zip(character.tolist(), drawings, strict=True):
            owners[drawing.tobytes()].add(index)
    assert all(len({group[index] for index in shared}) == 1 for shared in owners.values())
    sharing = set().union(*(shared for shared in owners.values() if len(shared) > 1))
    assert sharing == set(np.flatnonzero(np.bincount(group)[group] > 1))
    latin, greek, other = (np.searchsorted(glyphs.code_points, ord(c)) for c in "AΑB")
    assert group[latin] == group[greek] != group[other]


def test_unicl_by_labels_and_look_alikes(glyphs: Glyphs) -> None:
    batches = Batches(glyphs, 512, seed=0, objective="unicl")
    model = Training(Settings(objective="unicl"), batches).model
    batch = batches.training(0)
    rows = {name: x.detach() for name, x in model(batch.inputs)._asdict().items()}
    positive = batch.character[:, None] == batch.character
    left_out = (batch.look_alikes[:, None] == batch.look_alikes) & ~positive
    assert left_out.any()

    def one_side(logits: Tensor) -> Tensor:
        logits = logits.masked_fill(left_out, -torch.inf)
        own = torch.where(positive, logits, 0).sum(1) / positive.sum(1)
        return (logits.logsumexp(1) - own).mean()

    losses = model.losses(type(batch.inputs)(**rows), batch)
    for (x, y), scale, loss in zip(PAIRS, model.scales(), losses, strict=True):
        logits = scale * rows[x] @ rows[y].T
        torch.testing.assert_close(loss, (one_side(logits) + one_side(logits.T)) / 2)


@pytest.mark.parametrize("more", [[], pytest.param(["--cache-rows", "10"], marks=pytest.mark.full)])
def test_a_small_run_of_unicl(tmp_path: Path, more: list[str]) -> None:
    options = ["--objective", "unicl", "--steps", "2", "--batch-size", "32", *more]
    command = [sys.executable, HERE / "train.py", *options, "--out", tmp_path / "run"]
    subprocess.run(command, check=True, capture_output=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["settings"]["objective"] == "unicl"
    assert metrics["settings"]["cache_rows"] == (10 if more else None)


def test_encoding_in_chunks(glyphs: Glyphs) -> None:
    """Catches a normalisation over the rows of a chunk, and gradients that miss a chunk: the step
    is that of the whole batch at once.
    """
    batches = Batches(glyphs, 32, seed=0, objective="clip")
    model = Training(Settings(batch_size=32, cache_rows=10), batches).model
    model.encoders["name"].eval()  # no random numbers
    gradients = []
    for model.cache_rows in (10, None):
        model.zero_grad()
        batch = batches.training(0)
        model.losses(model(batch.inputs), batch).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_keeps_its_objective() -> None:
    nothing = {field.name: None for field in fields(Settings)}
    saved = asdict(Settings(objective="unicl"))
    assert choose_settings(argparse.Namespace(**nothing), saved) == Settings(objective="unicl")
    asked = argparse.Namespace(**{**nothing, "objective": "clip"})
    with pytest.raises(SystemExit, match="started with objective unicl and keeps it, but clip"):
        choose_settings(asked, saved)


def test_quick_does_not_override_what_is_said() -> None:
    """Catches --quick taking other steps or batches than those on the command line."""
    nothing = {field.name: None for field in fields(Settings)}
    quick = choose_settings(argparse.Namespace(**nothing | {"quick": True}), None)
    assert {name: getattr(quick, name) for name in QUICK} == QUICK
    said = {"quick": True, "steps": 7, "batch_size": 32}
    chosen = choose_settings(argparse.Namespace(**nothing | said), None)
    assert (chosen.steps, chosen.batch_size) == (7, 32)


def test_a_run_names_the_version_of_mmcore() -> None:
    """Catches a lookup by the name of the package, which is not that of the distribution."""
    assert versions()["mmcore"] == mmcore.__version__


@pytest.mark.parametrize(
    ("size", "objective", "message"),
    [
        (1, "clip", "from 2 to 6838, got 1"),
        (2, "unicl", "from 4 to 13676, got 2"),
        (33, "unicl", "a multiple of 2 for unicl, got 33"),
    ],
)
def test_batch_sizes_that_are_refused(
    glyphs: Glyphs, size: int, objective: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(glyphs, size, seed=0, objective=objective)


def test_the_page_has_the_tables_of_the_results() -> None:
    page, records = (HERE / "README.md").read_text(), compare.read_results()
    budgets = {(record["steps"], record["batch_size"]) for record in records}
    assert len(budgets) > 0
    for steps, batch_size in budgets:
        heading = f"{steps} steps of {batch_size:,} rows"
        assert heading in page
        assert compare.table(compare.of_budget(records, steps, batch_size)) in page


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
