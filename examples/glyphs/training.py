"""The state of a run and one step of it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from batches import PAIRS, Batches
from data import cache_key
from model import GlyphModel
from processes import are_several

LEARNING_RATE = 6e-3
WEIGHT_DECAY = 0.05
WARM_UP_STEPS = 30


@dataclass(frozen=True)
class Settings:
    """What a run depends on; a resumed run keeps those it was started with."""

    steps: int = 320
    batch_size: int = 1024
    objective: str = "clip"
    seed: int = 0
    backend: str = "auto"
    quick: bool = False
    cache_rows: int | None = None


class Training:
    """Model, optimiser and the number of steps done."""

    def __init__(self, settings: Settings, batches: Batches) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.batches = settings, batches
        self.model = GlyphModel(len(batches.tokenizer), batches.objective, settings.cache_rows)
        self.model.exchange_gradients(are_several())
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        )
        self.step, self.seconds = 0, 0.0

    def learning_rate(self) -> float:
        """A linear warm-up under a cosine that ends at zero."""
        cosine = (1 + math.cos(math.pi * self.step / self.settings.steps)) / 2
        warm_up = min(WARM_UP_STEPS, self.settings.steps // 4)
        return LEARNING_RATE * min(cosine, (self.step + 1) / (warm_up + 1))

    def take_step(self) -> dict[str, Any]:
        """One step of training; returns what the log says about it."""
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        batch = self.batches.training(self.step)
        losses = self.model.losses(self.model(batch.inputs), batch)
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()
        self.step += 1
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return {
            "step": self.step,
            "loss": {f"{x}-{y}": loss for (x, y), loss in zip(PAIRS, losses.tolist(), strict=True)},
            "scale": self.model.scales().tolist(),
            "step_ms": seconds * 1e3,
        }

    def state(self) -> dict[str, Any]:
        """All that the remaining steps depend on."""
        return {
            "settings": asdict(self.settings),
            "glyphs": cache_key(),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])


def require_same_glyphs(state: dict[str, Any]) -> None:
    """Ends the program where a run cannot be resumed because its glyphs were others."""
    if state["glyphs"] != cache_key():
        raise SystemExit(
            "the run cannot be resumed: it was trained on glyphs of other versions, "
            f"{state['glyphs']}, and these are {cache_key()}"
        )
