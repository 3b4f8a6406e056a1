"""The kernels' barrier protocol with random interleaving: deadlocks, slots overwritten or misread.

A copy by hand of the control flow of gluon_kernels.py; no GPU.
"""
import random, sys

class Barrier:
    def __init__(self, count): self.count, self.pending, self.phase, self.tx = count, count, 0, 0
    def _check(self):
        if self.pending == 0 and self.tx == 0:
            self.phase ^= 1; self.pending = self.count
    def arrive(self):
        assert self.pending > 0; self.pending -= 1; self._check()
    def expect(self, b):
        assert self.pending > 0; self.tx += b; self.pending -= 1; self._check()
    def complete(self, b):
        self.tx -= b; assert self.tx >= 0; self._check()
    def done(self, parity): return self.phase != parity   # phase `parity` has completed

def simulate(seed, K, RES, SLOTS, row_blocks, tiles, strip_tiles, programs, pid):
    rnd = random.Random(seed)
    items = row_blocks * -(-tiles // strip_tiles)
    full = [Barrier(1) for _ in range(SLOTS)]; empty = [Barrier(1) for _ in range(SLOTS)]
    x_full = [Barrier(1) for _ in range(max(RES, 1))]; x_empty = [Barrier(2) for _ in range(max(RES, 1))]; order = [Barrier(1), Barrier(1)]
    ring, xk = [None] * SLOTS, [None] * max(RES, 1)
    inflight, reading, done = [], {}, []
    def item_of(item):
        b, s = item % row_blocks, item // row_blocks
        return b, s, s * strip_tiles, min((s + 1) * strip_tiles, tiles)
    def load(mem, at, bar, what):
        assert (id(mem), at) not in reading.values(), "overwritten while read"
        mem[at] = None; bar.expect(1); inflight.append((mem, at, bar, what))
    def producer():
        n = turn = 0
        for item in range(pid, items, programs):
            b, s, first, last = item_of(item)
            for t in range(first, last):
                for k in range(K):
                    if k < RES and t == first:
                        while not x_empty[k].done((turn & 1) ^ 1): yield
                        load(xk, k, x_full[k], ("x", b, k))
                    if k >= RES:
                        while not empty[n % SLOTS].done(((n // SLOTS) & 1) ^ 1): yield
                        load(ring, n % SLOTS, full[n % SLOTS], ("x", b, k)); n += 1
                    while not empty[n % SLOTS].done(((n // SLOTS) & 1) ^ 1): yield
                    load(ring, n % SLOTS, full[n % SLOTS], ("y", t, k)); n += 1
                    yield
            turn += 1
    def consumer(W):
        ITEMS = 2 * K - RES; begun = turn = 0
        outstanding = []  # wgmmas in flight: what they read
        def issue(k, *reads):
            keys = []
            for r, (mem, at, want) in enumerate(reads):
                assert mem[at] == want, (mem[at], want)
                key = (W, k, r); reading[key] = (id(mem), at); keys.append((key, mem, at, want))
            outstanding.append(keys)
        def wait(left):
            while len(outstanding) > left:
                for key, mem, at, want in outstanding.pop(0):
                    assert mem[at] == want; del reading[key]
        for item in range(pid, items, programs):
            b, s, first, last = item_of(item)
            own = first + ((begun + W) & 1)
            if own >= last:
                for k in range(RES):
                    while not x_full[k].done(turn & 1): yield
                    x_empty[k].arrive()
            for t in range(own, last, 2):
                g = begun + t - first
                while not order[W].done((g // 2 + 1 - W) & 1): yield
                n = g * ITEMS; is_last = t + 2 >= last
                for k in range(RES):
                    while not x_full[k].done(turn & 1): yield
                    while not full[n % SLOTS].done((n // SLOTS) & 1): yield
                    issue(k, (xk, k, ("x", b, k)), (ring, n % SLOTS, ("y", t, k))); yield
                    wait(1)
                    if k > 0: empty[(n + SLOTS - 1) % SLOTS].arrive()
                    if is_last and k > 0: x_empty[max(k - 1, 0)].arrive()
                    n += 1
                for k in range(RES, K):
                    while not full[n % SLOTS].done((n // SLOTS) & 1): yield
                    while not full[(n + 1) % SLOTS].done(((n + 1) // SLOTS) & 1): yield
                    issue(k, (ring, n % SLOTS, ("x", b, k)), (ring, (n + 1) % SLOTS, ("y", t, k))); yield
                    wait(1)
                    if k > 0: empty[(n + SLOTS - 1) % SLOTS].arrive()
                    if k > RES: empty[(n + 2 * SLOTS - 2) % SLOTS].arrive()
                    if RES > 0 and is_last and k == RES: x_empty[RES - 1].arrive()
                    n += 2
                order[1 - W].arrive()
                yield
                wait(0)
                empty[(n + SLOTS - 1) % SLOTS].arrive()
                if RES < K: empty[(n + 2 * SLOTS - 2) % SLOTS].arrive()
                elif is_last: x_empty[RES - 1].arrive()
                done.append((b, t))
                for _ in range(rnd.choice([0, 3, 60]) * (1 + (W ^ (seed & 1)))): yield
            begun += last - first; turn += 1
    threads = [producer(), consumer(0), consumer(1)]
    idle = 0
    while threads or inflight:
        pick = rnd.randrange(len(threads) + 1)
        if pick == len(threads):
            if inflight:
                mem, at, bar, what = inflight.pop(rnd.randrange(len(inflight)))
                mem[at] = what; bar.complete(1); idle = 0
            continue
        state = (len(done), len(inflight), tuple(b.phase * 8 + b.pending for b in full + empty + x_full + x_empty + order), len(reading))
        try: next(threads[pick])
        except StopIteration: threads.pop(pick)
        new = (len(done), len(inflight), tuple(b.phase * 8 + b.pending for b in full + empty + x_full + x_empty + order), len(reading))
        idle = idle + 1 if new == state and not inflight else 0
        assert idle < 5000, "deadlock"
    want = [(i % row_blocks, t) for i in range(pid, items, programs) for t in range(*item_of(i)[2:])]
    assert sorted(done) == sorted(want), "tiles missing"
    return len(done)

if __name__ == "__main__":
    rnd = random.Random(1); total = 0
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 400):
        K = rnd.randrange(1, 9); RES = rnd.choice([K, K, rnd.randrange(0, K + 1), 0])
        SLOTS = rnd.randrange(2 if RES == K else 4, 9)
        rb, tl = rnd.randrange(1, 5), rnd.randrange(1, 8); st = rnd.randrange(1, tl + 1)
        pr = rnd.randrange(1, 4)
        for pid in range(pr): total += simulate(seed, K, RES, SLOTS, rb, tl, st, pr, pid)
    print("ok,", total, "tiles")
