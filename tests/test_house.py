"""The rules of the house (CONTRIBUTING.md): sizes, arrows between layers, paths, kernel headers."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

import house
import pytest

MOST_LINES, MOST_FUNCTION_LINES, MOST_KERNEL_LINES = 300, 40, 120
# These are longer: their lines when they were listed. The list may only shrink.
TOO_LONG = {
    "tests/test_robustness.py": 305,
}

# What a layer may import of mmcore besides itself. Every layer may import a module of mmcore/ that
# imports nothing of mmcore.
LAYERS = {
    "bench": {"nn", "functional"},
    "analysis": {"functional", "ops", "retrieval"},
    "translation": {"functional", "ops", "retrieval"},
    "retrieval": {"functional", "ops"},
    "nn": {"functional", "gradient_caching"},
    "gradient_caching": {"functional", "backends"},
    "functional": {"ops"},
    "ops": {"backends"},
    "backends": {"_C", "_launch"},
}
# Headers that the native core may include, but only in these places.
INCLUDED_ONLY_BY: dict[str, tuple[str, ...]] = {
    r"torch/|ATen/|c10/": (),
    r"pybind11/|(?:\.\./)*bindings/": ("csrc/bindings/",),
    r"Python\.h|structmember\.h": ("csrc/bindings/", "csrc/launch/"),
    r"omp\.h": ("csrc/cpu/parallel.h",),
    r"\w*intrin\.h": ("csrc/cpu/vec.h", "csrc/cpu/amx.h"),
}

FILE = r"(?:\.\./)*(?:[\w.-]+/)*[\w-][\w.-]*\.(?:py|pyi|h|cpp|cu|md|toml)\b"
# No part of an address, of a pattern such as *.h, or of a placeholder such as <family>.h.
FILE_IN_TEXT = re.compile(rf"(?<![\w/.<>*{{}}~$-]){FILE}")
PATH_IN_BACKTICKS = re.compile(r"`((?:[\w.-]+/)+(?:[\w-][\w.-]*\.\w+)?)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")

# The header of a kernel also has a formula: an indented line with an equals sign.
LABELS = ("Never stored:", "Loop order:", "Precision:")
# Parts of several kernels, with loops of their own.
SHARED_PARTS = ("exponential_sums.h", "input_norm.h", "matmul.h", "running_log_sum_exp.h")
# Entries of the table of kernels that compute nothing that an op returns.
NO_KERNELS = {"measure_peak"}


def report(faults: list[str]) -> None:
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def sizes() -> Iterator[tuple[str, int, int]]:
    """Files and functions: name, lines, and how many lines it may have."""
    folders = ("benchmarks/", "csrc/", "examples/", "mmcore/", "tests/")
    for path in house.files((".py", *house.CPP), *folders):
        yield path, len(house.text(path).splitlines()), MOST_LINES
        for function in house.functions(path):
            most = MOST_KERNEL_LINES if function.is_kernel else MOST_FUNCTION_LINES
            yield f"{path}:{function.name}", function.lines, most


def test_files_and_functions_are_short() -> None:
    """Catches a file or function that is too long to be read as a whole."""
    report([
        f"{name} has {lines} lines, the limit is {max(most, TOO_LONG.get(name, 0))}: split it"
        for name, lines, most in sizes()
        if lines > max(most, TOO_LONG.get(name, 0))
    ])  # fmt: skip


def test_functions_of_cpp_are_measured() -> None:
    """Catches a reader that takes a class, a comment or an initialiser for a function, or misses
    one.
    """
    source = """namespace mmcore {
        // void commented() {
        constexpr int kTable[] = {one(1), two(2)};
        template <class A>
        struct Sums : Base {
          int size{2};
          explicit Sums(int n) : size(n) {
            if (n > 0) { log("}"); }
          }
        };
        void run(Sums sums = {}) { sums.add([&](int i) { return i; }); }
        }
    """
    found = [(function.name, function.lines) for function in house.cpp_functions(source)]
    assert found == [("Sums::Sums", 3), ("run", 1)]


def test_exceptions_from_sizes_are_needed() -> None:
    """Catches an exception for what has become short enough, was renamed or is gone."""
    too_long = {name for name, lines, most in sizes() if lines > most}
    report([
        f"{name} is not over its limit, or does not exist: take it off TOO_LONG"
        for name in TOO_LONG
        if name not in too_long
    ])  # fmt: skip


def forbidden_imports(layer: str) -> set[tuple[str, str]]:
    """(module, what it imports of a layer that it must not know)."""
    allowed = {layer, *LAYERS[layer]}
    free = {path for path in house.files((".py",), "mmcore/") if not house.imports(path)}
    found = set()
    for path in house.files((".py",), f"mmcore/{layer}/"):
        for name in house.imports(path):
            part = name.removeprefix("mmcore").removeprefix(".").split(".")[0]
            if part not in allowed and f"mmcore/{part}.py" not in free:
                found.add((path, name))
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_arrows_go_one_way(layer: str) -> None:
    """Catches a layer that imports one above it, or one further below than the next."""
    allowed = " and ".join(sorted({layer, *LAYERS[layer]}))
    report([
        f"{path} imports {name}, but mmcore/{layer}/ may import {allowed} only"
        for path, name in sorted(forbidden_imports(layer))
    ])  # fmt: skip


@pytest.mark.parametrize(("backend", "other"), [("cpu", "triton"), ("triton", "cpu")])
def test_backends_do_not_import_each_other(backend: str, other: str) -> None:
    """Catches a backend that cannot be used without the other one."""
    report([
        f"{path} imports {name}, of another backend"
        for path in house.files((".py",), f"mmcore/backends/{backend}/")
        for name in sorted(house.imports(path))
        if f"{name}.".startswith(f"mmcore.backends.{other}.")
    ])  # fmt: skip


def test_includes_stay_in_their_places() -> None:
    """Catches torch in the native core, Python outside bindings/ and launch/, OpenMP outside
    parallel.h and intrinsics outside vec.h.
    """
    report([
        f"{path} includes {name}, which only {' and '.join(places) or 'no file'} may include"
        for path in house.files(house.CPP, "csrc/")
        for name in house.includes(path)
        for pattern, places in INCLUDED_ONLY_BY.items()
        if re.match(pattern, name) and not (places and path.startswith(places))
    ])  # fmt: skip


def test_files_named_in_comments_exist() -> None:
    """Catches a comment or docstring that names a file which was renamed or removed."""
    report([
        f"{path} names {name}, which does not exist"
        for path in house.files((".py", ".pyi", *house.CPP), "csrc/", "mmcore/", "tests/")
        for comment in house.comments(path)
        for name in FILE_IN_TEXT.findall(comment)
        if not house.exists(name)
    ])  # fmt: skip


def test_paths_named_in_pages_exist() -> None:
    """Catches a page that names or links to a file or folder which was renamed or removed."""
    faults, folders = [], ("benchmarks/", "docs/", "examples/")
    for path in ("CONTRIBUTING.md", "README.md", *house.files((".md",), *folders)):
        page, folder = house.text(path), (house.ROOT / path).parent
        named = [*FILE_IN_TEXT.findall(page), *PATH_IN_BACKTICKS.findall(page)]
        missing = {name for name in named if not house.exists(name)}
        missing |= {name for name in LINK.findall(page) if not (folder / name).exists()}
        faults += [f"{path} names {name}, which does not exist" for name in sorted(missing)]
    report(faults)


def kernel_files() -> list[str]:
    """Native headers that define an entry of the table of kernels or are part of several, and
    modules with a kernel that is launched: its name ends in _kernel.
    """
    table = {*re.findall(r"\(\*(\w+)\)\(", house.text("csrc/kernels.h"))} - NO_KERNELS
    native, device = house.files((".h",), "csrc/cpu/"), house.files((".py",), "mmcore/backends/")
    found = {path for path in native if path.endswith(tuple(f"/{it}" for it in SHARED_PARTS))}
    found |= {path for path in native for each in house.functions(path) if each.name in table}
    found |= {
        path
        for path in device
        for each in house.functions(path)
        if each.is_kernel and each.name.endswith("_kernel")
    }
    return sorted(found)


def test_kernels_open_with_their_header() -> None:
    """Catches a kernel whose header lacks the formula, what is never stored, the loop order or the
    precision: each of the three begins a line with its label.
    """
    faults = []
    for path in kernel_files():
        header = house.header(path)
        missing = [label for label in LABELS if not re.search(rf"^{label} \S", header, re.M)]
        if not re.search(r"^ {2,}\S.*=", header, re.M):
            missing.insert(0, "a formula (an indented line with an equals sign)")
        faults += [f"the header of {path} lacks {' and '.join(missing)}"] if missing else []
    report(faults)


def test_every_kernel_is_found() -> None:
    """Catches a reader of kernels.h or of decorators that finds none and so checks nothing."""
    found = kernel_files()
    for name in ("csrc/cpu/softmax_similarity.h", "csrc/cpu/normalize.h"):
        assert name in found
    for name in ("softmax_similarity/exponential_sums.py", "hopper/gradient.py"):
        assert f"mmcore/backends/triton/{name}" in found
    assert len(found) >= 30


def test_no_test_hides_another() -> None:
    """Catches two tests of one name in one file or class, of which only the second runs."""
    faults = []
    for path in house.files((".py",), "tests/"):
        for scope in ast.walk(house.parsed(path)):
            if isinstance(scope, ast.Module | ast.ClassDef):
                kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
                names = Counter(each.name for each in scope.body if isinstance(each, kinds))
                twice = (name for name, count in names.items() if count > 1)
                faults += [f"{path} defines {name} more than once" for name in twice]
    report(faults)


# Between torch, which has no types for what it registers, and everything that has.
PLUMBING = {
    f"mmcore/ops/{name}.py" for name in ("autograd", "define", "direct", "family", "layout")
}


def test_signatures_of_ops_and_backends_have_no_any() -> None:
    """Catches an argument that mypy does not see. torch has no type for the context of autograd."""
    report([
        f"{path}:{function.lineno} {function.name} has an argument or a result of type Any"
        for path in house.files((".py",), "mmcore/ops/", "mmcore/backends/")
        if path not in PLUMBING
        for function in ast.walk(ast.parse(house.text(path)))
        if isinstance(function, ast.FunctionDef)
        for annotation in house.annotations(function)
        if any(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(annotation))
    ])  # fmt: skip
