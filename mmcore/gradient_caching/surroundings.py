"""What a forward depends on besides its arguments: random numbers, autocast, the backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore import backends


class RandomStates(NamedTuple):
    """The states of the generators of the CPU and of other devices."""

    cpu: Tensor
    others: tuple[tuple[torch.device, Tensor], ...]

    @classmethod
    def now(cls, devices: Iterable[torch.device]) -> RandomStates:
        """As they are."""
        others = [(d, torch.get_device_module(d).get_rng_state(*_index(d))) for d in devices]
        return cls(torch.get_rng_state(), tuple(others))

    def restore(self) -> None:
        """Makes the generators continue from here."""
        torch.set_rng_state(self.cpu)
        for device, state in self.others:
            torch.get_device_module(device).set_rng_state(state, *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """How a generator is named: Apple's GPU has one alone."""
    return () if device.type == "mps" else (device,)


@contextmanager
def unchanged_random_states(devices: Iterable[torch.device]) -> Iterator[None]:
    """Whatever the block draws, the generators continue after it as if there had been none."""
    before = RandomStates.now(devices)
    try:
        yield
    finally:
        before.restore()


class Surroundings(NamedTuple):
    """Autocast and mmcore's backend, as the forward found them."""

    autocast: tuple[tuple[str, bool, torch.dtype], ...]  # device type, whether, to which dtype
    has_cache: bool
    backend: str

    @classmethod
    def now(cls, devices: Iterable[torch.device]) -> Surroundings:
        """As they are."""
        types = {"cpu", *(device.type for device in devices)}
        autocast = [
            (name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name))
            for name in sorted(types)
            if torch.amp.is_autocast_available(name)
        ]
        return cls(tuple(autocast), torch.is_autocast_cache_enabled(), backends.selected(None))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The block runs under them.

        Autocast keeps casts of weights for later use. In older versions of torch those of a forward
        without gradients stay without (pytorch #112583), so that none may pass to the next block.
        """
        torch.clear_autocast_cache()
        try:
            with ExitStack() as stack:
                stack.enter_context(backends.backend(self.backend))
                for name, enabled, dtype in self.autocast:
                    stack.enter_context(
                        torch.autocast(name, dtype if enabled else None, enabled, self.has_cache)
                    )
                yield
        finally:
            torch.clear_autocast_cache()


def devices_of(tensors: Iterable[Tensor]) -> tuple[torch.device, ...]:
    """The devices beside the CPU that have generators of their own."""
    found = {tensor.device for tensor in tensors} - {torch.device("cpu"), torch.device("meta")}
    return tuple(sorted(found, key=str))
