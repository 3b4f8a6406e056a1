"""Every code block of the README and the pages runs, or is checked in another way."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, in the order of the page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [code for name, code in found if name == language]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_python(page: Path) -> dict[str, Any]:
    """Runs the blocks in order and nothing else: later ones use what earlier ones made."""
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{name_of(page)}, block {number}", "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language_that_is_checked(page: Path) -> None:
    """Catches a block that no test below looks at; `text` is output or a drawing."""
    text = page.read_text(encoding="utf-8")
    languages = [name for name, _ in BLOCK.findall(text)]
    assert not set(languages) - {"python", "sh", "text"}
    assert len(languages) == text.count("```") / 2


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_runs_as_it_stands(page: Path) -> None:
    """Catches code that needs a name which the page does not define, or a call that has changed."""
    run_python(page)


def test_the_quick_start_trains() -> None:
    """Catches a quick start whose loss has no gradient, or a dictionary without open_clip's key."""
    names = run_python(ROOT / "README.md")
    assert names["losses"]["contrastive_loss"].isfinite()
    assert names["log_scale"].grad.isfinite()
    for head in (names["image_head"], names["text_head"]):
        assert all(parameter.grad is not None for parameter in head.parameters())


def commands(page: Path) -> list[list[str]]:
    return [
        shlex.split(line, comments=True)
        for code in blocks(page, "sh")
        for line in code.splitlines()
        if line.strip()
    ]


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):", makefile, re.M))


def check_make(target: str, *variables: str) -> None:
    assert target in targets()
    options = [
        option
        for variable in variables
        for option in variable.removeprefix("ARGS=").split()
        if option.startswith("--")
    ]
    assert target == "demo" or not options
    script = (ROOT / "examples" / "glyphs" / "train.py").read_text(encoding="utf-8")
    assert not [option for option in options if f'add("{option}"' not in script]


def check_torchrun(*arguments: str) -> None:
    """Nothing is trained: the script and its options exist."""
    script = next(each for each in arguments if each.endswith(".py"))
    text = (ROOT / script).read_text(encoding="utf-8")
    options = arguments[arguments.index(script) + 1 :]
    assert not [each for each in options if each[:2] == "--" and f'add("{each}"' not in text]


def check_pip(*arguments: str) -> None:
    """Nothing is installed: the names of packages and of the index are held to what works."""
    allowed = [
        ["install", "torch", "--index-url", "https://download.pytorch.org/whl/cpu"],
        ["install", "."],
    ]
    assert list(arguments) in allowed


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name_of)
def test_shell_commands_exist(page: Path) -> None:
    """Catches a target, an option or a command that was renamed."""
    for program, *arguments in commands(page):
        if program == "python":
            run = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            assert run.returncode == 0, run.stderr
        else:
            checks = {"make": check_make, "pip": check_pip, "torchrun": check_torchrun}
            checks[program](*arguments)
