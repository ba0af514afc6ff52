"""JSON files that hold the digest of themselves and of the files beside them: no format notices a flipped bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densesiam_seg.errors import ModelError
from densesiam_seg.io.files import open_regular

_SEAL = b'{"sha256": "%s", '
_SEAL_BYTES = len(_SEAL) - 2 + 64


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON whose first member is the SHA-256 of all the bytes that follow it.

    So the file is verified byte by byte before it is parsed. Unlike other JSON files this one keeps NaN and infinities:
    a resumed run needs the very values.
    """
    body = json.dumps(content, indent=1)[1:].lstrip().encode("ascii")
    return _SEAL % hashlib.sha256(body).hexdigest().encode("ascii") + body


def read_sealed(path: Path, most: int) -> Any:
    """The content of a file that `seal` made, of at most `most` bytes.

    Nothing is parsed before every byte is known to be as it was written. Raises ModelError.
    """
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
        body = data[_SEAL_BYTES:]
        if len(data) > most:
            raise ModelError(f"{path}: larger than any that this program wrote; give a sound one")
        if data != _SEAL % hashlib.sha256(body).hexdigest().encode("ascii") + body:
            raise ModelError(
                f"{path}: is damaged, edited or of another version (its SHA-256 does not match); "
                "restore it from a copy"
            )
        return json.loads(b"{" + body)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); restore it from a copy") from error


def verify(path: Path, sha256: str) -> None:
    """Raises ModelError unless a file is the one with this digest."""
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror or error}); restore it from a copy"
        ) from error
    if found != sha256:
        raise ModelError(
            f"{path}: is damaged or another file (its SHA-256 is not the one recorded when it was written); "
            "restore it from a copy"
        )
