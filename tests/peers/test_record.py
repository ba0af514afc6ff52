"""What made the masks of a folder: who may go on with them, and that all of many processes see one record."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.errors import OutputError, UsageError
from densesiam_seg.peers.record import RECORD, claim, read_record, require_unchanged

FACTS: dict[str, Any] = {"model": "aa", "clusters": "bb", "refine": "pamr", "scales": [0.75, 1.0]}
OTHER = {**FACTS, "refine": "none", "scales": [1.0], "bands": None}


def test_of_a_new_folder(tmp_path: Path) -> None:
    """It holds since when, by the disk's clock; those that come later find it as it is."""
    (tmp_path / "before").touch()
    found = claim(tmp_path, FACTS, keeps=True)
    assert found.new and read_record(tmp_path) == found.record
    (tmp_path / "after").touch()
    before, after = ((tmp_path / name).stat().st_mtime_ns for name in ("before", "after"))
    assert before <= found.record.since <= after
    again = claim(tmp_path, dict(FACTS), keeps=True)
    assert (again.record, again.new) == (found.record, False)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["after", "before", RECORD]


def test_other_facts_are_refused_where_masks_are_kept(tmp_path: Path) -> None:
    first = claim(tmp_path, FACTS).record
    with pytest.raises(UsageError, match=r"\(refine pamr, now none; scales 0.75,1.0, now 1.0\)"):
        claim(tmp_path, OTHER, keeps=True)
    for name in ("model", "clusters"):
        with pytest.raises(UsageError, match=r"\(another (model|state of its clusters)\); give --"):
            claim(tmp_path, {**FACTS, name: "cc"}, keeps=True)
    assert read_record(tmp_path) == first


def test_a_job_that_was_overtaken(tmp_path: Path) -> None:
    first = claim(tmp_path, FACTS).record
    require_unchanged(tmp_path, first)
    claim(tmp_path, OTHER, overwrite=True)
    with pytest.raises(UsageError, match=r"another job has written here .*refine none, now pamr"):
        require_unchanged(tmp_path, first)


@pytest.mark.parametrize("keeps", [False, True])
def test_other_facts_with_overwrite_begin_anew(tmp_path: Path, keeps: bool) -> None:
    first = claim(tmp_path, FACTS).record
    found = claim(tmp_path, OTHER, keeps=keeps, overwrite=True)
    assert found.new and found.record.replaces and found.record.since >= first.since
    again = claim(tmp_path, OTHER, keeps=keeps, overwrite=True)
    assert (again.record, again.new) == (found.record, False)


def test_a_job_that_keeps_nothing_begins_anew_but_replaces_nothing(tmp_path: Path) -> None:
    claim(tmp_path, FACTS)
    found = claim(tmp_path, OTHER)
    assert found.new and not found.record.replaces


def test_overwrite_holds_for_those_that_go_on(tmp_path: Path) -> None:
    """With the same facts it changes nothing else."""
    first = claim(tmp_path, FACTS).record
    assert not first.replaces
    second = claim(tmp_path, FACTS, overwrite=True)
    assert (second.record.since, second.record.replaces, second.new) == (first.since, True, False)
    assert claim(tmp_path, FACTS, keeps=True).record == second.record


def test_masks_of_unknown_making_are_adopted(tmp_path: Path) -> None:
    assert claim(tmp_path, FACTS, keeps=True, adopts=True).record.since == 0
    assert claim(tmp_path, FACTS, keeps=True).record.since == 0


def test_shards_of_another_list_of_images(tmp_path: Path) -> None:
    claims = [claim(tmp_path, FACTS, keeps=True, images=images) for images in ("a", "a", "b", "b")]
    assert [each.other_images for each in claims] == [False, False, True, False]
    assert len({each.record.since for each in claims}) == 1
    assert claim(tmp_path, FACTS, keeps=True).record.images == "b"


@pytest.mark.parametrize("links", [True, False])
def test_all_that_begin_at_once_have_one_record(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk without hard links at least the digest is the same."""
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    for trial in range(10):
        folder = tmp_path / str(trial)
        folder.mkdir()
        gate = threading.Barrier(8)

        def begin(_: int, folder: Path = folder, gate: threading.Barrier = gate) -> Any:
            gate.wait()
            return claim(folder, FACTS, keeps=True)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(begin, range(8)))
        assert len({each.record.digest for each in found}) == 1
        if links:
            assert len({each.record.since for each in found}) == 1
            assert sum(each.new for each in found) == 1
        assert [path.name for path in folder.iterdir()] == [RECORD]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"digest": "0", "facts": {}}', '{"name": "my settings"}', "[" * 9999],
)
def test_files_of_other_people_stay(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(UsageError, match=r"predict\.json: is no record of an earlier prediction"):
        claim(tmp_path, FACTS, overwrite=True)
    assert (tmp_path / RECORD).read_text() == content


def test_a_damaged_one(tmp_path: Path) -> None:
    claim(tmp_path, FACTS)
    text = (tmp_path / RECORD).read_text()
    (tmp_path / RECORD).write_text(text.replace('"pamr"', '"none"'))
    with pytest.raises(UsageError, match="or a damaged one; move it away"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"facts": [1]}, {"since": 0.5}, {"since": True}, {"replaces": 1}, {"images": None}]
)
def test_values_of_other_kinds(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Whoever made them up has computed the digest too."""
    record = replace(claim(tmp_path, FACTS).record, **changes)
    (tmp_path / RECORD).write_text(json.dumps({"digest": record.digest, **vars(record)}))
    with pytest.raises(UsageError, match="is no record of an earlier prediction"):
        claim(tmp_path, OTHER, keeps=True)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((OutputError, UsageError)):
        claim(tmp_path / "file", FACTS)
    (tmp_path / RECORD).symlink_to("nowhere")
    with pytest.raises(UsageError, match="comes and goes"):
        claim(tmp_path, FACTS)
