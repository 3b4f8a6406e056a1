"""The largest tensor that a call makes, on the way included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had, of `dtypes` if there are any."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.size, self._dtypes = 0, dtypes

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor) and (not self._dtypes or each.dtype in self._dtypes):
                self.size = max(self.size, each.numel())
        return result
