"""What is built from this tree: the source distribution, the wheel with and without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.parser import HeaderParser
from pathlib import Path

import pytest
import torch

import mmcore

pytest.importorskip("scikit_build_core")

ROOT = Path(__file__).parents[1]
SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "csrc", "mmcore")
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a distribution is built from, which a build may write into."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in (*SOURCES, ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def build(
    tree: Path, hook: str, settings: dict[str, str] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Calls a hook of the build backend as pip does; the result goes to tree/dist."""
    code = f"from scikit_build_core.build import {hook}; {hook}('dist', {settings})"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_installed(folder: Path, *arguments: str) -> str:
    """Runs Python where mmcore is that of a folder: without site, no editable one is found."""
    packages = Path(torch.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}:{packages}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_source_distribution_holds_no_object_files(tree: Path) -> None:
    """Catches a pattern of included files that also matches the build folder of a local build."""
    objects = tree / "build" / "cp311" / "CMakeFiles" / "_C.dir" / "csrc" / "cpu"
    objects.mkdir(parents=True)
    (objects / "dispatch.cpp.o").write_text("object")
    (objects.parents[3] / "CMakeLists.txt").write_text("generated")
    done = build(tree, "build_sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert not {name for name in names if name.startswith("build") or name.endswith((".o", ".so"))}
    wanted = {
        str(path.relative_to(tree))
        for name in SOURCES
        for path in (tree / name, *(tree / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names


def test_the_distribution_has_a_name_of_its_own_and_the_version_of_the_package(tree: Path) -> None:
    """Catches a distribution named as another project of PyPI, and a version kept in two places."""
    done = build(tree, "build_sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    folder = f"mmcore_kernels-{mmcore.__version__}"
    assert archive.name == f"{folder}.tar.gz"
    with tarfile.open(archive) as file:
        information = file.extractfile(f"{folder}/PKG-INFO")
        assert information is not None
        headers = HeaderParser().parsestr(information.read().decode())
    assert (headers["Name"], headers["Version"]) == ("mmcore-kernels", mmcore.__version__)


def test_without_a_compiler_the_reference_alone_is_installed(tree: Path) -> None:
    """Catches an installation that fails where there is no C++ compiler."""
    pytest.importorskip("pybind11")
    done = build(tree, "build_wheel", CXX="/nonexistent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no C++ compiler: mmcore is" in done.stdout + done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert not [name for name in file.namelist() if name.endswith(".so")]
        file.extractall(tree / "installed")
    report = run_installed(tree / "installed", "-m", "mmcore")
    (line,) = [line for line in report.splitlines() if line.startswith("backend cpu:")]
    assert "the compiled module mmcore._C is missing (No module named 'mmcore._C')" in line
    code = "import mmcore, torch; print(mmcore.nn.ClipLoss()(torch.eye(2), torch.eye(2), 1.0))"
    assert run_installed(tree / "installed", "-c", code) == "tensor(0.3133)\n"


def test_an_editable_installation_needs_a_compiler(tree: Path) -> None:
    """Catches a developer's build that silently tests the reference alone."""
    pytest.importorskip("pybind11")
    done = build(tree, "build_editable", CXX="/nonexistent")
    assert done.returncode != 0
    assert not list(tree.glob("dist/*.whl"))


def test_the_reference_alone_can_be_asked_for(tree: Path) -> None:
    """Catches a wheel that is tied to a platform although it holds no compiled module."""
    done = build(tree, "build_wheel", {"wheel.cmake": "false"}, CXX="/nonexistent")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.name == f"mmcore_kernels-{mmcore.__version__}-py3-none-any.whl"


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_a_build_that_fails_with_a_compiler_is_an_error(tree: Path) -> None:
    """Catches a fault of the build that leaves the user with the slow reference unawares."""
    pytest.importorskip("pybind11")
    build(tree, "build_wheel", CXX="/nonexistent")  # a compiler that comes later is found
    shutil.rmtree(tree / "dist")
    (tree / "csrc" / "bindings" / "module.cpp").unlink()
    done = build(tree, "build_wheel")
    assert done.returncode != 0
    assert "module.cpp" in done.stdout + done.stderr
    assert not list(tree.glob("dist/*.whl"))
