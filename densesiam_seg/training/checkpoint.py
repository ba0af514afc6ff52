"""Checkpoints of a run: complete, verified before they are read, and replaced only once the next one is complete.

A checkpoint is a folder `step-00001234` with `tensors.safetensors` and `manifest.json`. It is written as `.tmp-…`,
flushed, and renamed when complete, so a name that begins with `step-` is always a complete checkpoint. The manifest
holds the SHA-256 of every other file and begins with its own, because no file format notices a flipped bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import JSON, discard, new_folder, output_error, replace_file
from densesiam_seg.io.sealed import read_sealed, seal, verify
from densesiam_seg.io.tensors import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 2
"""Number of checkpoints that are kept."""
_FORMAT = 1
_NAME = re.compile(r"step-([0-9]{8,18})(?:\.([0-9]{1,9}))?")
TENSORS = "tensors.safetensors"
MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 26


@dataclass(frozen=True)
class Sound:
    """A checkpoint whose files are what they were when they were saved; its tensors are not read yet."""

    step: int
    state: dict[str, Any]
    path: Path
    rejected: list[tuple[Path, str]]
    """Newer checkpoints that were refused, each with the reason."""


@dataclass(frozen=True)
class Checkpoint(Sound):
    """The state of a run after `step` steps: tensors by name, and everything else as JSON."""

    tensors: dict[str, Tensor]


def space_needed(tensors: Mapping[str, Tensor], kept: int = 0) -> int:
    """Bytes that saving `tensors` again and again takes, and the model at the end, beside `kept` checkpoints."""
    one = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return (KEEP + 2 - kept) * (one + (1 << 20))


def any_saved(folder: Path) -> bool:
    """Whether `folder` holds checkpoints, sound or not."""
    return any(_NAME.fullmatch(path.name) for path in folder.glob("step-*"))


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, JSON], *, step: int
) -> Path:
    """Save a run's state in `folder` (created when absent) and return the new checkpoint's folder.

    The newest checkpoints are kept, except those of a later step, which the resumed run no longer leads to.
    A second save of one step gets the name `step-00001234.2`, so that the first is deleted only when the second is
    complete. Raises OutputError; whatever was saved before is then still there.
    """
    try:
        final = _free_name(folder, step)
        with new_folder(final) as fresh:
            digest = write_safetensors(fresh / TENSORS, tensors)
            manifest = {
                "format": _FORMAT,
                "step": step,
                "files": {TENSORS: digest},
                "state": state,
            }
            data = seal(manifest)
            assert len(data) <= _MAX_MANIFEST, "large state belongs among the tensors"
            replace_file(fresh / MANIFEST, data)
        _retire(folder, final)
    except OSError as error:
        raise output_error(folder, error) from error
    return final


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of the highest step whose digests agree, or None where nothing was ever saved.

    Damaged ones are skipped and listed. Raises ModelError when there are only damaged ones.
    """
    found = newest_sound(folder)
    if found is None:
        return None
    return Checkpoint(**vars(found), tensors=read_safetensors(found.path / TENSORS, finite=False))


def newest_sound(folder: Path) -> Sound | None:
    """What `load_checkpoint` would load, found without torch. Raises ModelError as that does."""
    rejected: list[tuple[Path, str]] = []
    try:
        paths = _newest_first(folder)
    except OSError as error:
        raise ModelError(
            f"{folder}: cannot be read ({error.strerror or error}); check the path given"
        ) from error
    for path in paths:
        try:
            return Sound(_order(path)[0], _verified(path), path, rejected)
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


def _verified(path: Path) -> dict[str, Any]:
    """The state in the manifest of a checkpoint, all of whose bytes are as they were saved. Raises ModelError."""
    source = path / MANIFEST
    match read_sealed(source, _MAX_MANIFEST):
        case {"format": version, "step": step, "files": dict(files), "state": dict(state)} if (
            version == _FORMAT
        ):
            if step != _order(path)[0]:
                raise ModelError(f"{source}: belongs to step {step}, not to this folder")
        case _:
            raise ModelError(f"{source}: its format is not known to this version")
    verify(path / TENSORS, str(files.get(TENSORS)))
    return state
