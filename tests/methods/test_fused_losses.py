"""Fused losses against the plain ones: values, gradients, layouts and halves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import in_ranks
from torch import Tensor, nn

from densesiam_seg.methods import fused_losses as fused
from densesiam_seg.methods import losses
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.peers.norms import share_statistics


def maps(images: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """Channels-last maps (B, C, h, h), as the network leaves them."""
    draw = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(images, channels, side, side, generator=draw)
    return values.to(memory_format=torch.channels_last)


class TestRows:
    def test_pixels_are_rows_and_share_channels_last_memory(self) -> None:
        z = maps(2, 3, 4)
        rows = fused.rows(z)
        assert rows.shape == (32, 3) and rows.data_ptr() == z.data_ptr()
        assert torch.equal(rows[5], z[0, :, 1, 1])
        assert torch.equal(fused.rows(z.contiguous()), rows)


class TestSiameseLoss:
    @given(
        images=st.integers(1, 3),
        clusters=st.integers(2, 40),
        side=st.integers(1, 9),
        block=st.integers(1, 500),
        last=st.booleans(),
    )
    @settings(deadline=None, max_examples=40)
    def test_equal_the_plain_formula(
        self, images: int, clusters: int, side: int, block: int, last: bool
    ) -> None:
        layout = torch.channels_last if last else torch.contiguous_format
        p, z = (
            maps(2 * images, clusters, side, seed).to(memory_format=layout).requires_grad_()
            for seed in (0, 1)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "BLOCK", block)
            found = 0.7 * fused.siamese_loss(p, z)
            torch.autograd.backward(found)
        assert z.grad is None  # the stop-gradient
        assert p.grad is not None
        twin = p.detach().clone().requires_grad_()
        expected = 0.7 * losses.pixel_loss(twin, z)
        torch.autograd.backward(expected)
        assert twin.grad is not None
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(p.grad, twin.grad, atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_halves_round_the_gradient_alone(self, dtype: torch.dtype) -> None:
        """The value is summed in float32; a gradient of a millionth survives, since it is scaled last."""
        p, z = maps(4, 6, 16).to(dtype).requires_grad_(), maps(4, 6, 16, 1).to(dtype)
        loss = fused.siamese_loss(p, z)
        assert loss.dtype == torch.float32
        twin = p.detach().float().requires_grad_()
        expected = losses.pixel_loss(twin, z)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        torch.autograd.backward(1024 * loss)
        torch.autograd.backward(1024 * expected)
        assert p.grad is not None and twin.grad is not None and p.grad.dtype == dtype
        bound = 2 * torch.finfo(dtype).eps * twin.grad.abs().max()
        assert (p.grad.float() - twin.grad).abs().max() <= bound


class TestRegionEmbeddings:
    def test_equal_the_plain_formula_with_its_gradients(self) -> None:
        z, features = maps(2, 5, 6).requires_grad_(), maps(2, 7, 6, 1).requires_grad_()
        found = fused.region_embeddings(z, features)
        expected = losses.region_embeddings(z, features)
        assert found.shape == (2, 5, 7)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
        upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
        for one, two in zip(
            torch.autograd.grad(found, (z, features), upstream),
            torch.autograd.grad(expected, (z, features), upstream),
            strict=True,
        ):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)

    def test_stay_in_the_features_precision(self) -> None:
        z, features = maps(2, 5, 6).bfloat16(), maps(2, 7, 6, 1).bfloat16()
        found = fused.region_embeddings(z, features)
        expected = losses.region_embeddings(z, features)
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).abs().max() <= 0.02 * expected.abs().max()


def of_uneven_parts(group: Group, images: Tensor) -> list[Tensor | None]:
    """Gradients of heads with shared statistics, of a mean over all images."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    heads = nn.Sequential(*layers).double()
    share_statistics(heads, group)
    part = group.shard.part(len(images))
    own = images[part.start : part.stop].clone().requires_grad_()
    share = len(part) / len(images)
    loss = fused.with_immediate_gradient(
        lambda values: heads(values).cos().mean(), own, heads, weight=share * group.count
    )
    torch.autograd.backward(share * loss)
    found = [group.total(p.grad) for p in heads.parameters() if p.grad is not None]
    assert own.grad is not None
    return [*found, torch.cat(group.gathered(own.grad))]


def test_gradients_that_are_computed_at_once_weigh_parts_of_a_batch() -> None:
    images = maps(3, 3, 4).double()
    # Parts of one and of two images.
    torch.testing.assert_close(
        in_ranks(2, of_uneven_parts, images)[1], of_uneven_parts(ALONE, images)
    )
