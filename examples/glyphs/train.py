"""Trains image, name and outline encoders of glyphs into one space with mmcore.

python examples/glyphs/train.py             the whole run: about five minutes on two cores
python examples/glyphs/train.py --quick     all of it in a minute, with too few steps to learn much
python examples/glyphs/train.py --resume    continue the newest run that was interrupted
python examples/glyphs/train.py --objective unicl    with two faces of a character in a batch
python examples/glyphs/train.py --cache-rows 256     with the memory of 256 rows for the encoders

The files in reading order: data (the glyphs), names (their tokens), batches, model, training (one
step), train (this one: the command), evaluate, step_time, pictures, run_folder; compare trains with
both objectives.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

import mmcore
from batches import PAIRS, ROWS_PER_CHARACTER, Batches
from data import FACES, load_glyphs
from evaluate import embed_test_characters, retrieval, table
from pictures import draw_learning_curves, draw_retrieval_sheet, draw_step_time
from run_folder import RunFolder
from step_time import measure_step_time, obstacle
from training import Settings, Training

HERE = Path(__file__).parent
RUNS, CACHE = HERE / "runs", HERE / "cache"
QUICK = {"steps": 60, "batch_size": 256}
CHECKPOINT_INTERVAL = 25  # steps
EVALUATIONS = 10  # spread over a run
PACKAGES = ("torch", "numpy", "matplotlib", "pillow", "fonttools", "tqdm")


class Interruption:
    """Notes the first Ctrl-C or SIGTERM, so that the step under way ends; the second one kills."""

    def __enter__(self) -> Interruption:
        self.is_requested = False
        self.previous = {
            number: signal.signal(number, self.request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def request(self, number: int, frame: object) -> None:
        self.is_requested = True
        self.__exit__()

    def __exit__(self, *exception: object) -> None:
        for number, action in self.previous.items():
            signal.signal(number, action)


def train(training: Training, folder: RunFolder) -> None:
    """Takes the remaining steps; logs each, saves checkpoints on the way and when interrupted."""
    steps = training.settings.steps
    evaluation_interval = max(1, steps // EVALUATIONS)
    progress = tqdm(total=steps, initial=training.step, desc="training", unit="step")
    with mmcore.backend(training.settings.backend), Interruption() as interruption, progress:
        while training.step < steps and not interruption.is_requested:
            record = training.take_step()
            if training.step % evaluation_interval == 0 or training.step == steps:
                metrics = retrieval(embed_test_characters(training.model, training.batches))
                record["recall_at_1"] = {name: row["recall_at_1"] for name, row in metrics.items()}
            folder.append_to_log(record)
            loss = sum(record["loss"].values()) / len(PAIRS)
            progress.set_postfix(loss=f"{loss:.3f}", step=f"{record['step_ms']:.0f}ms")
            progress.update()
            if training.step % CHECKPOINT_INTERVAL == 0:
                folder.save_checkpoint(training.state())
        folder.save_checkpoint(training.state())
    if training.step < steps:
        raise SystemExit(
            f"interrupted after step {training.step}: continue with --resume --out {folder.path}"
        )


def finish(training: Training, folder: RunFolder, loading_seconds: float, start: float) -> None:
    """Evaluates, draws the pictures, writes the metrics, prints the table."""
    settings, batches = training.settings, training.batches
    with mmcore.backend(settings.backend):
        embeddings = embed_test_characters(training.model, batches)
    metrics = retrieval(embeddings)
    records = folder.read_log()
    step_time = measure_step_time(training.model, batches, is_quick=settings.quick)
    draw_learning_curves(records, folder)
    draw_retrieval_sheet(embeddings, batches, settings.seed, folder)
    draw_step_time(step_time, folder)
    folder.save_metrics(
        {
            "directions": metrics,
            "test_characters": len(batches.test_characters),
            "evaluated_on": f"the first face of {', '.join(FACES)} that has the character",
            "settings": asdict(settings),
            "seconds": {
                "loading_glyphs": loading_seconds,
                "training": training.seconds,
                "this_command": time.perf_counter() - start,
            },
            "step_ms_median": median(record["step_ms"] for record in records),
            "step_time": step_time,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
    )
    print(f"\n{len(batches.test_characters)} characters never seen in training:\n{table(metrics)}")
    print(f"\npictures and metrics.json are in {folder.path}")


def versions() -> dict[str, str]:
    """What a run was made with. mmcore knows its own: its distribution has another name."""
    packages = {package: version(package) for package in PACKAGES}
    return {"python": sys.version.split()[0], "mmcore": mmcore.__version__, **packages}


def parse_arguments() -> argparse.Namespace:
    """The command line; None stands for an option that was not given."""
    parser = argparse.ArgumentParser(description="Trains encoders of glyphs with mmcore.")
    default = Settings()
    quick = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in QUICK.items())
    add = parser.add_argument
    add("--steps", type=at_least(1), metavar="N", help=f"of training (default {default.steps})")
    add("--batch-size", type=at_least(1), metavar="N", help=f"default {default.batch_size}")
    objectives = f"default {default.objective}; unicl: two faces of a character in a batch"
    add("--objective", choices=tuple(ROWS_PER_CHARACTER), help=objectives)
    cache = "encodes so many rows at a time, for batches beyond the memory (default: all at once)"
    add("--cache-rows", type=at_least(1), metavar="N", help=cache)
    add("--seed", type=at_least(0), metavar="N", help=f"default {default.seed}")
    add("--backend", choices=("auto", "reference", "cpu"), help="of mmcore (default auto)")
    add("--quick", action="store_true", default=None, help=f"unless said: {quick}")
    add("--out", type=Path, metavar="FOLDER", help="for the run (default: a new one in runs/)")
    add("--resume", action="store_true", help="the run in --out, or else the newest one")
    return parser.parse_args()


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option: a whole number from `minimum` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number from {minimum} on: {text}")
        return int(text)

    return number


def choose_settings(arguments: argparse.Namespace, saved: dict[str, Any] | None) -> Settings:
    """The settings of a new run, or those of a saved one, which the command line may not change."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    if saved is None:
        return Settings(**(QUICK if arguments.quick else {}) | given)
    kept = Settings(**saved)
    for name, value in given.items():
        if value != getattr(kept, name):
            raise SystemExit(
                f"the run was started with {name} {getattr(kept, name)} and keeps it, "
                f"but {value} was asked"
            )
    return kept


def run(arguments: argparse.Namespace) -> None:
    """The whole run, from the glyphs to the pictures."""
    start = time.perf_counter()
    folder = (RunFolder.existing if arguments.resume else RunFolder.create)(arguments.out, RUNS)
    state = folder.load_checkpoint() if arguments.resume else None
    settings = choose_settings(arguments, state and state["settings"])
    if reason := obstacle(settings.backend):
        raise SystemExit(reason)
    glyphs = load_glyphs(CACHE)
    try:
        batches = Batches(glyphs, settings.batch_size, settings.seed, settings.objective)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    loading_seconds = time.perf_counter() - start
    training = Training(settings, batches)
    if state is None:
        folder.save_checkpoint(training.state())
    else:
        training.restore(state)
        folder.cut_log(training.step)
    train(training, folder)
    finish(training, folder, loading_seconds, start)


def main() -> None:
    """The command. Training sees to interruptions itself; elsewhere they end it in one line."""
    try:
        run(parse_arguments())
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


if __name__ == "__main__":
    main()
