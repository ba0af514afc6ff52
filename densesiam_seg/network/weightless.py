"""Networks that have shapes alone: what a file of tensors must hold, known before any memory is taken for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def weightless() -> Iterator[None]:
    """Modules that are made in this block have tensors on the meta device, without memory and without first weights."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Leaves out what fills tensors by chance: without memory it has no effect.

    torch would carry it out by Python code that brings its compiler along, which takes two seconds.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        given: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        if function in (Tensor.normal_, Tensor.uniform_):
            return given[0]
        if getattr(function, "__module__", None) == nn.init.__name__:
            return options["tensor"]
        return function(*given, **options)
