"""Label Studio's run lengths, read bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from slow_readers import read_brush

from densesiam_seg.exporting.brush import brush


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 50), (200, 300)])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_it_reads_back(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    values = read_brush(brush(mask)).reshape(*shape, 4)
    np.testing.assert_array_equal(values, np.repeat(255 * mask[..., None], 4, 2))


def test_the_bits_of_two_pixels() -> None:
    bits = "".join(f"{byte:08b}" for byte in brush(np.array([[True, False]])))
    head = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    assert bits.startswith(head + "100011" + "11111111" + "100011" + "00000000")
