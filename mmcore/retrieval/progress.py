"""Long work that shows how far it is, and keeps what it has found when it is interrupted."""

from __future__ import annotations

import time
from importlib import import_module
from types import TracebackType
from typing import Any

SECONDS_BEFORE_A_BAR = 3.0


class Interrupted(KeyboardInterrupt):
    """Work was interrupted, as by Ctrl-C; it holds what was found until then.

    Attributes:
        found: the exact result for the rows that were seen, with float64 scores, for
            `mmcore.retrieval.merge` with what the rest gives.
        rows: how many rows of the gallery those are, from its first one on.

    Example:
        >>> import numpy as np, mmcore
        >>> queries, gallery = np.ones((2, 8), "f"), np.ones((500, 8), "f")
        >>> try:
        ...     found = mmcore.retrieval.topk(queries, gallery, 10)
        ... except mmcore.retrieval.Interrupted as stopped:
        ...     rest = mmcore.retrieval.topk(
        ...         queries, gallery[stopped.rows :], 10, first_index=stopped.rows,
        ...         score_dtype="float64",
        ...     )
        ...     found = mmcore.retrieval.merge([stopped.found, rest], 10)
        >>> found.indices.shape
        (2, 10)
    """

    def __init__(self, found: Any, rows: int) -> None:
        super().__init__(found, rows)
        self.found = found
        self.rows = rows

    def __str__(self) -> str:
        return (
            f"interrupted after {self.rows} rows of the gallery: `found` of this error has the "
            "result for these, `rows` their number"
        )


class Bar:
    """A progress bar of tqdm, on standard error.

    `shows` None: where tqdm is installed, standard error is a terminal and the work takes longer
    than a few seconds. True: always, and tqdm has to be installed. False: never.
    """

    def __init__(self, total: int | None, shows: bool | None, unit: str = " rows") -> None:
        self._total, self._unit, self._shows = total, unit, shows
        self._begin = time.monotonic()
        self._done = 0
        self._bar: Any = None
        if shows:
            self._open()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        is_late = time.monotonic() - self._begin > SECONDS_BEFORE_A_BAR
        if self._bar is not None:
            self._bar.update(count)
        elif self._shows is None and is_late:
            self._open()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _open(self) -> None:
        try:
            tqdm = import_module("tqdm.auto").tqdm
        except ImportError as error:
            if self._shows:
                raise ImportError(
                    "progress=True needs tqdm: install it by `pip install tqdm`"
                ) from error
            self._shows = False
            return
        self._bar = tqdm(
            total=self._total, initial=self._done, unit=self._unit, unit_scale=True,
            disable=None if self._shows is None else False,
        )  # fmt: skip
