"""The network as inference needs it on a processor: batch norms folded, weights laid out once.

Axes: B images, C D channels into and out of a convolution, H W maps.

In inference a batch norm is a linear map of each channel, so it goes into the weights of the convolution before it, and
what clips its result goes into the same pass over memory. The weights are brought into the precision and the order in
which oneDNN reads them once, and not in every pass. This rounds otherwise than the layers one by one; models that are
trained or exported, and `--precision fp32`, have their layers as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.network.efficientnet import (
    Conv2dSame,
    DepthwiseSeparable,
    EfficientNetLite,
    InvertedResidual,
)
from densesiam_seg.network.encoder import Backbone
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.network.resnet import BasicBlock, Bottleneck
from densesiam_seg.network.timm_backbones import TimmBackbone
from densesiam_seg.views.photometric import MEAN, STD

_CLIPS: dict[str, tuple[str, list[float]]] = {
    "Identity": ("none", []),
    "ReLU": ("relu", []),
    "ReLU6": ("hardtanh", [0.0, 6.0]),
}
"""What follows a batch norm, by its name, and how oneDNN calls it."""


def inference_form(network: DenseSiam, precision: torch.dtype) -> DenseSiam:
    """A copy of a network on the processor whose convolutions are prepared.

    Those of a library's backbone stay as they are, since only it knows in which order it calls them. What is not
    prepared shares its tensors with the network, which is returned itself where oneDNN cannot do this here.
    """
    if not available(precision):
        return network
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    form: DenseSiam = copy.deepcopy(network, shared).eval()
    backbone, decoder = form.encoder.backbone, form.encoder.decoder
    with torch.inference_mode():
        if isinstance(backbone, Backbone) and hasattr(backbone, "layer1"):
            _fold(backbone, ("conv1", "bn1", "relu"), precision)
            _fold_blocks((backbone.get_submodule(name) for (*_, name) in backbone.path), precision)
        elif isinstance(backbone, TimmBackbone) and isinstance(backbone.plain, EfficientNetLite):
            _fold(backbone.plain, ("conv_stem", "bn1"), precision)
            _fold_blocks(backbone.plain.blocks, precision)
            _normalise_in_stem(backbone)
        if decoder is not None:
            for name in decoder.laterals._modules:
                _fold(decoder.laterals, (name,), precision)
        layers = list(form.projector._modules)
        starts = [i for i, each in enumerate(form.projector) if isinstance(each, nn.Conv2d)]
        for start, end in pairwise([*starts, len(layers)]):
            _fold(form.projector, layers[start:end], precision)
    return form


@cache
def available(precision: torch.dtype) -> bool:
    """Whether this processor and this torch have what `Convolution` calls, which torch does not document."""
    # The first weights of a trial are no draws of whoever comes next.
    with torch.random.fork_rng(devices=[]):
        plain = nn.Conv2d(8, 8, 3, 2, device="cpu")
    maps = torch.ones(1, 8, 9, 9)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for parameter in plain.parameters():
            parameter.fill_(1 / 64)
        try:
            if precision == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return False
            found = Convolution(plain, precision)(maps)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False
        return torch.allclose(found.float(), plain(maps), rtol=2**-6)


class Convolution(nn.Module):
    """A convolution of maps (B, C, H, W) with the batch norm and the clipping after it, as one pass."""

    def __init__(
        self,
        plain: nn.Conv2d,
        precision: torch.dtype,
        norm: nn.modules.batchnorm._BatchNorm | None = None,
        clip: str = "Identity",
    ) -> None:
        super().__init__()
        weight, bias = _folded(plain, norm)
        self.precision = precision
        self.stride, self.dilation = list(plain.stride), list(plain.dilation)
        self.kernel, self.groups = list(plain.kernel_size), plain.groups
        self.clip, self.bounds = _CLIPS[clip]
        self.padding = (
            None if isinstance(plain, Conv2dSame) else [int(each) for each in plain.padding]
        )
        # Neither is a parameter, as oneDNN's own order has no place in a state dict.
        self.weight = self._laid_out(weight)
        self.bias = bias.float()
        self.shown: tuple[list[float], list[float]] | None = None
        """Factor and summand of each channel that come before all else."""
        self.shifted: Tensor | None = None
        if self.padding is None and max(self.stride) > 1:
            # A column and a row of zeros before the weights make a padding even whose odd rest lies behind.
            self.shifted = self._laid_out(F.pad(weight, (1, 0, 1, 0)))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps in any precision and order → maps in this one's, the channels last."""
        if self.shown is not None:
            maps = _affine(maps, *self.shown)
        maps = maps.contiguous(memory_format=torch.channels_last).to(self.precision)
        weight, padding = self.weight, self.padding
        if padding is None:
            maps, weight, padding = self._same(maps)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps,
            weight,
            self.bias,
            padding,
            self.stride,
            self.dilation,
            self.groups,
            self.clip,
            self.bounds,
            "",
        )
        return result

    def _laid_out(self, weight: Tensor) -> Tensor:
        weight = weight.to(self.precision).contiguous(memory_format=torch.channels_last)
        if max(weight.shape[-2:]) == 1:
            # For these oneDNN's order depends on the maps' size, and another one is twenty times as slow.
            return weight
        laid_out: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(
            weight.to_mkldnn(), self.padding or [0, 0], self.stride, self.dilation, self.groups
        )
        return laid_out

    def _same(self, maps: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """TensorFlow's padding: what a side lacks is added half before and half behind, an odd rest behind.

        Returns maps, weight and even padding that come to the same.
        """
        lacking = [
            max((-(-side // step) - 1) * step + kernel - side, 0)
            for side, step, kernel in zip(maps.shape[-2:], self.stride, self.kernel, strict=True)
        ]
        if not any(each % 2 for each in lacking):
            return maps, self.weight, [each // 2 for each in lacking]
        if self.shifted is not None and all(each % 2 for each in lacking):
            return maps, self.shifted, [each // 2 + 1 for each in lacking]
        down, right = lacking
        sides = (right // 2, right - right // 2, down // 2, down - down // 2)
        return F.pad(maps, sides), self.weight, [0, 0]


def _affine(maps: Tensor, factors: list[float], summands: list[float]) -> Tensor:
    """Each channel times its factor plus its summand; by planes, as that is three times as fast."""
    result = torch.empty_like(maps, memory_format=torch.contiguous_format)
    for place, (factor, summand) in enumerate(zip(factors, summands, strict=True)):
        torch.mul(maps[:, place], factor, out=result[:, place]).add_(summand)
    return result


class Block(nn.Module):
    """Convolutions in turn, then added to what came in by way of a shortcut, if there is one; clipped in a ResNet."""

    def __init__(
        self, convolutions: list[nn.Module], shortcut: nn.Module | None, *, clipped: bool
    ) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*convolutions)
        self.shortcut = shortcut
        self.clipped = clipped

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) → (B, D, h, w)."""
        found: Tensor = self.convolutions(maps)
        if self.shortcut is not None:
            found = found.add_(self.shortcut(maps))
        return found.relu_() if self.clipped else found


def _fold(parent: nn.Module, names: Sequence[str], precision: torch.dtype) -> None:
    """Make one of children that are called in turn: a convolution, its batch norm and what clips that, if there."""
    plain, norm, clip = [*(parent.get_submodule(name) for name in names), None, None][:3]
    assert isinstance(plain, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | None)
    clipped = "Identity" if clip is None else type(clip).__name__
    setattr(parent, names[0], Convolution(plain, precision, norm, clipped))
    for name in names[1:]:
        setattr(parent, name, nn.Identity())


def _fold_blocks(stages: Iterable[nn.Module], precision: torch.dtype) -> None:
    for stage in stages:
        for name, block in list(stage.named_children()):
            if type(block) in _BLOCKS:
                setattr(stage, name, _block(block, precision))


def _normalise_in_stem(backbone: TimmBackbone) -> None:
    """Let the first convolution do what `TimmBackbone` does to images, whose weights expect other numbers."""
    usual = zip(MEAN, STD, backbone.mean, backbone.deviation, strict=True)
    pairs = [(std / own_std, (mean - own_mean) / own_std) for mean, std, own_mean, own_std in usual]
    backbone.plain.conv_stem.shown = [each for each, _ in pairs], [each for _, each in pairs]
    backbone.mean, backbone.deviation = MEAN, STD


def _block(block: nn.Module, precision: torch.dtype) -> Block:
    """A block of a network in this form."""
    parts: Any = block
    convolutions: list[nn.Module] = [
        Convolution(getattr(parts, name), precision, getattr(parts, norm), clip)
        for name, norm, clip in _BLOCKS[type(block)]
    ]
    if not isinstance(block, BasicBlock | Bottleneck):
        added = isinstance(block, InvertedResidual) and block.residual
        return Block(convolutions, nn.Identity() if added else None, clipped=False)
    if parts.downsample is None:
        return Block(convolutions, nn.Identity(), clipped=True)
    plain, norm = parts.downsample
    return Block(convolutions, Convolution(plain, precision, norm), clipped=True)


_BLOCKS: dict[type[nn.Module], tuple[tuple[str, str, str], ...]] = {
    BasicBlock: (("conv1", "bn1", "ReLU"), ("conv2", "bn2", "Identity")),
    Bottleneck: (
        ("conv1", "bn1", "ReLU"),
        ("conv2", "bn2", "ReLU"),
        ("conv3", "bn3", "Identity"),
    ),
    DepthwiseSeparable: (("conv_dw", "bn1", "ReLU6"), ("conv_pw", "bn2", "Identity")),
    InvertedResidual: (
        ("conv_pw", "bn1", "ReLU6"),
        ("conv_dw", "bn2", "ReLU6"),
        ("conv_pwl", "bn3", "Identity"),
    ),
}
"""Convolution, batch norm and what clips it, in turn."""


def _folded(
    plain: nn.Conv2d, norm: nn.modules.batchnorm._BatchNorm | None
) -> tuple[Tensor, Tensor]:
    """Weight (D, C, ...) and bias (D,) of a convolution and a batch norm in one, float32."""
    weight = plain.weight.detach()
    bias = weight.new_zeros(len(weight)) if plain.bias is None else plain.bias.detach()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.detach()
    return weight * scale.view(-1, 1, 1, 1), shift
