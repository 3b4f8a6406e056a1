"""The contracts: importing this package registers every op with torch.

One file per op family: the mathematics, the fake, the family, and `call`, which chooses the backend
and settles the dtypes. The named tuples that a family takes and returns are those of the backends.
"""

from importlib import import_module
from pkgutil import iter_modules

_modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
FAMILIES = [
    module.__name__.removeprefix(f"{__name__}.") for module in _modules if hasattr(module, "call")
]
