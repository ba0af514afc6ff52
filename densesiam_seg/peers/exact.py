"""Sums that are the same bits in whatever order, and by however many processes, they are added up.

Floating-point addition is not associative, so that sums of floats differ in their last digits from one number of
processes to the next, and with them whatever is decided by them. Integers have no such digits: every summand is rounded
to a multiple of a power of two that leaves room for the whole sum, and the multiples are added as int64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from densesiam_seg.peers.group import Group

_BITS = 62
"""Of an int64, but its sign and one to spare for rounding."""


class ExactSum:
    """The sum of at most `parts` tensors of one shape, no number of which is beyond ± `bound`.

    The error of each summand is at most bound · parts / 2⁶³.
    """

    def __init__(self, bound: float, parts: int) -> None:
        assert bound > 0 and parts > 0, (bound, parts)
        _, exponent = math.frexp(bound * parts)
        self._scale = math.ldexp(1.0, _BITS - exponent)
        self._sum: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Add a tensor, on whatever device."""
        # On a GPU too only double precision holds the digits.
        units = (part.double() * self._scale).round_().long()
        self._sum = units if self._sum is None else self._sum.add_(units)

    def total(self, group: Group, like: Tensor) -> Tensor:
        """The sum over all processes, in double precision; `like` has its shape, for a process that added nothing."""
        own = like.new_zeros(like.shape).long() if self._sum is None else self._sum
        return group.total(own).double() / self._scale
