"""Draws named by (seed, stream, round, image, view): bits against Philox worked out in plain Python."""

from __future__ import annotations

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
    found = generator(seed, stream, round_, image, view).bit_generator.random_raw(8)
    assert found.tolist() == expected


def test_streams_are_numbered_for_ever() -> None:
    # A changed number would silently change the views of every old run.
    assert [stream.name for stream in Stream] == ["VIEWS", "ORDER", "WEIGHTS", "PIXELS", "GRID"]
    assert [*Stream] == [0, 1, 2, 3, 4]


def test_torch_takes_the_seed() -> None:
    seeds = [torch_seed(seed, stream) for seed in (0, 1, 2**63 - 1) for stream in Stream]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        assert torch.Generator().manual_seed(seed).initial_seed() == seed
