"""What a run was asked for: kept as JSON, found again, and refused where it does not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.errors import ModelError, UsageError
from densesiam_seg.images.scan import scan
from densesiam_seg.io.run_directory import write_status
from densesiam_seg.training.request import Request, added, repeatable, request_of

REQUEST = Request(("/data/a", "/data/b*.png"), "fast", 0.1, "/runs/m", True, {"seed": 3})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_a_request_survives_every_status(folder: Path) -> None:
    write_status(folder, "running", request=REQUEST.to_dict())
    write_status(folder, "stopped", reason="a signal")
    assert request_of(folder) == REQUEST
    assert repeatable(folder, "train", {"workers": 2}).settings == {"seed": 3, "workers": 2}


def test_it_does_not_depend_on_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    found = Request.of(["images", "b*.png"], {"weights": "w.pth"}, "m", preset=None)
    assert found.images == (str(tmp_path / "images"), str(tmp_path / "b*.png"))
    assert found.init_from == str(tmp_path / "m")
    assert found.settings == {"weights": str(tmp_path / "w.pth")}
    (tmp_path / "auto").mkdir()  # a word is meant before a folder
    assert Request.of(["images"], {"weights": "auto"}, None).settings == {"weights": "auto"}


@pytest.mark.parametrize("images", [["-"], ["a", "-"], ["x" * 100] * 1001])
def test_what_cannot_be_had_again_is_not_kept(folder: Path, images: list[str]) -> None:
    request = Request.of(images, {}, None)
    assert request.images == ()
    write_status(folder, "running", request=request.to_dict())
    with pytest.raises(ModelError, match="cannot be found again"):
        repeatable(folder, "train", {})


@pytest.mark.parametrize(
    "damaged",
    [
        None, 7, [], {}, {"images": 7}, {"images": ["a"], "settings": 3}, {"images": ["a"], "more": 1},
        {"images": ["a"], "preset": "slow"},
    ],
)  # fmt: skip
def test_damaged_requests_are_none(folder: Path, damaged: Any) -> None:
    write_status(folder, "running", request=damaged)
    assert request_of(folder) is None


def test_other_settings_are_refused(folder: Path) -> None:
    write_status(folder, "running", request=REQUEST.to_dict())
    with pytest.raises(UsageError, match="seed is 3"):
        repeatable(folder, "train", {"seed": 4})
    with pytest.raises(UsageError, match="epochs is by default"):
        repeatable(folder, "train", {"epochs": 4})


def test_what_came_since(image_folder: Path, folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes((image_folder / "01.png").read_bytes())
    manifest = scan([images])
    assert added(manifest, folder) == []  # it has no request
    write_status(
        folder, "running", request=json.loads(json.dumps(Request((str(images),)).to_dict()))
    )
    assert added(manifest, folder) == []
    (images / "b.png").touch()
    assert added(manifest, folder) == [str(images / "b.png")]
    for path in images.iterdir():
        path.unlink()
    assert added(manifest, folder) == []
