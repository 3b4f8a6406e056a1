"""Hopper's tile kernels as Python, a CTA at a time, which is checked for faults of synchronisation.

The source of mmcore/backends/triton/hopper/ runs as it stands, kernel, producer and warpgroups with
every loop and index; what it imports of Triton is a model (hopper_cta.py, hopper_models.py), and
within each call other roles may have their turn. Besides the faults that those notice, a tile must
be the sum of all its chunks, for the rows and columns for which its warpgroup takes it.

Not modelled: time; threads of one role, which go in step; in which order others see what a role
does to memory, but for the fence before a store; what barriers need before their first use; layouts
and shapes.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Generator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, GeneratorType, SimpleNamespace
from typing import Any, NamedTuple

from hopper_cta import Fault, Role
from hopper_models import CHUNK, NOTHING, Array, Device, Language, Steps, counters

import mmcore

PACKAGE = "mmcore.backends.triton.hopper."
FOLDER = Path(mmcore.__file__).parent / "backends/triton/hopper"
BLOCK = 128  # BM = BN
# In the order of ring.py.
BARRIERS = ("full", "empty", "x_full", "x_empty", "order")
# By module.
KERNELS = {
    "exponential_sums": "hopper_sum_exponentials_kernel",
    "gradient": "hopper_store_gradient_kernel",
    "sigmoid_tile": "hopper_sigmoid_tile_kernel",
}


class Call(NamedTuple):
    """A launch: blocks of rows, tiles of columns, how many make a strip, CTAs; and its ring."""

    kernel: str
    row_blocks: int
    tiles: int
    strip_tiles: int
    programs: int
    K: int
    RES: int
    SLOTS: int
    spread: int
    is_full: bool  # has targets, and results of every kind

    def arguments(self) -> dict[str, Any]:
        """By name; the others are pointers."""
        ring = SimpleNamespace(
            K=self.K, RES=self.RES, SLOTS=self.SLOTS, BM=BLOCK, BN=BLOCK, BK=CHUNK
        )
        numbers = {
            "first_row": self.first_row, "rows": self.row_blocks * BLOCK - 5,
            "columns": self.tiles * BLOCK - 3, "strip_tiles": self.strip_tiles,
            "spread": self.spread, "kept_rows": self.first_row + BLOCK, "RING": ring,
        }  # fmt: skip
        options = ("KEEPS", "HAS_TARGET", "HAS_COLUMNS", "HAS_GRADIENTS")
        boxes = {f"{name}_desc": box(name, size) for name, size in {"x": 3, "y": 5}.items()}
        is_diagonal = {"IS_DIAGONAL": self.is_full and self.spread > 1}
        return {**numbers, **dict.fromkeys(options, self.is_full), **is_diagonal, **boxes}

    @property
    def first_row(self) -> int:
        return 2 * BLOCK


def box(name: str, size: int) -> SimpleNamespace:
    """The descriptor of a matrix."""
    kind = SimpleNamespace(nbytes=size)
    return SimpleNamespace(name=name, block_type=kind, dtype=NOTHING, layout=NOTHING)


def text_of(module: str) -> str:
    return (FOLDER / f"{module}.py").read_text()


@cache
def compiled(text: str, module: str) -> CodeType:
    tree = ast.parse(text)
    for each in tree.body:
        if isinstance(each, ast.FunctionDef):
            each.body = [GivesWay().visit(statement) for statement in each.body]
    return compile(ast.fix_missing_locations(tree), str(FOLDER / f"{module}.py"), "exec")


class GivesWay(ast.NodeTransformer):
    """f(x) becomes (yield from called(f, x))."""

    def visit_Call(self, node: ast.Call) -> ast.YieldFrom:
        self.generic_visit(node)
        function = ast.Name("called", ast.Load())
        return ast.YieldFrom(ast.Call(function, [node.func, *node.args], node.keywords))


def called(
    function: Callable[..., Any], *operands: Any, **options: Any
) -> Generator[Any, Any, Any]:
    found = function(*operands, **options)
    return (yield from found) if isinstance(found, GeneratorType) else found


class Cta:
    """One CTA of a call; `changed` replaces the text of modules."""

    def __init__(self, call: Call, seed: int, program: int, changed: Mapping[str, str]) -> None:
        self.call, self.changed = call, changed
        self.device = Device(f"{seed} {program} {call}")
        self.tiles: list[tuple[int, int]] = []  # taken so far: row and column
        self.loaded: dict[str, SimpleNamespace] = {}
        language = Language(program, call.programs, self.device.allocate, self.start)
        jit = SimpleNamespace(jit=lambda function=None, **options: function or (lambda it: it))
        triton = "triton.experimental"
        self.models = {
            triton: SimpleNamespace(gluon=jit),
            f"{triton}.gluon": SimpleNamespace(language=language),
            f"{triton}.gluon.language.nvidia.hopper": self.device.modules(),
            "mmcore.backends.triton.launch_plan": SimpleNamespace(planned=lambda it: it),
        }

    def run(self) -> list[tuple[int, int]]:
        """The tiles that it took: row and column where they begin."""
        kernel = getattr(self.module(self.call.kernel), KERNELS[self.call.kernel])
        given = self.call.arguments()
        code = kernel.__code__
        names = code.co_varnames[: code.co_argcount]
        for _ in kernel(**{each: given.get(each, NOTHING) for each in names}):
            raise Fault("the kernel waits besides its roles")
        return self.tiles

    def module(self, name: str) -> SimpleNamespace:
        """Of the package, with the models in it."""
        if name not in self.loaded:
            own = {**vars(builtins), "__import__": self.imported, "range": counters}
            names: dict[str, Any] = {"__builtins__": own, "called": called}
            exec(compiled(self.changed.get(name) or text_of(name), name), names)
            if name == "ring":
                names["column_of"] = self.watched(names["column_of"])
            self.loaded[name] = SimpleNamespace(**names)
        return self.loaded[name]

    def imported(self, name: str, *context: Any) -> Any:
        """In place of `__import__`."""
        if name.startswith(PACKAGE):
            return self.module(name.removeprefix(PACKAGE))
        if name in ("__future__", "typing"):
            return __import__(name)
        return self.models.get(name, NOTHING)

    def start(self, parts: list[tuple[Callable[..., Steps], tuple[Any, ...]]], *sizes: Any) -> None:
        """In place of warp_specialize."""
        bodies = {}
        for function, arguments in parts:
            named = dict(zip(function.__code__.co_varnames, arguments, strict=False))
            role = Role(f"warpgroup {named['WHICH']}" if "WHICH" in named else "the producer")
            call_by_names(named, role)
            bodies[role] = function(*arguments)
        self.device.run(bodies)
        for role in bodies:
            if role.products.under_way or role.stores.under_way:
                raise Fault(f"{role.name} ends before its products and stores are complete")

    def watched(self, column_of: Callable[..., Any]) -> Callable[..., Any]:
        """Warpgroups ask for the column of the tile that they have multiplied."""

        def asked(tile: int, block: int, *others: Any) -> Generator[Any, Any, Any]:
            column, role = (yield from called(column_of, tile, block, *others)), self.device.current
            if "warpgroup" in role.name:
                self.take(role, self.call.first_row + block * BLOCK, column)
            return column

        return asked

    def take(self, role: Role, row: int, column: int) -> None:
        """Its sums are used for that tile."""
        found = [(x.row, y.row) for x, y in (role.tile.chunks if role.tile is not None else [])]
        if found != [(row, column)] * self.call.K:
            raise Fault(f"{role.name} takes the products {found} for tile {(row, column)}")
        self.tiles.append((row, column))
        role.tile = None


def call_by_names(named: Mapping[str, Any], role: Role) -> None:
    """So that faults can be understood."""
    for name in ("x_kept", "ring"):
        named[name].call(name)
    for name, barriers in zip(BARRIERS, named["barriers"], strict=True):
        barriers.call(name)
    if not isinstance(named.get("staging", named["ring"]), Array):
        named["staging"].name = f"what {role.name} has staged"


def run(call: Call, seed: int, changed: Mapping[str, str] | None = None) -> None:
    """Every CTA of the call."""
    tiles = []
    try:
        for program in range(call.programs):
            tiles += Cta(call, seed, program, changed or {}).run()
        rows = [call.first_row + block * BLOCK for block in range(call.row_blocks)]
        if sorted(tiles) != [(row, j * BLOCK) for row in rows for j in range(call.tiles)]:
            raise Fault(f"these tiles were taken: {sorted(tiles)}")
    except Fault as fault:
        fault.add_note(f"seed {seed}, {call}")
        raise
