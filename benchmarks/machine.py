"""Where a figure comes from: machine, versions, commit, date. No host names, no paths."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import torch

import mmcore

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch",
    "mmcore",
    "open_clip_torch",
    "lightly",
    "pytorch-metric-learning",
    "numpy",
)


def processor_name() -> str:
    """The processor's marketing name, without trademarks, clock and core count.

    Where a virtual machine keeps its number to itself, family and model tell generations apart.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    fields = re.findall(r"^(\w[\w ]*\w)\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    first = dict(reversed(fields))
    name = first.get("model name", platform.machine())
    name = re.sub(r"\((R|TM)\)|@.*|\bCPU\b|\d+-Core|\bProcessor\b", " ", name, flags=re.IGNORECASE)
    if not re.search(r"\d", name) and {"cpu family", "model"} <= set(first):
        name += f" family {first['cpu family']} model {first['model']}"
    return " ".join(name.split())


def core_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def instruction_set() -> str:
    """The widest vectors torch found: avx512, avx2 or generic."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return "generic" if capability == "default" else capability


def machine_slug() -> str:
    """For example amd-epyc-2c-avx2: the machine's key in results, and its file's name."""
    words = re.sub(r"[^a-z0-9]+", "-", processor_name().lower()).strip("-")
    return f"{words}-{core_count()}c-{instruction_set()}"


def available_memory_bytes() -> int:
    """What the machine can still give without swapping."""
    return read_kib("/proc/meminfo", "MemAvailable") * 1024


def read_kib(path: str, field: str) -> int:
    """One `Field:  123 kB` line of a /proc file."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(path).read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{path} must have a line {field}")
    return int(found.group(1))


def others_cpu_seconds() -> float:
    """Processor time that everybody but this process has used, or the hypervisor has stolen."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields)
    busy_ticks = user + nice + system + irq + softirq + steal
    return busy_ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def git_commit() -> str:
    """HEAD, with -dirty when the tree differs from it; results themselves do not count.

    Where git says nothing, as in a copy without its history, MMCORE_COMMIT does.
    """
    head = git("rev-parse", "HEAD")
    if head is None:
        return os.environ.get("MMCORE_COMMIT") or "unknown"
    changes = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return head + ("-dirty" if changes else "")


def git(*arguments: str) -> str | None:
    """Output of a git command that only reads; None where it fails."""
    # Without optional locks, status does not touch the index under someone else's feet.
    command = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of python, mmcore and the rivals; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def version(package: str) -> str:
    """mmcore's own, which a bare checkout has too; else that of the installed distribution."""
    return mmcore.__version__ if package == "mmcore" else importlib.metadata.version(package)


def provenance() -> dict[str, object]:
    """The part of a result line that is the same for a whole run."""
    return {
        "run": now(),
        "threads": torch.get_num_threads(),
        "machine": machine_slug(),
        "processor": processor_name(),
        "cores": core_count(),
        "instruction_set": instruction_set(),
        "versions": versions(),
        "commit": git_commit(),
    }


def now() -> str:
    """The date of a measurement, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
