"""Reads the repository's own sources for the rules of the house (test_house.py): text and ast."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDERS = (".ci", "benchmarks", "csrc", "docs", "examples", "mmcore", "tests")
NOT_OURS = {"__pycache__", "cache", "runs"}  # what programs leave behind
CPP = (".h", ".cpp", ".cu")

STRING = r'"(?:\\.|[^"\\\n])*"'
CPP_COMMENT = re.compile(rf"{STRING}|(//[^\n]*|/\*.*?\*/)", re.S)
PREPROCESSOR = r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*"
# What has no braces of a body: comments, strings, directives, empty initialisers.
NO_CODE = re.compile(
    rf"//[^\n]*|/\*.*?\*/|{STRING}|'(?:\\.|[^'\\\n])'|{PREPROCESSOR}|=\s*\{{\s*\}}", re.S | re.M
)
# Taken out of a head before it is read: their parentheses and words mean nothing to it.
CPP_DECORATION = re.compile(r"\btemplate\s*<[^;{}()]*?>(?=\s)|__attribute__\(\(\w+\)\)")
CPP_SCOPE = re.compile(r"\bnamespace\b|\b(?:enum\s+class|class|struct|enum|union)\s+(\w+)")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)', re.M)


class Function(NamedTuple):
    name: str  # with the classes and functions around it
    lines: int
    is_kernel: bool = False  # decorated by triton.jit or gluon.jit


class Brace(NamedTuple):
    name: str
    is_scope: bool  # of a namespace or a class
    line: int | None = None  # where a function begins


@cache
def tree() -> tuple[str, ...]:
    """Every file of the repository, relative to its root."""
    found = [path.name for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        for place, folders, names in os.walk(ROOT / folder):
            folders[:] = [name for name in folders if name not in NOT_OURS]
            found += [(Path(place) / name).relative_to(ROOT).as_posix() for name in names]
    return tuple(sorted(found))


def files(suffixes: tuple[str, ...], *folders: str) -> list[str]:
    """Files of these folders, of which each ends in "/"."""
    return [path for path in tree() if path.startswith(folders) and path.endswith(suffixes)]


@cache
def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def parsed(path: str) -> ast.Module:
    return ast.parse(text(path), path)


def exists(name: str) -> bool:
    """Whether a file, or with "/" at its end a folder, is called so, from any folder on."""
    wanted = "/" + re.sub(r"^(?:\.\.?/)+", "", name)
    is_folder = name.endswith("/")
    paths = (f"/{path}" for path in tree())
    return any(wanted in path if is_folder else path.endswith(wanted) for path in paths)


@cache
def functions(path: str) -> tuple[Function, ...]:
    """Functions with their lines: in Python from `def` on, without the docstring; in C++ with the
    signature. A function inside another one counts for both.
    """
    is_cpp = path.endswith(CPP)
    return tuple(cpp_functions(text(path)) if is_cpp else python_functions(parsed(path)))


def python_functions(node: ast.AST, outer: str = "") -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from python_functions(child, outer)
            continue
        name = outer + child.name
        if not isinstance(child, ast.ClassDef):
            has_docstring = ast.get_docstring(child, clean=False) is not None
            size = lines_of(child) - (lines_of(child.body[0]) if has_docstring else 0)
            yield Function(name, size, is_jitted(child))
        yield from python_functions(child, f"{name}.")


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def is_jitted(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether `@triton.jit` or `@gluon.jit(...)` stands above a function."""
    names = [ast.unparse(each).partition("(")[0] for each in function.decorator_list]
    return "triton.jit" in names or "gluon.jit" in names


def cpp_functions(source: str) -> Iterator[Function]:
    """By braces: bodies right in a namespace or class whose head has parentheses and no `=`."""
    code = NO_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)
    stack: list[Brace] = []
    start = 0  # of the statement
    for found in re.finditer(r"[{};]", code):
        end = found.start()
        if found[0] == "{":
            head = code[start:end]
            line = code.count("\n", 0, start + len(head) - len(head.lstrip())) + 1
            stack.append(cpp_brace(head, line, all(brace.is_scope for brace in stack)))
        elif found[0] == "}":
            brace = stack.pop()
            if brace.line is not None:
                names = [outer.name for outer in stack if outer.name] + [brace.name]
                yield Function("::".join(names), code.count("\n", 0, end) + 2 - brace.line)
        start = end + 1
    if stack:
        raise ValueError("a brace is never closed")


def cpp_brace(head: str, line: int, is_outermost: bool) -> Brace:
    """What the brace after `head` opens: a scope, a function, or something else."""
    bare = CPP_DECORATION.sub(" ", head)
    name = re.search(r"([\w~]+)\s*\(", bare)
    flat, count = bare, 1
    while count:
        flat, count = re.subn(r"\([^()]*\)", "@", flat)
    scope = CPP_SCOPE.search(flat)
    if scope and is_outermost and not re.search("[@=]", flat):
        return Brace(scope[1] or "", True)
    is_function = is_outermost and name is not None and not re.search(r"(?<!operator)=", flat)
    return Brace(name[1] if name else "", False, line if is_function else None)


def comments(path: str) -> Iterator[str]:
    """Comments and docstrings of a source file."""
    if path.endswith(CPP):
        yield from (found[1] for found in CPP_COMMENT.finditer(text(path)) if found[1])
        return
    for token in tokenize.generate_tokens(io.StringIO(text(path)).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def header(path: str) -> str:
    """The opening comment or docstring, without slashes and common indentation."""
    if not path.endswith(CPP):
        return ast.get_docstring(parsed(path)) or ""
    lines = re.match(r"(?:[ \t]*//[^\n]*\n)*", text(path))
    return re.sub(r"^[ \t]*// ?", "", lines[0] if lines else "", flags=re.M)


def imports(path: str) -> set[str]:
    """What a module imports of mmcore, in full: {"mmcore.backends.choose", "mmcore._C"}."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(Path(path).parts[: -node.level]) if node.level else ""
            source = ".".join(part for part in (package, node.module) if part)
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "mmcore" or name.startswith("mmcore.")}


def includes(path: str) -> list[str]:
    return INCLUDE.findall(text(path))


def annotations(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """Of its arguments but `ctx`, and of its result."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    for argument in named:
        if argument is not None and argument.arg != "ctx" and argument.annotation is not None:
            yield argument.annotation
    if function.returns is not None:
        yield function.returns
