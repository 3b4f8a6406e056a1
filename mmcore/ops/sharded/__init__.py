"""Ops over rows that several processes hold: each process calls the same op on its own rows.

A rank is a process's number in a group. Rank r holds n_r rows of x and m_r rows of y; the matrix
has the rows and columns of all ranks, one rank after the other. All data that a call exchanges
passes through collectives.py; header.py compares what the ranks were given before any data moves.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
