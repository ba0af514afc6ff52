"""Draws named by (seed, stream, round, image, view): bits against Philox worked out in plain Python."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.io.randomness import Stream, generator, torch_seed

MASK = 2**64 - 1
WORD = st.integers(0, 2**63 - 1)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64 with ten rounds (Salmon et al., SC 2011, section 4.3) in Python's own integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (
            (second >> 64) ^ b ^ k0,
            second & MASK,
            (first >> 64) ^ d ^ k1,
            first & MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


def bits(*name: int) -> list[int]:
    seed, stream, round_, image, view = name
    raw = generator(seed, Stream(stream), round_, image, view).bit_generator.random_raw(8)
    return [int(word) for word in raw]


def test_reference_gives_the_published_vector() -> None:
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@settings(deadline=None, max_examples=50)
@given(WORD, st.sampled_from(Stream), WORD, WORD, WORD)
def test_bits_are_philox_of_the_name(
    seed: int, stream: Stream, round_: int, image: int, view: int
) -> None:
    key = [seed, round_]
    expected = [word for block in (1, 2) for word in philox([block, int(stream), view, image], key)]
    assert bits(seed, stream, round_, image, view) == expected


def test_streams_are_numbered_for_ever() -> None:
    # A changed number would silently change the views of every old run.
    assert {stream.name: stream.value for stream in Stream} == {
        "VIEWS": 0,
        "ORDER": 1,
        "WEIGHTS": 2,
        "PIXELS": 3,
        "GRID": 4,
    }


def test_torch_takes_the_seed() -> None:
    seeds = [torch_seed(seed, stream) for seed in (0, 1, 2**63 - 1) for stream in Stream]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        assert torch.Generator().manual_seed(seed).initial_seed() == seed


def global_state() -> list[object]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]


def test_global_generators_are_untouched() -> None:
    with np.printoptions(threshold=10_000):
        before = global_state()
        generator(0, Stream.PIXELS).normal(size=100)
        torch_seed(0, Stream.WEIGHTS)
        assert global_state() == before
