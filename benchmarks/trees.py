"""The package as another commit has it, beside this checkout's: sources, and a Python for them."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TREES = REPOSITORY / "build" / "trees"


class MissingCommitError(RuntimeError):
    """There is no git here, or it does not have the commit."""


def tree_of(commit: str, *paths: str) -> Path:
    """A folder with these paths as the commit has them; taken out of git once."""
    command = ["git", "--no-optional-locks", "-C", str(REPOSITORY)]
    try:
        named = subprocess.run(
            [*command, "rev-parse", "--verify", f"{commit}^{{commit}}"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
        place = TREES / named.stdout.strip()
        if all((place / path).exists() for path in paths):
            return place
        done = subprocess.run(
            [*command, "archive", commit, *paths], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingCommitError(f"git has no commit {commit} here") from error
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(place, filter="data")
    return place


def python_for(tree: Path | None) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a Python whose `mmcore` is that of the tree, or the one here.

    The tree's C++ is not built: its Triton launches are Python and do without. `-S` leaves out the
    finder of an editable install, which would come before PYTHONPATH.
    """
    left_out = ("TRITON_INTERPRET", "PYTHONPATH")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in left_out and not name.startswith("MMCORE_")
    }
    path = [str(tree or REPOSITORY), *(entry for entry in sys.path if entry)]
    kept["PYTHONPATH"] = os.pathsep.join(path)
    return [sys.executable, *(["-S"] if tree else [])], kept
