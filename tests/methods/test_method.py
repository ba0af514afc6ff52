from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densesiam_seg.methods.method import Method, Objective, weighted


def test_parts_are_before_and_the_total_after_weighting() -> None:
    losses = [torch.tensor(value, requires_grad=True) for value in (2.0, 3.0)]
    terms = {"one": (0.5, losses[0]), "two": (4.0, losses[1])}
    total, parts = weighted(terms)
    assert total.item() == 13
    assert parts == {"one": 2, "two": 3}
    assert total.requires_grad and not any(part.requires_grad for part in parts.values())


def test_nothing_is_prepared_or_kept_unless_a_method_does() -> None:
    class Plain(Method):
        def objective(self, images: Tensor, indices: Sequence[int], epoch: int) -> Objective:
            raise AssertionError

    class Store:
        def batches(self, groups: object, *, pinned: bool) -> object:
            return groups, pinned

    store: Any = Store()
    method = Plain()
    batches: Any = method.batches(store, [(1, 2)], pinned=True)
    assert batches == ([(1, 2)], True)
    assert list(method.prepare(store, 3)) == []
    assert method.state() == {}
    method.restore({})
