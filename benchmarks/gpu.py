"""Measure mmcore's Triton kernels on a GPU: python benchmarks/gpu.py --help.

Needs torch, Triton and NumPy, and no build. Every measurement is printed and appended, as one JSON
line, to benchmarks/results/<gpu>.jsonl.
"""

import argparse
import gc
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if "--smoke" in sys.argv:
    # Triton reads it when it is imported, and torch may import Triton.
    os.environ["TRITON_INTERPRET"] = "1"

import torch

if TYPE_CHECKING:
    from gpu_session import Session
    from gpu_steps import Step

START = time.monotonic()
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "torch",
    "triton",
    "mmcore",
    "open_clip_torch",
    "inf_cl",
    "siglip_kernel",
    "liger_kernel",
    "numpy",
)
BUDGET_S = 420.0
# Rows, columns and depth of a product, and bytes of a copy.
CEILINGS, SMOKE_CEILINGS = (8192, 2**30), (64, 2**16)


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="steps with all these words in the title",
    )
    add("--list", action="store_true", help="print the titles of the steps, measure nothing")
    add("--without", nargs="+", default=[], metavar="PROVIDER", help="leave providers out")
    add("--budget", type=float, default=BUDGET_S, help="seconds after which nothing new is begun")
    add("--huge", action="store_true", help="CLIP of 4,194,304 pairs, once, and nothing else")
    add("--smoke", action="store_true", help="tiny sizes in Triton's interpreter, without a GPU")
    add("--results", type=Path, help="the file to append to; --smoke records nothing without it")
    return parser


def obstacle(is_smoke: bool) -> str | None:
    """Why nothing can be measured here; None where something can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch has to say about a missing driver
        if not is_smoke and not torch.cuda.is_available():
            return f"bench-gpu needs a GPU that torch can use: torch {torch.__version__} sees none"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"bench-gpu needs Triton, which cannot be imported: {error}"
    return None


def main() -> int:
    """Measure what the command line asks for."""
    parser = command_line()
    arguments = parser.parse_args()
    if arguments.smoke and arguments.huge:
        parser.error("--huge is more than --smoke can do")
    if arguments.list:
        from gpu_steps import steps

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly behind `| head`
        print("\n".join(step.title for step in steps()))
        return 0
    reason = obstacle(arguments.smoke)
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    from gpu_device import DeviceLostError

    try:
        return measure(arguments)
    except DeviceLostError as error:
        print(f"{error}; leave it out with --without", file=sys.stderr)
        return 1


def measure(arguments: argparse.Namespace) -> int:
    """Run the steps until they are done or the time is up; say what was left out."""
    from gpu_ceilings import run_ceilings
    from gpu_steps import run_huge, smoke_steps, steps, wanted

    chosen = wanted(smoke_steps() if arguments.smoke else steps(), arguments.only)
    if not chosen:
        print("no step has all these words in its title: see --list", file=sys.stderr)
        return 1
    session = new_session(arguments)
    torch.compiler.reset()  # loads the compiler
    gc.freeze()  # modules are no garbage, and looking through them takes longer than most calls
    print(f"{session.recorder.provenance['processor']}, at most {arguments.budget:.0f} s")
    if arguments.huge:
        run_huge(session)
    else:
        print("ceilings")
        sizes = SMOKE_CEILINGS if arguments.smoke else CEILINGS
        if reason := session.attempt("ceilings", lambda: run_ceilings(session, *sizes)):
            print(f"  left out: {reason}")
        run_steps(session, chosen)
    path = session.recorder.path
    print(f"recorded in {path.name}" if path else "nothing recorded")
    return 0


def run_steps(session: "Session", steps: "list[Step]") -> None:
    """One after the other; none is begun once the time is up, and none stops the others."""
    for step in steps:
        print(step.title, flush=True)
        reason = "no time left"
        if session.seconds_left() > 0:
            reason = session.attempt(step.title, lambda step=step: step.run(session))
        if reason is not None:
            print(f"  left out: {reason}")


def new_session(arguments: argparse.Namespace) -> "Session":
    """Device, recorder and limits of this run."""
    from gpu_device import Gpu, Interpreter
    from gpu_session import Rounds, Session
    from machine import provenance, versions
    from recorder import Recorder

    device = Interpreter() if arguments.smoke else Gpu()
    if arguments.smoke:
        torch.set_num_threads(1)  # for matrices this small, threads only wait for each other
    rounds = Rounds(1, 1, 0.0) if arguments.smoke else Rounds(5, 30, 4.0)
    path = arguments.results
    if path is None and not arguments.smoke:
        path = RESULTS / f"{device.slug()}.jsonl"
    of_run = {**provenance(), **device.description(), "versions": versions(PACKAGES)}
    deadline = START + arguments.budget
    without = tuple(arguments.without)
    return Session(device, Recorder(path, of_run), rounds, deadline, without)


if __name__ == "__main__":
    sys.exit(main())
