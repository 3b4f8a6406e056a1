"""Who waits for whom in Hopper's tile kernels, on a model of a CTA (hopper_ring.py): no GPU needed.

Each case runs under several seeds, in each of which roles and loads have other speeds. Faults that
are planted in the source show that the model would notice them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("triton")
from hopper_cta import Barrier, Fault
from hopper_ring import KERNELS, Call, run, text_of

from mmcore.backends.triton.hopper import launch

# Blocks of rows, tiles of columns, tiles of a strip, CTAs; by the tiles of each item. A warpgroup
# has no tile of an item of one tile.
ITEMS = {
    "1": (1, 1, 1, 1),
    "1+1+1": (3, 1, 1, 1),
    "3": (1, 3, 3, 1),
    "2+2+1+1": (2, 3, 2, 1),
    "3+3+3": (3, 3, 3, 1),
    "1+1+1 and 1+1+1": (3, 2, 1, 2),
}
# Faults that are planted are looked for in these.
SEARCHED = [(1, 1, 2), (1, 1, 8), (2, 2, 4), (3, 0, 5), (3, 1, 4), (3, 3, 2)]
SEARCHED_SEEDS = 40
# K, RES and SLOTS: mostly the fewest slots that serve.
RINGS = [
    (1, 0, 2), (1, 1, 1), (2, 0, 4), (2, 1, 3), (2, 2, 2), (3, 0, 4), (3, 2, 3),
    (4, 0, 4), (4, 1, 4), (4, 3, 3), (4, 4, 2),
    *SEARCHED,
]  # fmt: skip
SEEDS = 16
# The kernel, and whether it has all results, of what launch.py makes.
LAUNCHED = {
    "SUMS": ("exponential_sums", False),
    "SUMS_KEPT": ("exponential_sums", True),
    "GRADIENT": ("gradient", True),
    "SIGMOID": ("sigmoid_tile", True),
}


def call_of(ring: tuple[int, int, int], items: str, seed: int, kernel: str | None = None) -> Call:
    """Every kernel in turn, with all results or without, strips begun at one place or several."""
    name = kernel or list(KERNELS)[seed % 3]
    return Call(name, *ITEMS[items], *ring, (1, 8)[seed % 2], seed // 2 % 2 == 0)


@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("ring", RINGS, ids=lambda ring: "K={}-RES={}-SLOTS={}".format(*ring))
def test_roles_wait_for_each_other(ring: tuple[int, int, int], items: str) -> None:
    """Catches a wait or an arrival that is missing, at the wrong barrier or of the wrong parity."""
    for seed in range(SEEDS):
        run(call_of(ring, items, seed), seed)


@pytest.mark.parametrize("chunks", [1, 6, 9])
@pytest.mark.parametrize("name", LAUNCHED)
def test_rings_that_are_launched(name: str, chunks: int) -> None:
    """Catches a division of shared memory with which the roles do not go on."""
    ring, (kernel, is_full) = getattr(launch, name), LAUNCHED[name]
    sizes = launch.ring_of(ring, chunks * launch.BK)[:3]
    for seed in range(4):
        for items in ("3", "2+2+1+1"):
            run(Call(kernel, *ITEMS[items], *sizes, ring.spread, is_full), seed)


@pytest.mark.parametrize(("K", "RES", "SLOTS"), [(1, 0, 1), (2, 1, 2), (3, 0, 3), (4, 4, 1)])
def test_the_model_notices_a_ring_that_is_too_small(K: int, RES: int, SLOTS: int) -> None:
    """One product is always in flight while the next one's chunks are loaded."""
    with pytest.raises(Fault, match="all wait"):
        run(call_of((K, RES, SLOTS), "3", 0), 0)


def test_a_parity_deceives_whoever_comes_two_phases_late() -> None:
    barrier = Barrier()
    barrier.init(1)
    assert not barrier.lets_pass(0)
    barrier.arrive(1)
    assert barrier.lets_pass(0)
    barrier.arrive(1)
    assert not barrier.lets_pass(0)


def test_a_seed_repeats_a_fault() -> None:
    """Catches a model of which a failure cannot be repeated."""
    text, found = changed("ring", "num_outstanding=1", "num_outstanding=2"), []
    for _ in range(2):
        with pytest.raises(Fault) as fault:
            search("ring", text)
        found.append((str(fault.value), fault.value.__notes__))
    assert found[0] == found[1]


def search(module: str, text: str, kernel: str | None = None) -> None:
    """Runs the changed module; raises the fault that is found."""
    for seed in range(SEARCHED_SEEDS):
        for ring in SEARCHED:
            for items in ITEMS:
                run(call_of(ring, items, seed, kernel), seed, {module: text})


def waits_and_arrivals() -> Iterator[Any]:
    """Every call of a barrier in ring.py, and the text of that file without it."""
    text = text_of("ring")
    lines, seen = text.splitlines(keepends=True), set[str]()
    for function in ast.parse(text).body:
        for node in ast.walk(function):
            if not isinstance(function, ast.FunctionDef) or not isinstance(node, ast.Expr):
                continue
            source = ast.unparse(node)
            if source.startswith("mbarrier."):
                first = lines[node.lineno - 1]
                instead = first[: len(first) - len(first.lstrip())] + "pass\n"
                name = f"{function.name}: {source.removeprefix('mbarrier.').split(',')[0]}"
                name += f" in line {node.lineno}" if name in seen else ""
                seen.add(name)
                without = [*lines[: node.lineno - 1], instead, *lines[node.end_lineno :]]
                yield pytest.param("".join(without), id=name)


@pytest.mark.parametrize("text", [*waits_and_arrivals()])
def test_the_model_notices_what_is_left_out_of_the_ring(text: str) -> None:
    """So every one of them is needed."""
    with pytest.raises(Fault):
        search("ring", text)


def changed(module: str, old: str, new: str) -> str:
    text = text_of(module)
    assert text.count(old) >= 1, f"{module}.py has no {old}: plant the fault in the new code"
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_outstanding=1", "num_outstanding=2"),
        ("num_outstanding=0", "num_outstanding=1"),
        ("x_empty.index(k), count=2", "x_empty.index(k), count=1"),
        ("pred=is_last & (k > 0)", "pred=k > 0"),
        ("pred=k > RES", "pred=k > 0"),
        ("mbarrier.wait(empty, phase ^ 1)", "mbarrier.wait(empty, phase)"),
        ("turn & 1, BK", "0, BK"),
        ("x_full.index(k), turn & 1", "x_full.index(k), 0"),
        ("tile // 2 + 1 - WHICH", "tile // 2 + WHICH"),
        ("order.index(1 - WHICH)", "order.index(WHICH)"),
        ("n + SLOTS - 1", "n"),
        ("2 * SLOTS - 2", "2 * SLOTS - 1"),
        ("desc, [row, k * BK]", "desc, [row, 0]"),
        ("gl.where(moved < last, moved, moved - (last - first))", "moved"),
    ],
)
def test_the_model_notices_changes_of_the_ring(old: str, new: str) -> None:
    with pytest.raises(Fault):
        search("ring", changed("ring", old, new))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("begun += last - first", "pass"),
        ("turn += 1", "pass"),
        ("pass_by(barriers, turn, RES)", "pass"),
        ("((begun + WHICH) & 1)", "WHICH"),
        ("begun + tile - first", "tile"),
        ("tile + 2 >= last", "tile + 1 >= last"),
        ("tile + 2 >= last", "True"),
        ("first, last, spread, BN)", "first, last, 1, BN)"),
        ("ring, second, barriers", "ring, first, barriers"),
    ],
)
def test_the_model_notices_changes_of_the_walk(kernel: str, old: str, new: str) -> None:
    """In what every kernel repeats."""
    with pytest.raises(Fault):
        search(kernel, changed(kernel, old, new), kernel)


@pytest.mark.parametrize("left_out", ["tma.store_wait(pendings=0)", "fence_async_shared()"])
def test_the_model_notices_what_is_left_out_of_stores(left_out: str) -> None:
    with pytest.raises(Fault):
        search("epilogue", changed("epilogue", left_out, "pass"))
