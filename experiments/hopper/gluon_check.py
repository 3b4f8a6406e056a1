"""Correctness, then TFLOP/s, of gluon_kernels.py on a Hopper GPU. PYTHONPATH=experiments/hopper python3 experiments/hopper/gluon_check.py

Every job is a process of its own: they compile at once, then take the GPU one after another, under a
lock, and each is ended by its alarm 12 s after it got the lock.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time

CHECKS = {
    "check sums": ("sums", False),
    "check sums kept": ("sums", True),
    "check gradient": ("gradient", True),
}
# name: kind, kept, BM, BN, BK, SLOTS, RES
TIMED = {
    "mm": ("mm",),
    "sums 128x128x64 slots 6": ("sums", False, 128, 128, 64, 6, -1),
    "sums 128x128x64 slots 5": ("sums", False, 128, 128, 64, 5, -1),
    "sums 128x128x64 slots 4": ("sums", False, 128, 128, 64, 4, -1),
    "sums 128x128x64 slots 8 res 6": ("sums", False, 128, 128, 64, 8, 6),
    "sums 128x128x32 slots 12": ("sums", False, 128, 128, 32, 12, -1),
    "sums 64x256x64 slots 4": ("sums", False, 64, 256, 64, 4, -1),
    "sums kept 128x128x64 slots 4": ("sums", True, 128, 128, 64, 4, -1),
    "sums kept 128x128x64 slots 5 res 7": ("sums", True, 128, 128, 64, 5, 7),
    "gradient 128x128x64 slots 4": ("gradient", True, 128, 128, 64, 4, -1),
    "gradient 128x128x64 slots 5 res 7": ("gradient", True, 128, 128, 64, 5, 7),
    "gradient 128x128x64 slots 6 res 6": ("gradient", True, 128, 128, 64, 6, 6),
}
# Tiles of a strip, and at how many places of it row blocks begin.
WALKS = [(None, 1), (None, 8), (None, 132), (64, 1), (64, 8)]
SECONDS_ON_GPU = 12
SIZE, DEPTH = int(os.environ.get("GLUON_SIZE", 32768)), 512
FAKE = os.environ.get("GLUON_FAKE") == "1"
DEVICE = "cpu" if FAKE else "cuda"


def say(*words: object) -> None:
    print(*words, flush=True)


def data(rows: int, columns: int, depth: int, scale: float = 20.0, seed: int = 0):
    import torch

    make = torch.Generator(device=DEVICE).manual_seed(seed)

    def normal(*shape: int):
        return torch.randn(*shape, generator=make, device=DEVICE)

    common = normal(1, depth)
    x, y = normal(rows, depth) + common, normal(columns, depth) + common
    x, y = (torch.nn.functional.normalize(it, dim=1).bfloat16() for it in (x, y))
    a = scale / math.log(2)
    high = torch.tensor(a, dtype=torch.float32).item()
    plan = torch.tensor([high, a - high, a], dtype=torch.float32, device=DEVICE)
    target = torch.randint(0, columns, (rows,), generator=make, device=DEVICE)
    target[::7] = -1
    return x, y, plan, target, normal


def exact(x, y, plan, target):
    """Products and E, float64, targets left out; where targets are."""
    import torch

    products = x.double() @ y.double().T
    high, low, shift = plan.double().tolist()
    e = torch.exp2(products * (high + low) - shift)
    is_target = torch.zeros_like(e, dtype=torch.bool)
    if target is not None:
        has = (target >= 0) & (target < y.shape[0])
        at = has.nonzero()[:, 0]
        is_target[at, target[at]] = True
    return products, e.masked_fill(is_target, 0.0), is_target


def worst(got, want) -> float:
    """The largest relative error."""
    if want.numel() == 0:
        return 0.0
    error = (got.double() - want).abs() / want.abs().clamp(min=1e-300)
    return error.nan_to_num(nan=1e9, posinf=1e9).where(want != 0, (got != 0) * 1e9).max().item()


# rows, columns, depth, BM, BN, BK, SLOTS, RES, programs, strip_tiles, first_row, slab_rows, target
SHAPES = [
    (700, 900, 96, 128, 128, 64, 4, -1, None, None, 0, None, "random"),
    (700, 900, 512, 128, 128, 64, 4, -1, None, None, 0, None, "random"),
    (700, 900, 512, 128, 128, 64, 4, -1, 3, 3, 0, None, "diagonal"),
    (700, 900, 512, 128, 128, 64, 4, -1, 2, 1, 256, 301, "random"),
    (1, 1, 512, 128, 128, 64, 4, -1, None, None, 0, None, "none"),
    (130, 1029, 512, 128, 128, 64, 4, -1, 1, 2, 0, None, "outside"),
    (700, 900, 512, 128, 128, 64, 5, 3, 5, 3, 128, 500, "random"),
    (300, 777, 776, 128, 128, 64, 5, 0, 4, 5, 0, None, "diagonal"),
    (5000, 4100, 512, 128, 128, 64, 4, -1, None, None, 0, None, "random"),
]


def check(kind: str, keeps: bool) -> None:
    import torch

    G = kernels()
    for shape in SHAPES:
        rows, columns, depth, *tile, programs, strip, first, slab, targets = shape
        x, y, plan, target, normal = data(rows, columns, depth)
        if targets == "diagonal":
            target = torch.arange(rows, device=DEVICE)
        elif targets == "outside":
            target[::5] = columns
            target[1::5] = 2**40
        elif targets == "none":
            target = None
        slab = rows - first if slab is None else slab
        part = slice(first, first + slab)
        options = dict(
            first_row=first, tile=G.Tile(*tile), programs=programs, strip_tiles=strip,
            spread=1 + rows % 5,
        )  # fmt: skip
        products, e, is_target = exact(x, y, plan, target)
        faults = []
        if kind == "sums":
            kept = None
            if keeps:
                kept_rows = min(rows, max(128, rows // 2 // 128 * 128))
                kept = G.padded(kept_rows, columns, x)
                kept.fill_(-7)
            runs = [
                G.sum_exponentials(x, y, plan, target, slab_rows=slab, kept=kept, **options)
                for _ in range(2)
            ]
            wait()
            same = all(torch.equal(*pair) for pair in zip(*runs))
            row, col = (parts.sum(0, dtype=torch.float64) for parts in runs[0])
            figures = {
                "rows": worst(row, e[part].sum(1)), "columns": worst(col, e[part].sum(0)),
            }  # fmt: skip
            limits = {"rows": 1e-4, "columns": 1e-4}
            if keeps:
                covered = slice(first, min(first + triton_cdiv(slab, tile[0]) * tile[0], kept_rows))
                inner = slice(first, min(first + slab, kept_rows))
                figures["kept"] = worst(kept[inner], e[inner])
                limits["kept"] = 5e-3
                outside = torch.ones(kept_rows, dtype=torch.bool)
                outside[covered] = False
                if not bool((kept[outside.to(DEVICE)] == -7).all()):
                    faults.append("kept rows outside the slab were written")
        else:
            row_factor, col_factor = normal(rows).abs() + 0.5, normal(columns).abs() + 0.5
            at_target = normal(rows)
            want = e * (row_factor.double()[:, None] + col_factor.double()[None, :])
            want = torch.where(is_target, at_target.double()[:, None], want)[part]
            runs = []
            for _ in range(2):
                out = G.padded(slab + 5, columns, x)
                out.fill_(-7)
                parts = G.store_gradient(
                    x, y, plan, row_factor, col_factor, target, at_target, out,
                    chunk_rows=slab, **options,
                )  # fmt: skip
                runs.append((out, parts))
            wait()
            same = all(torch.equal(*pair) for pair in zip(*runs))
            out, parts = runs[0]
            weighed = want * products[part]
            figures = {
                "G": worst(out[:slab], want),
                "scale": abs((parts.sum() - weighed.sum()).item()) / weighed.abs().sum().item(),
            }
            limits = {"G": 5e-3, "scale": 2e-5}
            if not bool((out[slab:] == -7).all()):
                faults.append("rows beyond the chunk were written")
        if not same:
            faults.append("two runs differ")
        faults += [f"{name} off" for name, limit in limits.items() if not figures[name] <= limit]
        shown = " ".join(f"{name} {figure:.1e}" for name, figure in figures.items())
        say(f"{kind}{' kept' * keeps} {shape}: {shown} {'FAULT: ' + ', '.join(faults) if faults else 'ok'}")


def triton_cdiv(a: int, b: int) -> int:
    return -(-a // b)


def wait() -> None:
    if not FAKE:
        import torch

        torch.cuda.synchronize()


def milliseconds(run) -> float:
    import torch

    if FAKE:
        run()
        return 1.0
    for _ in range(3):
        run()
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(4_000_000)  # the host is ahead of the GPU when the clock starts
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[5]


def measure(kind: str, keeps: bool = False, *tile: int) -> None:
    import torch

    G = kernels()
    rows = columns = SIZE
    x, y, plan, target, normal = data(rows, columns, DEPTH)
    target = torch.arange(rows, device=DEVICE)
    for strip, spread in WALKS[: 1 if kind == "mm" else None]:
        if kind == "mm":
            out = x.new_empty(rows, columns)

            def run() -> None:
                torch.mm(x, y.T, out=out)
        elif kind == "sums":
            kept = G.padded(rows, columns, x) if keeps else None

            def run() -> None:
                return G.sum_exponentials(
                    x, y, plan, target, slab_rows=rows, kept=kept, tile=G.Tile(*tile),
                    strip_tiles=strip, spread=spread,
                )  # fmt: skip
        else:
            out = G.padded(rows, columns, x)
            row_factor, col_factor = normal(rows).abs() + 0.5, normal(columns).abs() + 0.5
            at_target = normal(rows)

            def run() -> None:
                return G.store_gradient(
                    x, y, plan, row_factor, col_factor, target, at_target, out, chunk_rows=rows,
                    tile=G.Tile(*tile), strip_tiles=strip, spread=spread,
                )  # fmt: skip

        took = milliseconds(run)
        verdict = ""
        if kind != "mm":  # races may show under full load alone: the first and the last block
            first, again, worst_of_all = run(), None, 0.0
            before = out[::97].clone() if kind == "gradient" else first
            again = run()
            pairs = [(before, out[::97]), (first, again)] if kind == "gradient" else zip(first, again)
            same = all(torch.equal(*pair) for pair in pairs)
            for number, block in ((0, slice(0, tile[0])), (-1, slice(rows - tile[0], rows))):
                products, e, hit = exact(x[block], y, plan, target[block])
                if kind == "sums":
                    found = worst(first[0].sum(0, dtype=torch.float64)[block], e.sum(1))
                    if not FAKE:
                        found = max(found, worst(first[1][number], e.sum(0)))
                    if keeps:
                        found = max(found, worst(kept[block], e) / 40)
                else:
                    want = e * (row_factor.double()[block, None] + col_factor.double())
                    want = torch.where(hit, at_target.double()[block, None], want)
                    found = worst(out[block], want) / 40
                worst_of_all = max(worst_of_all, found)
            verdict = f", error {worst_of_all:.1e} {'ok' if same and worst_of_all < 2e-4 else 'FAULT'}"
            verdict += "" if same else ", two runs differ"
            del first, again, before, pairs, products, e, hit
        speed = 2 * rows * columns * DEPTH / took / 1e9
        say(f"{kind}{' kept' * keeps} {tile} strip {strip} spread {spread}: {took:.3f} ms, {speed:.0f} TFLOP/s{verdict}")


def kernels():
    if not FAKE:
        import gluon_kernels

        return gluon_kernels
    import gluon_fake

    return gluon_fake


def compile_first(kind: str, keeps: bool, tiles: list) -> None:
    """The kernels that the job will launch, while others have the GPU."""
    import torch

    G = kernels()
    done = set()
    for depth, tile, has_target in tiles:
        if (depth, *tile, has_target) in done:
            continue
        done.add((depth, *tile, has_target))
        x, y, plan, target, normal = data(256, 256, depth)
        target = target if has_target else None
        if kind == "sums":
            kept = G.padded(256, 256, x) if keeps else None
            G.sum_exponentials(x, y, plan, target, kept=kept, tile=G.Tile(*tile), warmup=True)
        else:
            ones = normal(256)
            out = G.padded(256, 256, x)
            G.store_gradient(
                x, y, plan, ones, ones, target, ones, out, tile=G.Tile(*tile), warmup=True
            )
    wait()
    del torch


def job(name: str, lock: str) -> None:
    kind, *rest = (CHECKS | TIMED)[name]
    begun, seconds = time.time(), SECONDS_ON_GPU
    if kind != "mm" and not FAKE:
        is_check = name in CHECKS
        tiles = [(s[2], s[3:8], s[12] != "none") for s in SHAPES] if is_check else [(DEPTH, rest[1:], True)]
        try:
            compile_first(kind, rest[0], tiles)
        except Exception as error:  # the run itself will say more
            say(name, "warmup:", repr(error)[:600])
            seconds = 30
    say(f"{name}: compiled after {time.time() - begun:.1f} s")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # The default action ends the process even where it waits inside the driver.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        # A check that its alarm ended leaves this behind: what would hang too is not tried.
        mark = os.path.join(os.path.dirname(lock), f"in_check_{kind}")
        if os.path.exists(mark):
            say(name, "not tried: a check of its kind hung")
            return
        if name in CHECKS:
            open(mark, "w").close()
        try:
            check(kind, *rest) if name in CHECKS else measure(kind, *rest)
        finally:
            if os.path.exists(mark):
                os.remove(mark)
        signal.alarm(0)


def main() -> None:
    begun = time.time()
    wanted = [name for name in CHECKS | TIMED if not sys.argv[1:] or any(it in name for it in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder:

        def start(name: str):
            log = open(os.path.join(folder, name.replace(" ", "_")), "w+")
            command = [sys.executable, "-u", __file__, "--job", name, os.path.join(folder, "lock")]
            return name, log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

        jobs = []
        for name in wanted:  # in this order they reach the lock, more or less
            jobs.append(start(name))
            time.sleep(0.05)
        left = list(jobs)
        while left:
            for entry in list(left):
                name, log, process = entry
                late = time.time() - begun > 110
                if process.poll() is None and not late:
                    continue
                if process.poll() is None:
                    process.kill()
                    process.wait()
                log.seek(0)
                text = log.read()
                code = process.returncode
                state = "" if code == 0 else f" ended with {code}" + " (its alarm: HUNG)" * (code == -14)
                say(f"== {name}{state}, at {time.time() - begun:.1f} s\n{text[-3500:]}")
                left.remove(entry)
            time.sleep(0.1)


if __name__ == "__main__":
    job(sys.argv[2], sys.argv[3]) if sys.argv[1:2] == ["--job"] else main()
