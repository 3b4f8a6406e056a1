"""Plants one fault at a time in a copy of the sources and reports which test notices it.

    python tests/mutants/run.py [NAME ...]    every patch of this folder, or the named ones

This tests the tests: a fault that no test notices shows what they do not check. The fast suite
leaves out most cases of the full one, and must notice the same faults.

A copy of the working tree with a native module of its own is made in a scratch folder. For each
patch: apply it, build the module again where C++ changed, run the tests that the patch names and
then all others until one fails, and take the patch back. A crash counts as noticed, and so does a
process in which no test ends for 15 minutes. A patch that does not apply or compile is an error.

The tests run in a bare virtual environment that finds the packages by PYTHONPATH. An editable
install of mmcore has a .pth file with an import hook that would find the installed sources instead
of the copy; Python reads such files in its own site-packages only.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
SECONDS_OF_SILENCE = 15 * 60
CHECK = """
import mmcore, mmcore._C, mmcore._launch
print(mmcore.__file__, mmcore._C.__file__, mmcore._launch.__file__)
"""


class Mistake(Exception):
    """Why a mutant cannot be tested."""


class Mutant(NamedTuple):
    """One patch, whose first lines describe it."""

    path: Path
    fault: str
    tests: list[str]  # files of tests/ that should notice it
    is_native: bool

    @staticmethod
    def read(path: Path) -> Mutant:
        text = path.read_text(encoding="utf-8")
        fault, tests = (re.search(rf"^{key}: (.+)$", text, re.M) for key in ("Fault", "Tests"))
        if fault is None or tests is None:
            raise Mistake(f"{path.name} must begin with the lines 'Fault: ...' and 'Tests: ...'")
        is_native = re.search(r"^\+\+\+ b/(csrc/|CMakeLists.txt)", text, re.M) is not None
        return Mutant(path, fault[1], tests[1].split(), is_native)


class Scratch:
    """The copy of the working tree, its native module, and the Python that sees nothing else."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.build, self.venv = (folder / name for name in ("tree", "build", "python"))
        self.python, self.is_stale = self.venv / "bin/python", True
        packages = {sysconfig.get_path(name): None for name in ("purelib", "platlib")}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        self.environment = kept | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(self.tree), *packages]),
            # A file that changes twice within a second must not be taken for its older bytecode.
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": "passive",
            # A graph that was compiled from other sources must not be used again.
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
            "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
            # The copy is no part of a repository around it.
            "GIT_CEILING_DIRECTORIES": str(folder),
        }

    def run(self, *command: object, folder: Path | None = None) -> str:
        """What a command prints; where it fails, a Mistake with the end of that."""
        arguments = [str(part) for part in command]
        done = subprocess.run(
            arguments, cwd=folder or self.tree, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode != 0:
            raise Mistake(f"{' '.join(arguments[:3])} failed:\n{done.stdout[-2000:]}")
        return done.stdout

    def prepare(self) -> None:
        """Copies, configures, builds, and checks that tests import the copy."""
        self.copy_tree()
        if not self.python.exists():
            self.run(sys.executable, "-m", "venv", "--without-pip", self.venv)
        pybind11 = self.run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
        has_avx512 = "avx512bw" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
        self.run(
            "cmake", "-G", "Ninja", "-S", self.tree, "-B", self.build,
            "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11}",
            f"-DMMCORE_EMULATE_AVX512={'OFF' if has_avx512 else 'ON'}",
            "-DMMCORE_EMULATE_AMX=ON",
        )  # fmt: skip
        self.build_modules()
        imported = self.run(self.python, "-c", CHECK).split()
        if not all(Path(file).is_relative_to(self.tree) for file in imported):
            raise Mistake(f"tests would import {' and '.join(imported)}, not {self.tree}")

    def copy_tree(self) -> None:
        """Files that git would commit. Equal ones are left alone, so that little is built again."""
        command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        listed = self.run(*command, folder=ROOT).split("\0")
        names = {name for name in listed if name and (ROOT / name).is_file()}
        for path in [path for path in self.tree.rglob("*") if path.is_file()]:
            if path.relative_to(self.tree).as_posix() not in names:
                path.unlink()
        for name in names:
            source, target = ROOT / name, self.tree / name
            if not target.exists() or not filecmp.cmp(source, target, shallow=False):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def build_modules(self) -> None:
        """Of the sources as they are now."""
        if not self.is_stale:
            return
        self.run("cmake", "--build", self.build)
        for module in self.build.glob("_*.so"):
            shutil.copy(module, self.tree / "mmcore")
        self.is_stale = False

    def apply(self, mutant: Mutant, *options: str) -> None:
        self.run("git", "apply", *options, mutant.path)
        self.is_stale = self.is_stale or mutant.is_native

    def first_failure(self, tests: Sequence[str], workers: int) -> str | None:
        """The first test that fails; None if none does."""
        stop = ["-x"]
        if workers > 1:
            stop = ["-n", str(workers), "--dist", "loadfile", "--maxfail", "1"]
        command = [str(self.python), "-m", "pytest", *stop, "-q", "-p", "no:cacheprovider", *tests]
        status, output = self.watch(command)
        if status in (0, 5):  # 5: there are no tests
            return None
        if status is None:
            return f"timeout: no test ended in {SECONDS_OF_SILENCE // 60} minutes"
        if status < 0:
            where = re.search(r'File ".*?(tests/test_\w+\.py)", line \d+ in (test_\w+)', output)
            place = "::".join(where.groups()) if where else "an unknown test"
            return f"crash: {signal.Signals(-status).name} in {place}"
        failed = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", output, re.M)
        if status not in (1, 2) or failed is None:
            raise Mistake(f"pytest stopped with status {status}:\n{output[-2000:]}")
        return failed[1]

    def watch(self, command: Sequence[str]) -> tuple[int | None, str]:
        """Exit status and output; None where the process was silent for too long."""
        process = subprocess.Popen(
            command, cwd=self.tree, env=self.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        pieces: list[bytes] = [b"-"]
        status: int | None = None
        try:
            while pieces[-1] and select.select([process.stdout], [], [], SECONDS_OF_SILENCE)[0]:
                pieces.append(os.read(process.stdout.fileno(), 2**16))
            status = None if pieces[-1] else process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return status, b"".join(pieces[1:]).decode(errors="replace")


def judge(scratch: Scratch, mutant: Mutant, workers: int, only_named: bool) -> str:
    """Which test notices the fault; "" if none does. The patch is taken back."""
    named = [f"tests/{name}" for name in mutant.tests]
    missing = [name for name in named if not (scratch.tree / name).exists()]
    if missing:
        raise Mistake(f"the patch names {' '.join(missing)}, which does not exist")
    scratch.apply(mutant)
    try:
        scratch.build_modules()
        killer = scratch.first_failure(named, workers)
        is_named = killer is not None
        if not is_named and not only_named:
            others = ["tests", *(f"--ignore={name}" for name in named)]
            killer = scratch.first_failure(others, workers)
    finally:
        scratch.apply(mutant, "-R")
    # A test that nobody expected to fail may fail for a reason of its own.
    if killer is not None and not is_named and "::" in killer:
        scratch.build_modules()
        if scratch.first_failure([killer.split("[")[0]], 1) is not None:
            raise Mistake(f"{killer} fails without the fault as well")
    return killer or ""


def chosen(names: Sequence[str]) -> list[Mutant]:
    paths = sorted(FOLDER.glob("*.patch"))
    unknown = set(names) - {path.stem for path in paths}
    if unknown:
        raise Mistake(f"there are no mutants called {' '.join(sorted(unknown))}")
    return [Mutant.read(path) for path in paths if not names or path.stem in names]


def report(scratch: Scratch, mutants: Sequence[Mutant], workers: int, only_named: bool) -> bool:
    """Prints a row for each mutant as it goes; returns whether all were killed."""
    print("| mutant | fault | killed by | seconds |\n|---|---|---|--:|", flush=True)
    left: list[str] = []
    for mutant in mutants:
        begin, name, killer = time.monotonic(), mutant.path.stem, ""
        try:
            killer = judge(scratch, mutant, workers, only_named)
            result = killer or "NOTHING"
        except Mistake as mistake:
            print(f"{name}: {mistake}", file=sys.stderr, flush=True)
            result = "ERROR: it does not apply, does not compile, or cannot be tested"
        left += [] if killer else [name]
        seconds = time.monotonic() - begin
        print(f"| {name} | {mutant.fault} | {result} | {seconds:.0f} |", flush=True)
    print(f"\n{len(mutants) - len(left)} of {len(mutants)} were killed", *left, sep=", not ")
    return not left


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants faults and reports which tests notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants; default: all")
    parser.add_argument("--scratch", type=Path, help="a folder that is kept and used again")
    parser.add_argument("--workers", type=int, default=1, help="processes that run the tests")
    parser.add_argument("--only-named", action="store_true", help="run the patch's tests only")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            mutants, scratch = chosen(options.names), Scratch(folder.resolve())
            scratch.tree.mkdir(parents=True, exist_ok=True)
            scratch.prepare()
        except Mistake as mistake:
            print(mistake, file=sys.stderr)
            return 1
        return 0 if report(scratch, mutants, options.workers, options.only_named) else 1


if __name__ == "__main__":
    sys.exit(main())
