"""Shared memory and roles of a CTA: a model that notices faults of synchronisation.

- A wait for a parity passes when the barrier is not in a phase of that parity: also when it ran
  ahead by two phases, which deceives the waiter. An arrival too many is a fault.
- A load leaves its buffer undefined until it lands; loads land in any order. It is a fault to write
  a buffer whose load has not landed, or that a product or a store may still read.
- It is a fault if all roles wait and no load is under way, or if the CTA ends before a load does.

Roles are generators, which give way at each synchronising call: another one may go on then, or a
load may land. A seed decides.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

# After about so many steps roles and loads change how fast they are, by up to the factor.
STEPS, FASTEST = 100, 1e12


class Fault(Exception):
    """What must not happen."""


class Chunk(NamedTuple):
    """A box of a matrix: its first row, and its first feature."""

    matrix: str
    row: int
    depth: int


class Barrier:
    def __init__(self) -> None:
        self.name = "a barrier"
        self.count = self.missing = self.bytes = self.phase = 0

    def init(self, count: int) -> None:
        self.count = self.missing = count

    def arrive(self, count: int, size: int = 0) -> None:
        """The bytes that it brings are those that are still to land."""
        self.missing -= count
        if self.missing < 0:
            raise Fault(f"{self.name} has more than {self.count} arrivals in phase {self.phase}")
        self.land(-size)

    def land(self, size: int) -> None:
        self.bytes -= size
        if self.missing == 0 and self.bytes == 0:
            self.phase, self.missing = self.phase + 1, self.count

    def lets_pass(self, parity: int) -> bool:
        return (self.phase & 1) != parity


class Buffer:
    def __init__(self) -> None:
        self.name = "a buffer"
        self.holds: Chunk | None = None
        self.is_loading = False
        self.readers: list[str] = []

    def __str__(self) -> str:
        return f"{self.name}, which holds {self.holds and tuple(self.holds)}"

    def permute(self, order: tuple[int, int]) -> Buffer:
        return self

    def overwrite(self) -> None:
        """Begins to write."""
        if self.is_loading:
            raise Fault(f"{self.name} is written before its load of {self.holds} has landed")
        if self.readers:
            raise Fault(f"{self.name} is written while {self.readers[0]} may read it")
        self.holds = None


class Load(NamedTuple):
    buffer: Buffer
    size: int
    barrier: Barrier

    def land(self) -> None:
        self.buffer.is_loading = False
        self.barrier.land(self.size)


class Reads:
    """Products, or stores, of one role: each reads buffers until it is complete."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.under_way: list[tuple[Buffer, ...]] = []

    def begin(self, *buffers: Buffer) -> None:
        for buffer in buffers:
            buffer.readers.append(self.role)
        self.under_way.append(buffers)

    def complete(self, but: int) -> None:
        """All but the last ones."""
        while len(self.under_way) > but:
            for buffer in self.under_way.pop(0):
                buffer.readers.remove(self.role)


class Role:
    """A warp, or a warpgroup."""

    def __init__(self, name: str) -> None:
        self.name, self.speed = name, 1.0
        self.deed = "begins"
        self.barrier: Barrier | None = None  # that it waits for, and the parity
        self.parity = 0
        self.products, self.stores = Reads(name), Reads(name)
        self.tile: Any = None  # that it last began to multiply

    def __str__(self) -> str:
        if self.barrier is None:
            return f"{self.name} {self.deed}"
        state = f"in phase {self.barrier.phase}, {self.barrier.missing} arrivals missing"
        return f"{self.name} waits for parity {self.parity} of {self.barrier.name} ({state})"

    def is_ready(self) -> bool:
        return self.barrier is None or self.barrier.lets_pass(self.parity)


class Machine:
    """The roles of a CTA and its loads under way."""

    current: Role  # that runs

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.live: list[Role] = []
        self.loads: list[Load] = []
        self.steps, self.load_speed = 0, 1.0
        self.log: deque[str] = deque(maxlen=16)

    def run(self, parts: Mapping[Role, Generator[None, None, None]]) -> None:
        self.live = list(parts)
        try:
            while self.live:
                self.current = self._next()
                try:
                    next(parts[self.current])
                except StopIteration:
                    self.live.remove(self.current)
        except Fault as fault:
            fault.add_note("The last steps:\n  " + "\n  ".join(self.log))
            raise
        if self.loads:
            raise Fault(f"the CTA ends before the load into {self.loads[0].buffer.name} has landed")

    def pause(self, deed: str, barrier: Barrier | None = None, parity: int = 0) -> Iterator[None]:
        """Before the running role does so, or passes the barrier: others may go first."""
        role = self.current
        role.deed, role.barrier, role.parity = deed, barrier, parity
        yield
        self.log.append(str(role))

    def _next(self) -> Role:
        """Lands loads until it is a role's turn."""
        while True:
            ready = [role for role in self.live if role.is_ready()]
            if not ready and not self.loads:
                raise Fault("all wait: " + "; ".join(map(str, self.live)))
            self.steps -= 1
            if self.steps < 0:
                self._change_speeds()
            place = self.random.random() * sum([role.speed for role in ready], self._loading())
            for role in ready:
                place -= role.speed
                if place < 0:
                    return role
            if self.loads:
                self.loads.pop(int(self.random.random() * len(self.loads))).land()

    def _loading(self) -> float:
        """How fast loads are."""
        return self.load_speed if self.loads else 0.0

    def _change_speeds(self) -> None:
        self.steps = int(2 * STEPS * self.random.random())
        self.load_speed = FASTEST ** self.random.random()
        for role in self.live:
            role.speed = FASTEST ** self.random.random()
