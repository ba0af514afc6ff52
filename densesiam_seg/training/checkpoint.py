"""Checkpoints of a run: complete, verified before they are read, and replaced only once the next one is complete.

A checkpoint is a folder `step-00001234` with `tensors.safetensors` and `manifest.json`. It is written as `.tmp-…`,
flushed, and renamed when complete, so a name that begins with `step-` is always a complete checkpoint. The manifest
holds the SHA-256 of every other file and begins with its own, because no file format notices a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import (
    JSON,
    discard,
    open_regular,
    output_error,
    remove,
    replace_file,
    sync_folder,
    temporary_name,
)
from densesiam_seg.io.tensors import read_safetensors, write_safetensors

KEEP = 2
"""Number of checkpoints that are kept."""
_FORMAT = 1
_NAME = re.compile(r"step-([0-9]{8,18})(?:\.([0-9]{1,9}))?")
TENSORS = "tensors.safetensors"
MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 26
_SEAL = b'{"sha256": "%s", '
_SEAL_BYTES = len(_SEAL) - 2 + 64


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps: tensors by name, and everything else as JSON."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    rejected: list[tuple[Path, str]] = field(default_factory=list)
    """Newer checkpoints that were refused, each with the reason."""


def space_needed(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that saving `tensors` again and again takes: the kept checkpoints and the one being written."""
    one = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return (KEEP + 1) * (one + (1 << 20))


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, JSON], *, step: int
) -> Path:
    """Save a run's state in `folder` (created when absent) and return the new checkpoint's folder.

    The newest checkpoints are kept, except those of a later step, which the resumed run no longer leads to.
    A second save of one step gets the name `step-00001234.2`, so that the first is deleted only when the second is
    complete. Raises OutputError; whatever was saved before is then still there.
    """
    fresh = temporary_name(folder / "checkpoint")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        try:
            digest = write_safetensors(fresh / TENSORS, tensors)
            files: JSON = {TENSORS: digest}
            manifest = _seal({"format": _FORMAT, "step": step, "files": files, "state": state})
            assert len(manifest) <= _MAX_MANIFEST, "large state belongs among the tensors"
            replace_file(fresh / MANIFEST, manifest)
            final = fresh.rename(_free_name(folder, step))
        except BaseException:
            remove(fresh)
            raise
        sync_folder(folder)
        _retire(folder, final)
    except OSError as error:
        raise output_error(folder, error) from error
    return final


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of the highest step whose digests agree, or None where nothing was ever saved.

    Damaged ones are skipped and listed. Raises ModelError when there are only damaged ones.
    """
    rejected: list[tuple[Path, str]] = []
    try:
        found = _newest_first(folder)
    except OSError as error:
        raise ModelError(
            f"{folder}: cannot be read ({error.strerror or error}); check the path given"
        ) from error
    for path in found:
        try:
            return replace(_read(path), rejected=rejected)
        except ModelError as error:
            rejected.append((path, str(error)))
    if not rejected:
        return None
    raise ModelError(
        f"{folder}: no checkpoint is sound ({len(rejected)} refused; the newest: {rejected[0][1]}); "
        "restore one from a copy or start again with --overwrite"
    )


def discard_checkpoint(path: Path) -> None:
    """Delete a refused checkpoint, so that it is not counted among the kept ones. Raises OutputError."""
    try:
        discard(path)
    except OSError as error:
        raise output_error(path, error) from error


def _retire(folder: Path, final: Path) -> None:
    """Delete every checkpoint but `final` and the newest ones of earlier steps. Raises OSError."""
    paths = _newest_first(folder)
    earlier = [path for path in paths if _order(path)[0] < _order(final)[0]]
    for path in paths:
        if path not in (final, *earlier[: KEEP - 1]):
            discard(path)


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder` by falling step."""
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    return sorted(found, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    """Step and repetition of a checkpoint from its folder's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1]), int(match[2] or 1)


def _free_name(folder: Path, step: int) -> Path:
    taken = [_order(path)[1] for path in _newest_first(folder) if _order(path)[0] == step]
    repetition = f".{max(taken) + 1}" if taken else ""
    return folder / f"step-{step:08d}{repetition}"


def _seal(manifest: Mapping[str, JSON]) -> bytes:
    """JSON whose first member is the SHA-256 of all the bytes that follow it.

    So the manifest is verified byte by byte before it is parsed. Unlike other JSON files this one keeps NaN and
    infinities: a resumed run needs the very values.
    """
    body = json.dumps(manifest, indent=1)[1:].lstrip().encode("ascii")
    return _SEAL % hashlib.sha256(body).hexdigest().encode("ascii") + body


def _unseal(data: bytes, path: Path) -> Any:
    """The manifest of `_seal`. Raises ModelError before anything is parsed if a single byte differs."""
    body = data[_SEAL_BYTES:]
    if data != _SEAL % hashlib.sha256(body).hexdigest().encode("ascii") + body:
        raise ModelError(f"{path}: its SHA-256 does not match")
    return json.loads(b"{" + body)


def _read(path: Path) -> Checkpoint:
    """One checkpoint, verified and then read. Raises ModelError."""
    source = path / MANIFEST
    try:
        with open_regular(source) as file:
            manifest = _unseal(file.read(_MAX_MANIFEST), source)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{source}: cannot be read ({error})") from error
    match manifest:
        case {"format": version, "step": step, "files": dict(files), "state": dict(state)} if (
            version == _FORMAT
        ):
            if step != _order(path)[0]:
                raise ModelError(f"{source}: belongs to step {step}, not to this folder")
        case _:
            raise ModelError(f"{source}: its format is not known to this version")
    tensors = read_safetensors(path / TENSORS, sha256=str(files.get(TENSORS)), finite=False)
    return Checkpoint(_order(path)[0], tensors, state, path)
