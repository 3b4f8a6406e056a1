"""Machines that have several ranks each: sums for other machines are formed before they travel.

A row of float32 for each column, from every rank to the column's owner: between machines these are
the most bytes of a backward. So ranks of one machine add up first what is for the same owner, and
one sum leaves the machine in place of as many rows as it has ranks. With M machines of G ranks:

    inside    from the ranks of its machine, the g-th takes what is for ranks g·M … (g + 1)·M − 1
    between   rank r takes what is for itself from the (r // M)-th rank of every machine

Both are sums in the order of the ranks: the same bits each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Leg(NamedTuple):
    """One exchange: how many rows go to each rank, and come from each; these are added up."""

    given: list[int]
    taken: list[int]


class Nodes(NamedTuple):
    """So many machines with so many ranks each, one machine's after the other's."""

    machines: int
    size: int

    @staticmethod
    def of(machines: Sequence[int]) -> Nodes:
        """By the machine of each rank: one node where sums inside of machines would spare nothing,
        or where machines have unequal numbers of ranks or the ranks of one do not follow each
        other.
        """
        ranks, count = len(machines), len(set(machines))
        size = ranks // count
        runs = [set(machines[start : start + size]) for start in range(0, ranks, size)]
        is_regular = size * count == ranks and all(len(run) == 1 for run in runs)
        return Nodes(count, size) if is_regular and size > 1 else Nodes(1, ranks)

    def legs(self, rank: int, counts: Sequence[int]) -> list[Leg]:
        """The way of a slab's rows, of which every rank has `counts[r]` for rank r."""
        ranks, own = len(counts), counts[rank]
        if self.machines == 1:
            return [Leg(list(counts), [own] * ranks)]
        machine, place = divmod(rank, self.size)
        shares = [
            list(counts[first : first + self.machines]) for first in range(0, ranks, self.machines)
        ]
        before, after = machine * self.size, ranks - (machine + 1) * self.size
        inside = Leg(
            [0] * before + [sum(share) for share in shares] + [0] * after,
            [0] * before + [sum(shares[place])] * self.size + [0] * after,
        )
        first, given, taken = place * self.machines, [0] * ranks, [0] * ranks
        given[first : first + self.machines] = shares[place]
        taken[rank // self.machines :: self.size] = [own] * self.machines
        return [inside, Leg(given, taken)]
