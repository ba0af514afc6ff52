"""Sealed files: what they keep, and that no byte of them may change."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest

from densesiam_seg.errors import ModelError
from densesiam_seg.io.sealed import read_sealed, seal, verify

CONTENT = {"rate": 0.1 + 0.2, "best": -math.inf, "file": "bad\udcff.jpg", "order": [1, [None]]}


def test_the_first_member_is_the_digest_of_what_follows(tmp_path: Path) -> None:
    data = seal(CONTENT)
    assert json.loads(data) == {"sha256": json.loads(data)["sha256"], **CONTENT}
    start = b'{"sha256": "' + hashlib.sha256(data[79:]).hexdigest().encode() + b'", '
    assert data[:79] == start
    (tmp_path / "a").write_bytes(data)
    assert read_sealed(tmp_path / "a", len(data)) == CONTENT


def test_no_byte_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = seal(CONTENT)
    mutants = [data[:length] for length in range(len(data))] + [data + b" "]
    mutants += [
        data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        for place in range(len(data))
    ]
    monkeypatch.setattr(json, "loads", None)  # nothing is parsed before its digest is right
    for mutant in mutants:
        (tmp_path / "a").write_bytes(mutant)
        with pytest.raises(ModelError, match="SHA-256"):
            read_sealed(tmp_path / "a", 1 << 20)


def test_what_is_too_large_or_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(seal(CONTENT))
    with pytest.raises(ModelError, match="larger"):
        read_sealed(tmp_path / "a", 100)
    (tmp_path / "b").write_bytes(seal({"deep": 0})[:79] + b"[" * 100_000)
    with pytest.raises(ModelError):
        read_sealed(tmp_path / "b", 1 << 20)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(ModelError, match="cannot be read"):
            read_sealed(path, 1 << 20)
        with pytest.raises(ModelError, match="cannot be read"):
            verify(path, "0" * 64)


def test_other_files_are_verified_by_their_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    verify(tmp_path / "a", hashlib.sha256(b"abc").hexdigest())
    (tmp_path / "a").write_bytes(b"abd")
    with pytest.raises(ModelError, match="SHA-256"):
        verify(tmp_path / "a", hashlib.sha256(b"abc").hexdigest())
