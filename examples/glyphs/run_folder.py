"""The folder of a run: checkpoint, log, metrics. Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

DIGEST_SIZE = hashlib.sha256().digest_size


class RunFolder:
    """Where a run writes; what is wrong with it ends the program with one line that says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint, self.log, self.metrics = (
            path / name for name in ("checkpoint.pt", "log.jsonl", "metrics.json")
        )

    @classmethod
    def create(cls, path: Path | None, default_parent: Path) -> RunFolder:
        """A new run in `path`, which must be absent or empty; by default named after the time."""
        fresh = path is None
        path = path or default_parent / time.strftime("%Y-%m-%d-%H%M%S")
        try:
            path.mkdir(parents=True, exist_ok=not fresh)
            is_empty = not any(path.iterdir())
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise SystemExit(f"cannot write to the run folder {path}: {error.strerror}") from None
        if not is_empty:
            raise SystemExit(
                f"{path} is not empty: continue its run with --resume, or name another folder"
            )
        return cls(path)

    @classmethod
    def existing(cls, path: Path | None, default_parent: Path) -> RunFolder:
        """The run in `path`; without it, the run with the newest checkpoint in `default_parent`."""
        if path is None:
            checkpoints = default_parent.glob("*/checkpoint.pt")
            newest = max(checkpoints, key=lambda file: file.stat().st_mtime, default=None)
            if newest is None:
                raise SystemExit(f"there is no run to resume in {default_parent}")
            path = newest.parent
        folder = cls(path)
        if folder.metrics.exists():
            raise SystemExit(f"the run in {path} is complete: there is nothing to resume")
        return folder

    def write(self, path: Path, content: bytes) -> None:
        """Writes under another name, then moves the file into its place in one step."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise SystemExit(f"cannot write {path}: {error.strerror}") from None

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """torch.save, followed by a SHA-256 digest: torch.load does not notice a changed byte."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        self.write(self.checkpoint, content + hashlib.sha256(content).digest())

    def load_checkpoint(self) -> dict[str, Any]:
        """The state that was saved last."""
        try:
            stored = self.checkpoint.read_bytes()
        except OSError as error:
            raise SystemExit(f"cannot read {self.checkpoint}: {error.strerror}") from None
        content, digest = stored[:-DIGEST_SIZE], stored[-DIGEST_SIZE:]
        if hashlib.sha256(content).digest() != digest:
            raise SystemExit(f"{self.checkpoint} is damaged: its digest does not match its content")
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        return state

    def append_to_log(self, record: Mapping[str, Any]) -> None:
        """One line of JSON."""
        try:
            with self.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise SystemExit(f"cannot write {self.log}: {error.strerror}") from None

    def read_log(self) -> list[dict[str, Any]]:
        """The records; a last line cut short by an interruption is left out."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except json.JSONDecodeError as error:
            raise SystemExit(f"{self.log} is damaged: {error}") from None

    def cut_log(self, step: int) -> None:
        """Forgets the steps after the checkpoint: they are about to be repeated."""
        kept = [json.dumps(record) for record in self.read_log() if record["step"] <= step]
        self.write(self.log, "".join(f"{line}\n" for line in kept).encode())

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Written last: a run with metrics is complete."""
        self.write(self.metrics, (json.dumps(metrics, indent=2) + "\n").encode())
