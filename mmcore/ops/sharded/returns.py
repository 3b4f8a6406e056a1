"""What is found of columns, on its way to the ranks that own them while the next slab is computed.

What a rank has found for the columns of a slab, gradients above all, goes leg by leg (nodes.py);
the parts that a leg brings are added in rank order. With every slab that is sent the earlier ones
go one leg further, so that a leg is on its way while a slab is computed. All ranks send the same
slabs in the same order, and so start the same collectives in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from mmcore.ops.sharded.collectives import Group, Wait, in_order, start_all_to_all
from mmcore.ops.sharded.nodes import Leg


class _Leg(NamedTuple):
    """Rows that are on their way."""

    wait: Wait
    taken: list[int]
    further: Sequence[Leg]
    own: slice  # which of this rank's rows they will be


# What becomes of the sum that has come for some of this rank's rows.
Receive = Callable[[slice, Tensor], None]


class Returns:
    """Hands to `receive` what the ranks have found for this rank's rows."""

    def __init__(self, receive: Receive, group: Group, what: str) -> None:
        self.receive, self.group, self.what = receive, group, what
        self._travelling: list[_Leg] = []

    def send(self, values: Tensor, own: slice, legs: Sequence[Leg]) -> None:
        """Sends a slab's rows, after all others have gone one leg further."""
        self._go_on()
        self._start(values, own, legs)

    def finish(self) -> None:
        """Waits for all that was sent."""
        while self._travelling:
            self._go_on()

    def _start(self, values: Tensor, own: slice, legs: Sequence[Leg]) -> None:
        (given, taken), *further = legs
        wait = start_all_to_all(values, given, taken, self.group, self.what)
        self._travelling.append(_Leg(wait, taken, further, own))

    def _go_on(self) -> None:
        travelling, self._travelling = self._travelling, []
        while travelling:
            leg = travelling.pop(0)
            found = leg.wait()
            if len(found):
                found = in_order(found.split([count for count in leg.taken if count]))
            if leg.further:
                self._start(found, leg.own, leg.further)
            else:
                self.receive(leg.own, found)


def adding(total: Tensor) -> Receive:
    """To these rows."""

    def receive(own: slice, found: Tensor) -> None:
        total[own] += found

    return receive
