"""What a step takes in another commit, and here: python benchmarks/launch_counts.py [COMMIT].

Launches, torch kernels and allocations of tests/step_counts.py, as a table in Markdown. No kernel
runs. The default commit is 9efbf71.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

from trees import REPOSITORY, python_for, tree_of

BEFORE = "9efbf71"
Counts = dict[str, list[list[int]]]


def counts(tree: Path | None) -> Counts:
    """Of every step, with the package and the fake GPU of a tree, or those here."""
    command, environment = python_for(tree)
    tests = str(REPOSITORY / "tests")
    path = [environment["PYTHONPATH"], tests] if tree is None else []
    if tree is not None:
        path = [str(tree / "tests"), tests, environment["PYTHONPATH"]]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    # -P: neither the folder of the script nor the current one comes before those of the tree.
    done = subprocess.run(
        [*command, "-P", "-m", "step_counts"], env=environment, stdout=subprocess.PIPE, check=True
    )
    found: Counts = json.loads(done.stdout)
    return found


def main() -> None:
    """Count in both and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("commit", nargs="?", default=BEFORE, help=f"default {BEFORE}")
    commit = parser.parse_args().commit
    before, now = counts(tree_of(commit, "mmcore", "tests/fake_gpu.py")), counts(None)
    print(f"Forward + backward, {commit} → here\n")
    print("| step | Triton launches | torch kernels | allocations |\n|--|--|--|--|")
    for name, step in now.items():
        cells = []
        for (old, old_back), (new, new_back) in zip(
            zip(*before[name], strict=True), zip(*step, strict=True), strict=True
        ):
            cells.append(f"{old} + {old_back} → {new} + {new_back}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
