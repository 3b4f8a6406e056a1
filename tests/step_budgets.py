"""How many launches, torch kernels and allocations each training step may take: one table.

.venv/bin/python tests/step_budgets.py        writes what is counted now into the table

test_step_budgets.py fails where a step takes more, and where it takes less than the table says. A
launch is one of Triton, a torch kernel is an op of torch that is no view and no allocation, and an
allocation is an op that does nothing else. They are those of N = 4,096 and D = 512 in bfloat16, and
of the torch of constraints.txt: some are autograd's own.
"""

from __future__ import annotations

import re
from pathlib import Path

from step_counts import Counts, Step, counts_of_all

TABLE = """
                             forward                          backward
step                         launches  kernels  allocations    launches  kernels  allocations
clip                                3        0            8           2        3            5
clip, no gradient                   3        0            8           0        0            0
clip, float16                       3        0            8           4        3            7
clip, float32                       3        0            8           2        3            4
clip, label smoothing               3       29           11           3       43            9
siglip                              3        2           11           1        1            5
siglip, no gradient                 3        0           10           0        0            0
siglip, float32                     3        2           11           1        1            5
softmax_similarity                  3        2           11           3        2            9
softmax_similarity, labels          3       88           17           3       45            8
sigmoid_similarity                  3        3           12           2        4            4
sigmoid_similarity, labels          3        8           13           5       12           11
info_nce                            3        4           11           3        8           14
info_nce, queue                     6       11           20           6       25           29
nt_xent                             3       12            9           3       11           14
sup_con                             3       53            9           3       18           14
project                             1        1            6           1        2            4
project, layer norm                 2        1           10           4        2            9
l2_normalize                        1        0            3           1        0            1
hardest_negatives                   2       90            7           0       33            1
matryoshka                         10       17           30          16       27           28
distill_clip                        0      558            9           0      657            0
symile                              9       14           28          15       50           24
gram_loss                           0      109            5           0      225            1
gram                                0        5            2           0        9            7
clip, workspace 0                   3        0            8          14       22            6
"""
HEADER = (
    f"{'':<29}{'forward':<33}backward\n"
    f"{'step':<29}{2 * 'launches  kernels  allocations    '}".rstrip()
    + "\n"
)


def row(name: str, step: Step) -> str:
    """The line of a step in the table."""
    forward, backward = (
        f"{each.launches:>8}{each.kernels:>9}{each.allocations:>13}" for each in step
    )
    return f"{name:<29}{forward}{'':4}{backward}\n"


def budgets() -> dict[str, Step]:
    """The table, by step."""
    found = {}
    for line in TABLE.removeprefix("\n" + HEADER).splitlines():
        name, *numbers = line.rsplit(maxsplit=6)
        sizes = [int(number) for number in numbers]
        found[name] = Step(Counts(*sizes[:3]), Counts(*sizes[3:]))
    return found


def main() -> None:
    """Replace the table in this file."""
    file = Path(__file__)
    rows = "".join(row(name, step) for name, step in counts_of_all().items())
    table = f'TABLE = """\n{HEADER}{rows}"""\n'
    source = file.read_text()
    file.write_text(re.sub(r'^TABLE = """\n.*?^"""\n', table, source, count=1, flags=re.S | re.M))
    print(HEADER + rows, end="")


if __name__ == "__main__":
    main()
