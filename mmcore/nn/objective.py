"""What all modules of objectives share: options that are fixed when they are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class WithOptions(nn.Module):
    """A function's options. It has no parameters and no buffers: checkpoints do not notice it.

    Arguments of the function that are annotated as tensors, the scale among them, belong to the
    call; all others are options, by name, in the module's signature. Their values are checked by
    the function.
    """

    objective: Callable[..., Any]
    __signature__: inspect.Signature

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if hasattr(cls, "objective"):
            cls.__signature__ = inspect.Signature(
                [
                    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                    for parameter in inspect.signature(cls.objective).parameters.values()
                    if "Tensor" not in str(parameter.annotation)
                ]
            )

    def __init__(self, **options: Any) -> None:
        super().__init__()
        try:
            self.__signature__.bind(**options)
        except TypeError as error:
            known = list(self.__signature__.parameters)
            raise TypeError(f"{type(self).__name__} {error}; its options are {known}") from None
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class Objective(WithOptions):
    """An objective whose call takes the tensors that the function takes."""

    def forward(self, *inputs: Any, **by_name: Any) -> Tensor:
        """The loss, 0-D: the function of these inputs, and of the options."""
        loss: Tensor = self.objective(*inputs, **by_name, **self.options)
        return loss
