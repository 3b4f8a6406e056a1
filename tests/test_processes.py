"""What only a process of its own shows: imports, environment variables, loaded libraries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmcore import _C
from mmcore.tracing import constant_when_compiled

NO_COMPILED_MODULE = "import sys; sys.modules['mmcore._C'] = None; "


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MMCORE_")}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_openmp_runtime_and_torchs_thread_count() -> None:
    code = (
        "import torch, mmcore; x = torch.randn(2000, 64); mmcore.functional.clip_loss(x, x, 1.0);"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l or 'iomp' in l})"
    )
    libraries = run(code).stdout
    assert libraries.count("gomp") == 1, libraries


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils' readelf is not installed")
def test_the_module_links_neither_torch_nor_cuda() -> None:
    listing = subprocess.run(
        ["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", listing)
    assert "libgomp.so.1" in needed
    assert not [name for name in needed if re.search("torch|c10|cuda|python", name)], needed


def test_importing_starts_without_triton_and_without_a_gpu() -> None:
    done = run(
        "import sys; sys.modules['triton'] = None; import mmcore; print(mmcore.__version__)",
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_importing_loads_no_package_beyond_torchs_own() -> None:
    """torch._dynamo and sympy alone would take as long again as torch; Triton comes with a call."""
    done = run(
        "import sys, torch; before = set(sys.modules); import mmcore; "
        "print(*set(sys.modules) - before)"
    )
    loaded = done.stdout.split()
    packages = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert {name for name in packages if "mmcore" not in name} <= {"torch"}, done.stderr
    assert not [name for name in loaded if name.startswith(("torch._dynamo", "torch._inductor"))]


def test_a_function_is_marked_constant_as_torch_marks_it() -> None:
    def ours() -> None: ...

    def torchs() -> None: ...

    constant_when_compiled(ours)
    torch.compiler.assume_constant_result(torchs)
    assert vars(ours) == vars(torchs) != {}


def test_a_missing_compiled_module_gives_the_reference_and_one_warning() -> None:
    code = NO_COMPILED_MODULE + (
        "import torch, mmcore; x = torch.randn(5, 3); "
        "[mmcore.functional.l2_normalize(x) for _ in range(3)]; print('served')"
    )
    done = run(code)
    assert done.stdout.strip() == "served", done.stderr
    assert done.stderr.count("FallbackWarning: mmcore falls back to its reference backend") == 1
    strict = run(code, MMCORE_STRICT="1")
    assert strict.returncode != 0
    assert "MMCORE_STRICT" in strict.stderr


def test_float64_goes_to_the_reference_without_a_warning() -> None:
    done = run("import torch, mmcore; mmcore.functional.l2_normalize(torch.ones(2, 2).double())")
    assert (done.returncode, done.stderr) == (0, "")


def test_environment_selects_backend_and_instruction_set() -> None:
    code = (
        "import mmcore; from mmcore.backends import cpu, selected; "
        "print(cpu.instruction_sets()[0], selected(None))"
    )
    done = run(code, MMCORE_CPU_ISA="generic", MMCORE_BACKEND="reference")
    assert done.stdout.split() == ["generic", "reference"], done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "MMCORE_BACKEND",
            "MMCORE_BACKEND must be one of auto, reference, cpu, triton, got 'fast'",
        ),
        ("MMCORE_CPU_ISA", "MMCORE_CPU_ISA must be one that was built"),
        ("MMCORE_WORKSPACE", "MMCORE_WORKSPACE must be a whole number of bytes, got 'fast'"),
    ],
)
def test_unknown_names_in_the_environment(name: str, message: str) -> None:
    done = run("import mmcore", **{name: "fast"})
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("prefix", ["", NO_COMPILED_MODULE])
def test_report_of_what_is_available(prefix: str) -> None:
    done = run(prefix + "import runpy; runpy.run_module('mmcore', run_name='__main__')")
    assert done.returncode == 0, done.stderr
    for what in ("mmcore:", "torch:", "triton:", "backend cpu:", "gpu:", "MMCORE_CPU_ISA:"):
        assert what in done.stdout
    assert ("unavailable" in done.stdout) == bool(prefix)


def test_the_package_says_that_it_is_typed() -> None:
    import mmcore

    folders = [Path(folder) for folder in mmcore.__path__]
    assert any((folder / "py.typed").exists() for folder in folders)
