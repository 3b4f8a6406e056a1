"""Trains image, name and outline encoders of glyphs into one space with mmcore.

python examples/glyphs/train.py             the whole run: about five minutes on two cores
python examples/glyphs/train.py --quick     all of it in a minute, with too few steps to learn much
python examples/glyphs/train.py --resume    continue the newest run that was interrupted
python examples/glyphs/train.py --objective unicl    with two faces of a character in a batch
python examples/glyphs/train.py --cache-rows 256     with the memory of 256 rows for the encoders
torchrun --nproc-per-node 2 examples/glyphs/train.py    each step's batch shared by two processes

The files in reading order: data (the glyphs), names (their tokens), batches, processes, model,
training (one step), train (this one: the command), evaluate, step_time, pictures, run_folder;
compare trains with both objectives.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import mmcore
import processes
from batches import PAIRS, ROWS_PER_CHARACTER, Batches
from data import FACES, load_glyphs
from evaluate import embed_test_characters, retrieval, table
from pictures import draw_learning_curves, draw_retrieval_sheet, draw_step_time
from run_folder import RunFolder
from step_time import measure_step_time, obstacle
from training import Settings, Training, require_same_glyphs

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
    progress = tqdm(
        total=steps, initial=training.step, desc="training", unit="step",
        disable=not processes.is_first(),
    )  # fmt: skip
    with mmcore.backend(training.settings.backend), Interruption() as interruption, progress:
        while training.step < steps and not processes.in_any(interruption.is_requested):
            record = training.take_step()
            processes.from_first(partial(keep, record, training, folder))
            loss = sum(record["loss"].values()) / len(PAIRS)
            progress.set_postfix(loss=f"{loss:.3f}", step=f"{record['step_ms']:.0f}ms")
            progress.update()
        processes.from_first(lambda: folder.save_checkpoint(training.state()))
    if training.step < steps:
        message = f"interrupted after step {training.step}: continue with --resume --out"
        raise SystemExit(f"{message} {folder.path}" if processes.is_first() else 1)


def keep(record: dict[str, Any], training: Training, folder: RunFolder) -> None:
    """Logs a step; evaluates and saves a checkpoint now and then."""
    steps = training.settings.steps
    if training.step % max(1, steps // EVALUATIONS) == 0 or training.step == steps:
        metrics = retrieval(embed_test_characters(training.model, training.batches))
        record["recall_at_1"] = {name: row["recall_at_1"] for name, row in metrics.items()}
    folder.append_to_log(record)
    if training.step % CHECKPOINT_INTERVAL == 0:
        folder.save_checkpoint(training.state())


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


class Prepared(NamedTuple):
    """What a run begins with; `state` is that of the checkpoint of a resumed run."""

    folder: RunFolder
    state: dict[str, Any] | None
    settings: Settings
    batches: Batches


def prepare() -> Prepared:
    """Reads the command line, the run folder and the glyphs; ends where something is wrong."""
    arguments = parse_arguments()
    folder = (RunFolder.existing if arguments.resume else RunFolder.create)(arguments.out, RUNS)
    state = folder.load_checkpoint() if arguments.resume else None
    if state is not None:
        require_same_glyphs(state)
    settings = choose_settings(arguments, state and state["settings"])
    processes.require_rows(settings.batch_size)
    if reason := obstacle(settings.backend):
        raise SystemExit(reason)
    glyphs = load_glyphs(CACHE)
    try:
        batches = Batches(glyphs, settings.batch_size, settings.seed, settings.objective)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return Prepared(folder, state, settings, batches)


def run() -> None:
    """The whole run, from the glyphs to the pictures."""
    start = time.perf_counter()
    processes.join()
    folder, state, settings, batches = processes.from_first(prepare)
    loading_seconds = time.perf_counter() - start
    training = Training(settings, batches)
    if state is None:
        processes.from_first(lambda: folder.save_checkpoint(training.state()))
    else:
        training.restore(state)
        processes.from_first(lambda: folder.cut_log(training.step))
    train(training, folder)
    training.model.exchange_gradients(False)
    is_first = processes.is_first()
    processes.leave()
    if is_first:
        finish(training, folder, loading_seconds, start)


def main() -> None:
    """The command. Training sees to interruptions itself; elsewhere they end it in one line."""
    try:
        run()
    except KeyboardInterrupt:
        raise SystemExit("interrupted" if processes.is_first() else 1) from None


if __name__ == "__main__":
    main()
