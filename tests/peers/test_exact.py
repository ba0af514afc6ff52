"""Sums in fixed point."""

from __future__ import annotations

import torch
from ranks import in_ranks

from densesiam_seg.peers.exact import ExactSum
from densesiam_seg.peers.group import ALONE, Group

PARTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 1e3


def total_of(group: Group, order: list[int]) -> list[float]:
    exact = ExactSum(bound=1e4, parts=len(PARTS))
    for place in order[group.index :: group.count]:
        exact.add(PARTS[place])
    result: list[float] = exact.total(group, like=torch.zeros(5)).tolist()
    return result


def test_the_sum_is_the_same_in_any_order_and_for_any_number_of_processes() -> None:
    order = list(range(40))
    alone = total_of(ALONE, order)
    assert total_of(ALONE, order[::-1]) == alone
    assert in_ranks(2, total_of, order) == [alone] * 2
    assert in_ranks(3, total_of, order) == [alone] * 3


def test_the_sum_is_that_of_the_numbers() -> None:
    expected = PARTS.double().sum(0)
    found = torch.tensor(total_of(ALONE, list(range(40))), dtype=torch.float64)
    # Each summand is rounded by half a unit of 1e4 · 40 / 2⁶² at most.
    assert (found - expected).abs().max() <= 40 * 1e4 * 40 / 2**62


def test_the_bound_may_be_reached_by_every_part() -> None:
    exact = ExactSum(bound=1.0, parts=1000)
    for _ in range(1000):
        exact.add(torch.tensor([1.0, -1.0]))
    assert exact.total(ALONE, like=torch.zeros(2)).tolist() == [1000.0, -1000.0]
