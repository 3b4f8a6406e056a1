"""Models of what Hopper's tile kernels import of Triton, for hopper_ring.py.

- Numbers are inert: none may decide who waits for what, and what would ask one hears no.
- A product reads its two buffers from its issue until the wait that completes it. It is a fault if
  one of them does not hold the chunk that the tile needs next, of the same rows or columns.
- It is a fault to read sums while a product is under way.
- A store reads its buffer until the wait that completes it. It is a fault to store what was written
  without a fence.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace
from typing import Any

from hopper_cta import Barrier, Buffer, Chunk, Fault, Load, Machine, Role

CHUNK = 64  # BK

Steps = Generator[None, None, None]


class Inert:
    """A number, tensor, layout or pointer of which nothing is known."""

    def read(self) -> None:
        """Its value is needed."""

    def __call__(self, *operands: object, **options: object) -> Inert:
        """Whatever is computed of it."""
        for each in (self, *operands):
            if isinstance(each, Inert):
                each.read()
        return NOTHING

    def __getattr__(self, name: str) -> Inert:
        if name.startswith("__"):
            raise AttributeError(name)
        return self()

    def __bool__(self) -> bool:
        self.read()
        return False

    def split(self) -> tuple[Inert, Inert]:
        return self(), self()


NOTHING = Inert()
for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "neg", "and", "rand", "or", "ror", "lt", "le",
    "gt", "ge", "eq", "ne", "floordiv", "rfloordiv",
):  # fmt: skip
    setattr(Inert, f"__{_name}__", Inert.__call__)


def are_inert(*numbers: object) -> bool:
    return any(isinstance(each, Inert) for each in numbers)


class Sums(Inert):
    """A tile that a warpgroup multiplies."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.chunks: list[tuple[Chunk, Chunk]] = []

    def read(self) -> None:
        if self.role.products.under_way:
            raise Fault(f"{self.role.name} reads sums while a product is under way")

    def add(self, x: Buffer, y: Buffer, is_first: bool) -> None:
        if is_first != (not self.chunks):
            raise Fault(f"{self.role.name} has {len(self.chunks)} products, use_acc={not is_first}")
        x_before, y_before = self.chunks[0] if self.chunks else (x.holds, y.holds)
        self.chunks.append((self.needed("x", x_before, x), self.needed("y", y_before, y)))

    def needed(self, matrix: str, before: Chunk | None, buffer: Buffer) -> Chunk:
        """The chunk in the buffer, if it is that."""
        depth = len(self.chunks) * CHUNK
        if buffer.is_loading:
            raise Fault(f"{self.role.name} multiplies {buffer.name}, whose load has not landed")
        found, row = buffer.holds, before.row if before is not None else "any"
        if found is None or found != (matrix, row, depth):
            needed = f"{matrix} at row {row if self.chunks else 'any'}, feature {depth}"
            raise Fault(f"{self.role.name} multiplies {buffer} as {needed}")
        return found


class Counter(int):
    """Of a loop: a kernel may ask for a wider type."""

    def to(self, dtype: object) -> Counter:
        return self


def counter_of(name: str) -> Callable[[Any, Any], Any]:
    plain = getattr(int, name)

    def compute(a: Any, b: Any) -> Any:
        found = plain(a, b)
        return found if found is NotImplemented else Counter(found)

    return compute


for _name in ("add", "radd", "mul", "rmul", "floordiv", "mod"):
    setattr(Counter, f"__{_name}__", counter_of(f"__{_name}__"))


def counters(*limits: int) -> Iterator[Counter]:
    return map(Counter, range(*limits))


class Array:
    """Buffers or barriers."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def index(self, i: int) -> Any:
        if not 0 <= i < len(self.items):
            raise Fault(f"no number {i} besides {self.items[0].name}")
        return self.items[i]

    def call(self, name: str) -> None:
        for i, item in enumerate(self.items):
            item.name = f"{name}[{i}]"


class Box(Buffer):
    """What a role writes and stores."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.unfenced_by: Role | None = None

    def store(self, numbers: Inert) -> Steps:
        numbers.read()
        yield from self.device.pause(f"writes {self.name}")
        self.overwrite()
        self.unfenced_by = self.device.current


class Language:
    """`gl`: what counts or takes memory; all else is about numbers."""

    def __init__(
        self, program: int, programs: int, allocate: Callable[..., Any], start: Callable[..., None]
    ) -> None:
        self.program, self.programs = program, programs
        self.allocate_shared_memory, self.warp_specialize = allocate, start
        self.static_range = range

    def __getattr__(self, name: str) -> Inert:
        return NOTHING

    def program_id(self, axis: int) -> int:
        return self.program

    def num_programs(self, axis: int) -> int:
        return self.programs

    def to_tensor(self, number: int) -> int:
        return number

    def cdiv(self, a: Any, b: Any) -> Any:
        return NOTHING(a, b) if are_inert(a, b) else -(-a // b)

    def minimum(self, a: Any, b: Any) -> Any:
        return NOTHING(a, b) if are_inert(a, b) else min(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return NOTHING(a, b) if are_inert(a, b) else max(a, b)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, Inert):
            return condition(a, b)
        return a if condition else b


class Device(Machine):
    """What the kernels import of Triton's `hopper`."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.boxes: list[Box] = []

    def modules(self) -> SimpleNamespace:
        barriers = SimpleNamespace(
            MBarrierLayout=lambda: Barrier, init=Barrier.init, expect=self.expect,
            arrive=self.arrive, wait=self.wait,
        )  # fmt: skip
        copies = SimpleNamespace(
            async_load=self.load, async_store=self.store_box, store_wait=self.wait_for_stores
        )
        return SimpleNamespace(
            mbarrier=barriers, tma=copies, fence_async_shared=self.fence,
            warpgroup_mma=self.multiply, warpgroup_mma_init=self.begin_tile,
            warpgroup_mma_wait=self.wait_for_products,
        )  # fmt: skip

    def expect(self, barrier: Barrier, bytes: int, pred: bool = True) -> Steps:
        yield from self.pause(f"expects {bytes} bytes at {barrier.name}")
        if pred:
            barrier.arrive(1, bytes)

    def arrive(self, barrier: Barrier, count: int = 1, pred: bool = True) -> Steps:
        yield from self.pause(f"{'arrives' if pred else 'does not arrive'} at {barrier.name}")
        if pred:
            barrier.arrive(count)

    def wait(self, barrier: Barrier, phase: int) -> Steps:
        yield from self.pause("waits", barrier, phase)

    def load(self, box: Any, at: list[int], barrier: Barrier, buffer: Buffer) -> Steps:
        yield from self.pause(f"loads {box.name} at {at} into {buffer.name}")
        buffer.overwrite()
        buffer.holds, buffer.is_loading = Chunk(box.name, *at), True
        self.loads.append(Load(buffer, box.block_type.nbytes, barrier))

    def begin_tile(self, sums: Inert) -> Sums:
        if not isinstance(sums, Sums):
            self.current.tile = sums = Sums(self.current)
        return sums

    def multiply(
        self, x: Buffer, y: Buffer, sums: Sums, use_acc: bool = True, is_async: bool = False
    ) -> Generator[None, None, Sums]:
        yield from self.pause(f"multiplies {x} and {y}")
        sums.add(x, y, not use_acc)
        self.current.products.begin(x, y)
        if not is_async:
            self.current.products.complete(0)
        return sums

    def wait_for_products(
        self, num_outstanding: int, deps: tuple[Any, ...]
    ) -> Generator[None, None, Any]:
        yield from self.pause(f"waits for all products but {num_outstanding}")
        self.current.products.complete(num_outstanding)
        return deps[0] if len(deps) == 1 else deps

    def allocate(self, dtype: object, shape: list[int], layout: object) -> Any:
        """Barriers, or buffers, or one buffer."""
        if layout is Barrier:
            return Array([Barrier() for _ in range(shape[0])])
        if len(shape) == 3:
            return Array([Buffer() for _ in range(shape[0])])
        self.boxes.append(Box(self))
        return self.boxes[-1]

    def fence(self) -> None:
        for box in self.boxes:
            if box.unfenced_by is self.current:
                box.unfenced_by = None

    def store_box(self, matrix: object, at: list[int], box: Box) -> Steps:
        yield from self.pause(f"stores {box.name}")
        if box.unfenced_by is not None:
            raise Fault(f"{self.current.name} stores {box.name} without a fence")
        self.current.stores.begin(box)

    def wait_for_stores(self, pendings: int) -> Steps:
        yield from self.pause(f"waits for all stores but {pendings}")
        self.current.stores.complete(pendings)
