"""What all modules of objectives share: options that are fixed when they are made."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, Self

from torch import Tensor, nn

from mmcore.functional.temperature import scale_of
from mmcore.tracing import refuse_script


class WithOptions(nn.Module):
    """A function's options. It has no parameters and no buffers: checkpoints do not notice it.

    Arguments of the function that are annotated as tensors, the scale among them, belong to the
    call; all others are options, which the module's own `__init__` names with their types and
    defaults. Their values are checked by the function.
    """

    objective: Callable[..., Any]
    __prepare_scriptable__ = refuse_script

    def __new__(cls, *_: Any, **options: Any) -> Self:
        if "temperature" in options and "temperature" not in signature(cls.__init__).parameters:
            scale = scale_of(cls.forward) or scale_of(cls.objective)
            if scale is not None:
                cure = f"give its call {scale} = 1 / temperature"
                raise TypeError(f"{cls.__name__}() takes no temperature: {cure}")
        return super().__new__(cls)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        given = {name: value for name, value in self.options.items() if value is not None}
        return ", ".join(f"{name}={value!r}" for name, value in given.items())


class Objective(WithOptions):
    """An objective whose call takes the tensors that the function takes."""

    def forward(self, *inputs: Any, **by_name: Any) -> Tensor:
        """The loss, 0-D: the function of these inputs, and of the options."""
        loss: Tensor = self.objective(*inputs, **by_name, **self.options)
        return loss
