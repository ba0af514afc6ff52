"""Colour changes of images, with torchvision's definitions, and the network's normalisation.

Axes: B images, H W image.

Three implementations: `adjust_colour` for a batch on any device; `recolour` for one image in place, which skips
changes that the image does not have and reads memory half as often; and `changed`, whose calls depend on no value, so
that a GPU's compiler makes one pass of them. They differ in rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from densesiam_seg.views.parameters import Photometry

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision rounds it
NEUTRAL = (1.0, 1.0, 1.0, 0.0, 0.0)
"""Brightness, contrast, saturation, hue and grey that change nothing."""
STRIP = 2**16
"""Pixels that are recoloured at once."""


def normalise(images: Tensor) -> Tensor:
    """(…, 3, H, W) in [0, 1] → ImageNet's zero mean and unit deviation per channel."""
    mean, std = _statistics(images.device)
    return (images - mean) / std


def denormalise(images: Tensor) -> Tensor:
    """What `normalise` made of images, back to [0, 1]."""
    mean, std = _statistics(images.device)
    return images * std + mean


def normalise_(images: Tensor) -> Tensor:
    """`normalise` in place."""
    mean, std = _statistics(images.device)
    return images.sub_(mean).div_(std)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return _constant(MEAN, device).view(3, 1, 1), _constant(STD, device).view(3, 1, 1)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, copied there once, since a copy to a GPU makes the processor wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def adjust_colour(images: Tensor, photometry: Photometry) -> Tensor:
    """Brightness, contrast, saturation, hue, grey, clamped to [0, 1] after each, with torchvision's definitions.

    `images` is float (B, 3, H, W) in [0, 1]. A change that no image of the batch has is not computed; with the
    photometry in main memory, this needs no synchronisation with a GPU.
    """
    colours = photometry.colours()
    needed = (colours != torch.tensor(NEUTRAL, device=colours.device)).any(0).tolist()
    brightness, contrast, saturation, hue, grey = (
        colours.to(images.device, non_blocking=True).view(-1, 5, 1, 1, 1).unbind(1)
    )
    if needed[0]:
        images = (images * brightness).clamp_(0, 1)
    if needed[1]:
        mean = _luma(images.mean((-2, -1), keepdim=True))
        images = (images * contrast).add_((1.0 - contrast) * mean).clamp_(0, 1)
    if needed[2]:
        images = (images * saturation).add_((1.0 - saturation) * _luma(images)).clamp_(0, 1)
    if needed[3]:
        images = _rotate_hue(images, hue)
    if needed[4]:
        images = torch.where(grey.bool(), _luma(images), images)
    return images


def changed(images: Tensor, colours: Tensor) -> Tensor:
    """`adjust_colour` of stored images, uint8 (B, 3, H, W), by `Photometry.colours` (B, 5) on their device.

    In float16, which has more digits than the network's first layer keeps (bfloat16) and far more than the image.
    """
    brightness, contrast, saturation, hue, grey = colours.view(-1, 5, 1, 1, 1).unbind(1)
    floats = (images.float() / 255.0 * brightness).clamp(0, 1)
    mean = _weighted(floats).mean((-2, -1), keepdim=True)
    floats = (floats * contrast + (1.0 - contrast) * mean).clamp(0, 1)
    floats = (floats * saturation + (1.0 - saturation) * _weighted(floats)).clamp(0, 1)
    floats = _rotate_hue(floats, hue)
    return torch.where(grey.bool(), _weighted(floats), floats).half()


def _weighted(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) as a sum, which a compiler joins with what is around it, as it does not with a product."""
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _luma(images: Tensor) -> Tensor:
    weights = _constant(LUMA, images.device).view(1, 3)
    return (weights @ images.flatten(2)).view(len(images), 1, *images.shape[2:])


def _rotate_hue(images: Tensor, hue: Tensor) -> Tensor:
    """Rotate the HSV hue by `hue` ∈ [-½, ½] of the circle, without converting to HSV.

    With V the maximum, c the chroma and t the hue in sixths of the circle, the channel at offset n ∈ (5, 3, 1) is
    V - c·clip(2 - |k - 2|, 0, 1), k = (n + t) mod 6. With t ∈ [0, 6) the nearer of k = 2 and k = 8 replaces the
    remainder; sums and clips replace comparisons, which take ten times as long.
    """
    red, green, blue = images.unbind(1)
    highest = torch.maximum(torch.maximum(red, green), blue)
    chroma = highest - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-9).reciprocal_()
    not_red = (highest - red).mul_(1e30).clamp_(max=1)
    not_green = (highest - green).mul_(1e30).clamp_(max=1)
    red_sixth = (green - blue).mul_(scale)
    green_sixth = (blue - red).mul_(scale).add_(2.0)
    blue_sixth = (red - green).mul_(scale).add_(4.0)
    sixth = torch.lerp(red_sixth, torch.lerp(green_sixth, blue_sixth, not_green), not_red)
    sixth = sixth.add_(hue.view(-1, 1, 1) * 6.0).remainder_(6.0)
    turned = []
    for offset in (5.0, 3.0, 1.0):
        distance = torch.minimum((sixth + (offset - 2.0)).abs_(), (sixth + (offset - 8.0)).abs_())
        share = distance.neg_().add_(2.0).clamp_(0, 1)
        turned.append(highest - share.mul_(chroma))
    return torch.stack(turned, 1)


def brightened_luma(image: Tensor, brightness: float, workspace: Tensor) -> float:
    """Mean luma of a uint8 image (3, H, W) after a change of brightness: what a change of contrast keeps.

    `workspace` is memory for 3·H·W numbers.
    """
    planes = workspace[: image.numel()].view(image.shape).copy_(image)
    if brightness > 1:
        planes.clamp_(max=255 / brightness)
    mean = planes.mean((-2, -1)).mul_(brightness / 255)
    return float(torch.dot(mean, torch.tensor(LUMA)))


def recolour(image: Tensor, change: Sequence[float], mean: float | None = None) -> None:
    """Change one image, contiguous float (3, H, W) from 0 to 255, in place, to one in [0, 1].

    `change` is brightness, contrast, saturation, hue and grey of a `Photometry`; `mean` the luma that contrast keeps,
    by default the image's own after the change of brightness.
    """
    brightness, contrast, saturation, hue, grey = change
    image.mul_(brightness / 255)
    if brightness > 1:
        image.clamp_(max=1)
    planes = image.flatten(1)
    if contrast != 1 and mean is None:
        mean = float(torch.dot(planes.mean(1), torch.tensor(LUMA)))
    constant = torch.tensor(0.0 if mean is None else (1 - contrast) * mean)
    # In strips that stay in the processor's cache during about a hundred operations, with reused memory.
    scratch = torch.empty(6, min(STRIP, planes.shape[1]))
    for start in range(0, planes.shape[1], STRIP):
        strip = planes[:, start : start + STRIP]
        free = scratch[:, : strip.shape[1]]
        if contrast != 1:
            torch.add(constant, strip, alpha=contrast, out=strip).clamp_(0, 1)
        if saturation != 1:
            torch.lerp(_one_luma(strip, free[0]), strip, saturation, out=strip).clamp_(0, 1)
        if hue != 0:
            _turn_hue(strip, hue, free)
        if grey:
            strip.copy_(_one_luma(strip, free[0]))


def _one_luma(image: Tensor, out: Tensor) -> Tensor:
    """Luma (N,) of N pixels (3, N)."""
    torch.mul(image[0], LUMA[0], out=out)
    return out.add_(image[1], alpha=LUMA[1]).add_(image[2], alpha=LUMA[2])


def _turn_hue(image: Tensor, hue: float, scratch: Tensor) -> None:
    """`_rotate_hue` of N pixels (3, N) in place, with `scratch` as memory for 6·N numbers.

    With V the maximum, v the minimum, c = V - v and t ∈ [0, 6) the hue in sixths, red is v + c·clip(|t - 3| - 1, 0, 1),
    green v + c·clip(2 - |t - 2|, 0, 1) and blue v + c·clip(2 - |t - 4|, 0, 1).
    """
    red, green, blue = image
    highest, lowest, chroma, sixth, other, share = scratch
    torch.maximum(torch.maximum(red, green, out=highest), blue, out=highest)
    torch.minimum(torch.minimum(red, green, out=lowest), blue, out=lowest)
    torch.sub(highest, lowest, out=chroma)
    # c·t for a maximum in blue, then in green, then in red: the first of equal ones counts, as in torchvision.
    torch.sub(red, green, out=sixth).add_(chroma, alpha=4)
    torch.sub(blue, red, out=other).add_(chroma, alpha=2)
    torch.sub(highest, green, out=share).sign_()
    torch.lerp(other, sixth, share, out=sixth)
    torch.sub(green, blue, out=other)
    torch.sub(highest, red, out=share).sign_()
    torch.lerp(other, sixth, share, out=sixth)
    sixth.div_(torch.clamp(chroma, min=1e-9, out=other)).add_(6 * hue)
    sixth.sub_(torch.mul(sixth, 1 / 6, out=other).floor_(), alpha=6)
    torch.sub(sixth, 3, out=share).abs_().sub_(1).clamp_(0, 1)
    torch.addcmul(lowest, chroma, share, out=red)
    two = torch.tensor(2.0)
    torch.sub(two, torch.sub(sixth, two, out=share).abs_(), out=share).clamp_(0, 1)
    torch.addcmul(lowest, chroma, share, out=green)
    torch.sub(two, sixth.sub_(4).abs_(), out=sixth).clamp_(0, 1)
    torch.addcmul(lowest, chroma, sixth, out=blue)
