"""examples/glyphs on a handful of invented glyphs: the promises a run makes, not what it learns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "glyphs"))

import data
import evaluate
import names
import train
from batches import Batches
from run_folder import RunFolder
from training import Settings, Training

CHARACTERS, FACES_EACH = 90, 3
SETTINGS = Settings(steps=6, batch_size=32)


@pytest.fixture
def glyphs(monkeypatch: pytest.MonkeyPatch) -> data.Glyphs:
    """Letters with three random drawings each; B is drawn like A."""
    monkeypatch.setattr(data, "TEST_CHARACTERS", 20)
    random = np.random.default_rng(0)
    count = CHARACTERS * FACES_EACH
    images = random.integers(0, 256, (count, 32, 32), np.uint8)
    outlines = random.integers(-900, 900, (count, 64, 5), np.int16)
    outlines[..., 0] = random.integers(0, 4, (count, 64))
    images[FACES_EACH] = images[0]
    return data.Glyphs(
        code_points=np.arange(CHARACTERS) + ord("\N{CYRILLIC CAPITAL LETTER A}"),
        first_glyph=np.arange(CHARACTERS + 1) * FACES_EACH,
        face=np.tile(np.arange(FACES_EACH), CHARACTERS),
        images=images,
        outlines=outlines,
    )


def new_training(glyphs: data.Glyphs) -> Training:
    return Training(SETTINGS, Batches(glyphs, SETTINGS.batch_size, SETTINGS.seed))


def test_split_keeps_shared_shapes_out_of_the_evaluation(glyphs: data.Glyphs) -> None:
    training, test = data.split(glyphs)
    assert set(training).isdisjoint(test)
    assert len(training) + len(test) == CHARACTERS
    assert {0, 1} <= set(training)


def test_batch_is_a_function_of_seed_and_step(glyphs: data.Glyphs) -> None:
    batches = [Batches(glyphs, 32, seed) for seed in (0, 0, 1)]
    same, again, other = (batch.training(3) for batch in batches)
    assert all(torch.equal(x, y) for x, y in zip(same, again, strict=True))
    assert not torch.equal(same.image, other.image)
    characters = batches[0]._characters(3)
    assert len(set(characters)) == 32
    assert set(characters) <= set(batches[0].training_characters)


def test_tokenizer_spells_rare_words_and_reads_digits_alone() -> None:
    tokenizer = names.Tokenizer(["LATIN LETTER A"] * 3 + ["BRAILLE PATTERN DOTS-12"])
    assert tokenizer.tokens("LATIN LETTER AB-12") == ["LATIN", "LETTER", "#A", "#B", "1", "2"]
    assert tokenizer.encode(["LATIN"])[0, 1:].tolist() == [names.PADDING] * (names.NAME_LENGTH - 1)


def test_ranks_prefer_the_lower_index_and_put_nan_last() -> None:
    candidates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [float("nan"), 0.0]])
    ranks = evaluate.ranks(queries, candidates).tolist()
    assert ranks[:2] == [1, 2]
    assert ranks[2] >= 3


def test_resumed_run_ends_with_the_same_bits(glyphs: data.Glyphs, tmp_path: Path) -> None:
    whole = new_training(glyphs)
    for _ in range(SETTINGS.steps):
        whole.take_step()
    interrupted = new_training(glyphs)
    for _ in range(SETTINGS.steps // 2):
        interrupted.take_step()
    RunFolder.create(tmp_path / "run", tmp_path).save_checkpoint(interrupted.state())
    resumed = new_training(glyphs)
    resumed.restore(RunFolder.existing(tmp_path / "run", tmp_path).load_checkpoint())
    while resumed.step < SETTINGS.steps:
        resumed.take_step()
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_resuming_forgets_the_log_after_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", tmp_path)
    for step in range(1, 5):
        folder.append_to_log({"step": step})
    with folder.log.open("a") as file:
        file.write('{"step": 5')
    folder.cut_log(2)
    assert [record["step"] for record in folder.read_log()] == [1, 2]


@pytest.mark.parametrize("position", [100, -100])
def test_damaged_checkpoint_is_reported(tmp_path: Path, position: int) -> None:
    folder = RunFolder.create(tmp_path / "run", tmp_path)
    folder.save_checkpoint({"step": 1, "weight": torch.ones(1000)})
    content = bytearray(folder.checkpoint.read_bytes())
    content[position] ^= 1
    folder.checkpoint.write_bytes(content)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged"):
        folder.load_checkpoint()
    folder.checkpoint.write_bytes(content[:500])
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged"):
        folder.load_checkpoint()


def test_nothing_existing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty"):
        RunFolder.create(tmp_path, tmp_path)
    with pytest.raises(SystemExit, match="cannot write to the run folder"):
        RunFolder.create(tmp_path / "notes.txt" / "run", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_command_writes_a_complete_run(
    glyphs: data.Glyphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "load_glyphs", lambda folder: glyphs)
    arguments = ["train.py", "--quick", "--steps", "2", "--batch-size", "16"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "run")])
    train.main()
    written = {file.name for file in (tmp_path / "run").iterdir()}
    pictures = {"learning_curves.png", "retrieval.png", "step_time.png"}
    assert written == pictures | {"checkpoint.pt", "log.jsonl", "metrics.json"}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["directions"]) == 6
    with pytest.raises(SystemExit, match="is not empty"):
        train.main()
