"""Masks on disk: their names, what is refused, what is left of a job with bad files or one that was stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from photographs import centroids_of, junk, picture
from PIL import Image
from tar_files import write_tar
from videos import damage, write_video

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import (
    ImageError,
    InputError,
    OutputError,
    PartialError,
    StoppedError,
    UsageError,
)
from densesiam_seg.events import Notice, Predicted
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Skipped
from densesiam_seg.images.scan import each_page, scan
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.outputs import OUTPUTS, noted_outputs
from densesiam_seg.packed.members import as_shown
from densesiam_seg.peers.record import RECORD
from densesiam_seg.prediction import batching
from densesiam_seg.prediction import predict as prediction
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import overall_error, predict_events
from densesiam_seg.prediction.video import frames
from densesiam_seg.prediction.wanted import Wanted


def files(folder: Path) -> set[str]:
    """Those that are not hidden, but for the record."""
    found = (path for path in folder.rglob("*") if path.is_file())
    hidden = (OUTPUTS, RECORD)
    return {path.relative_to(folder).as_posix() for path in found if path.name not in hidden}


def predict(
    segmenter: Segmenter,
    inputs: Sequence[Path],
    out: Path,
    *,
    overlays: bool = False,
    wanted: Wanted | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **options: Any,
) -> list[Predicted]:
    wanted = wanted or Wanted(overlay=overlays)
    work = plan(scan(inputs), out, wanted=wanted, overwrite=overwrite, resume=resume)
    return list(predict_events(segmenter, work, **options))


def reasons(results: Sequence[Predicted]) -> list[str | None]:
    """As in the list of failures."""
    errors = [result.error for result in results]
    return [error and getattr(error, "reason", "not-written") for error in errors]  # type: ignore[misc]


def mask_of(path: Path) -> NDArray[np.integer]:
    with Image.open(path) as mask:
        return np.asarray(mask)


@pytest.fixture
def threads() -> Iterator[None]:
    """A test that changes how many threads torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestPredict:
    def test_masks_of_the_images_own_sizes(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        """Whatever lies in their places, if that may be overwritten."""
        out = tmp_path / "out"
        picture(out / "a.png")
        results = predict(segmenter, [images], out, overwrite=True)
        assert files(out) == {"a.png", "b.png", "deep/er/c.png"}
        assert [result.mask for result in results] == [out / n for n in sorted(files(out))]
        for result in results:
            assert result.mask is not None
            np.testing.assert_array_equal(mask_of(result.mask), segmenter.predict(result.image))
            with Image.open(result.mask) as mask:
                palette = mask.getpalette()
            assert palette is not None and tuple(palette[:3]) == segmenter.palette[0]

    def test_overlays(self, segmenter: Segmenter, images: Path, tmp_path: Path) -> None:
        predict(segmenter, [images], tmp_path / "out", overlays=True, batch_size=3)
        stems = {"a", "b", "deep/er/c"}
        masks, overlays = ({f"{stem}{end}" for stem in stems} for end in (".png", "_overlay.jpg"))
        assert files(tmp_path / "out") == masks | overlays
        with Image.open(tmp_path / "out" / "b_overlay.jpg") as overlay:
            assert (overlay.format, overlay.size) == ("JPEG", (17, 31))

    def test_names_are_put_on_the_disk_once(
        self, segmenter: Segmenter, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[Path]] = []
        monkeypatch.setattr(prediction, "sync_folders", lambda folders: seen.append(list(folders)))
        out = tmp_path / "out"
        predict(segmenter, [images], out)
        assert [sorted(folders) for folders in seen] == [[out, out / "deep" / "er"]]

    def test_a_mask_of_more_clusters_than_8_bits(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        many = segmenter.with_centroids(centroids_of(300))
        predict(many, [images / "a.jpg"], tmp_path / "mask.png")
        found = mask_of(tmp_path / "mask.png")
        np.testing.assert_array_equal(found, many.predict(images / "a.jpg"))

    @pytest.mark.usefixtures("threads")
    def test_threads_do_not_matter(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        for cores in (1, 4):
            torch.set_num_threads(cores)
            predict(segmenter, [images], tmp_path / str(cores))
        one, four = (tmp_path / name / "b.png" for name in ("1", "4"))
        assert one.read_bytes() == four.read_bytes()

    def test_a_place_that_cannot_be_written(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot be written"):
            predict(segmenter, [images], tmp_path / "file" / "out")

    def test_images_in_tars_have_the_masks_of_the_files(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        """In a folder for each tar; a tar that was replaced since costs its images alone."""
        names = ("a.jpg", "b.png", "deep/er/c.webp")
        contents = {name: (images / name).read_bytes() for name in names}
        tars = tmp_path / "tars"
        write_tar(tars / "x.tar", contents | {"c.json": b"{}"})
        write_tar(tars / "y.tar", {"./b.png": contents["b.png"]})
        predict(segmenter, [images], tmp_path / "one")
        results = predict(segmenter, [tars], tmp_path / "two")
        masks = {f"x.tar/{name}" for name in files(tmp_path / "one")}
        assert files(tmp_path / "two") == masks | {"y.tar/b.png"}
        for name in files(tmp_path / "two"):
            np.testing.assert_array_equal(
                mask_of(tmp_path / "two" / name), mask_of(tmp_path / "one" / name[6:])
            )
        assert [as_shown(each.image) for each in results] == [
            str(tars / name) for name in (*(f"x.tar/{name}" for name in names), "y.tar/b.png")
        ]
        options: list[dict[str, Any]] = [{}, {"overwrite": True}, {"resume": True}]
        for allowed in options:
            with pytest.raises(UsageError, match=r"x\.tar: is a file where a folder"):
                predict(segmenter, [tars], tars, **allowed)
        predict(segmenter, [tars / "y.tar"], tars / "mask.png")
        work = plan(scan([tars / "x.tar", tars / "y.tar"]), tmp_path / "three")
        write_tar(tars / "x.tar", {"a.jpg": contents["b.png"]})
        assert reasons(list(predict_events(segmenter, work))) == ["replaced"] * 3 + [None]

    def test_what_was_written_is_noted(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        """So that it is no input of the next run; not beside a mask that the user has named."""
        predict(segmenter, [images / "a.jpg"], tmp_path / "mask.png")
        assert not (tmp_path / OUTPUTS).exists()
        predict(segmenter, [images / "a.jpg", images / "deep"], images, overlays=True)
        assert noted_outputs(images) == {"a.png", "a_overlay.jpg"}
        assert noted_outputs(images / "deep" / "er") == {"c.png", "c_overlay.jpg"}
        assert scan([images]).names == ("a.jpg", "b.png", "deep/er/c.webp")


class TestWhatCannotBeWritten:
    """The failure of one image, unless the disk takes no more."""

    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    @pytest.mark.parametrize("overlays", [False, True])
    def test_a_folder_in_the_place_of_a_mask(
        self,
        segmenter: Segmenter,
        images: Path,
        tmp_path: Path,
        options: dict[str, Any],
        overlays: bool,
    ) -> None:
        out = tmp_path / "out"
        (out / "a.png").mkdir(parents=True)
        (out / "deep").touch()  # a file in the place of a folder
        results = predict(segmenter, [images], out, overlays=overlays, **options)
        assert [result.mask for result in results] == [None, out / "b.png", None]
        assert files(out) == {"b.png", "deep", "failed.jsonl"} | (
            {"b_overlay.jpg"} if overlays else set()
        )
        lines = (out / "failed.jsonl").read_text().splitlines()
        assert [json.loads(line)["reason"] for line in lines] == ["not-written"] * 2
        error = overall_error(results)
        assert isinstance(error, PartialError) and "2 of 3 images failed" in str(error)

    @pytest.mark.parametrize(
        ("number", "own"),
        [
            (errno.EACCES, True),
            (errno.ENAMETOOLONG, True),
            (errno.EINVAL, True),
            (errno.ENOSPC, False),
            (errno.EDQUOT, False),
            (errno.EIO, False),
            (errno.EROFS, False),
        ],
    )
    def test_by_the_systems_reason(
        self,
        segmenter: Segmenter,
        images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        own: bool,
    ) -> None:
        replace = Path.replace

        def refuse(path: Path, target: Path) -> Path:
            if target.name == "b.png":
                raise OSError(number, os.strerror(number), str(path))
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", refuse)
        if own:
            results = predict(segmenter, [images], tmp_path / "out")
            assert reasons(results) == [None, "not-written", None]
        else:
            with pytest.raises(OutputError, match=r"b\.png: cannot be written"):
                predict(segmenter, [images], tmp_path / "out")

    def test_of_a_single_image_and_of_all(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        for name in ("a.png", "b.png"):
            (tmp_path / name).mkdir()
        one = overall_error(predict(segmenter, [images / "a.jpg"], tmp_path))
        assert isinstance(one, OutputError) and "a.png: is a folder" in str(one)
        both = overall_error(predict(segmenter, [images / "a.jpg", images / "b.png"], tmp_path))
        assert isinstance(both, OutputError) and "none of the 2 masks" in str(both)

    def test_a_folder_in_the_place_of_the_list_of_failures(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out" / "failed.jsonl").mkdir(parents=True)
        with pytest.raises(OutputError, match=r"failed\.jsonl: cannot be written"):
            predict(segmenter, [images], tmp_path / "out")

    def test_a_list_of_failures_of_another_program_stays(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        theirs = tmp_path / "out" / "failed.jsonl"
        theirs.parent.mkdir()
        for text in ('{"job": 7}\n', "not JSON\n"):
            theirs.write_text(text)
            with pytest.raises(UsageError, match=r"failed\.jsonl: is no list"):
                predict(segmenter, [images], tmp_path / "out")
            assert theirs.read_text() == text


class TestBatches:
    @pytest.fixture
    def mixed(self, tmp_path: Path) -> Path:
        """Five images of two sizes in turn, one that is none, and one of a third size."""
        folder = tmp_path / "mixed"
        for index in range(5):
            picture(folder / f"{index}.png", 20, 30 + 10 * (index % 2))
        junk(folder / "5.png")
        picture(folder / "6.png", 40, 25)
        return folder

    def test_the_files_and_events_of_one_at_a_time(
        self, segmenter: Segmenter, mixed: Path, tmp_path: Path
    ) -> None:
        """In the order of the images, although those of a size are done together."""
        for size in (1, None, 2, 100):
            out = tmp_path / str(size)
            results = predict(segmenter, [mixed], out, batch_size=size)
            assert [result.image for result in results] == [f"{mixed}/{k}.png" for k in range(7)]
            assert reasons(results) == [None] * 5 + ["not-an-image", None]
            assert files(out) == {"failed.jsonl", *(f"{k}.png" for k in (0, 1, 2, 3, 4, 6))}
            for k in (0, 1, 2, 3, 4, 6):
                one, other = mask_of(tmp_path / "1" / f"{k}.png"), mask_of(out / f"{k}.png")
                assert one.shape == other.shape
                assert (one == other).mean() > 0.99

    def test_companions_do_not_matter(
        self, segmenter: Segmenter, mixed: Path, tmp_path: Path
    ) -> None:
        """Also not how many there are: a batch of 2 is filled up to 4, as is one of 3."""
        predict(segmenter, [mixed], tmp_path / "all", batch_size=4)
        predict(segmenter, [mixed / "0.png", mixed / "4.png"], tmp_path / "two", batch_size=4)
        predict(segmenter, [mixed / "4.png"], tmp_path / "4.png", batch_size=4)
        masks = (tmp_path / "all/4.png", tmp_path / "two/4.png", tmp_path / "4.png")
        assert len({path.read_bytes() for path in masks}) == 1

    def test_the_network_sees_full_batches_of_one_size(
        self, segmenter: Segmenter, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, ...]] = []
        logits = Segmenter.logits

        def spy(self: Segmenter, images: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(images.shape))
            return logits(self, images)

        monkeypatch.setattr(Segmenter, "logits", spy)
        predict(segmenter, [mixed], tmp_path / "out", batch_size=2)
        assert sorted(seen) == sorted([(2, 3, 32, 48)] * 2 + [(2, 3, 32, 64)] + [(2, 3, 51, 32)])

    @pytest.mark.parametrize(
        "how", [Refinement(flip=True, scales=(0.75, 1.0)), Refinement(refine="guided")]
    )
    def test_refined_masks_are_pythons(
        self, segmenter: Segmenter, mixed: Path, tmp_path: Path, how: Refinement
    ) -> None:
        results = predict(segmenter, [mixed], tmp_path / "out", refinement=how)
        masks = [(result.image, result.mask) for result in results if result.mask]
        assert len(masks) == 6
        for image, mask in masks:
            assert (mask_of(mask) == segmenter.predict(image, refinement=how)).mean() > 0.99

    def test_a_file_that_changes_after_its_header_was_read(
        self, segmenter: Segmenter, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It leaves its batch, and nobody else fares worse."""
        monkeypatch.setattr(batching, "image_size", lambda path, decoding: (20, 30))
        results = predict(segmenter, [mixed], tmp_path / "out", batch_size=4)
        assert reasons(results) == [None] * 5 + ["not-an-image", None]
        assert mask_of(tmp_path / "out" / "6.png").shape == (40, 25)

    @pytest.mark.parametrize("size", [0, 1025])
    def test_numbers_out_of_range(
        self, segmenter: Segmenter, mixed: Path, tmp_path: Path, size: int
    ) -> None:
        with pytest.raises(UsageError, match=f"--batch-size {size}: must be 1 to 1024"):
            predict(segmenter, [mixed], tmp_path / "out", batch_size=size)
        assert not (tmp_path / "out").exists()


class TestLargeImages:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        """A photograph nine times the working size, as JPEG: twice that size is enough to decode."""
        (tmp_path / "large").mkdir()
        Image.fromarray(scene(3, 0, 288)[0][:, :270]).save(tmp_path / "large" / "a.jpg", quality=95)
        return tmp_path / "large" / "a.jpg"

    def test_files_and_python_give_the_same_mask(
        self, segmenter: Segmenter, large: Path, tmp_path: Path
    ) -> None:
        """Nearly that of the whole image, and an overlay changes nothing of it."""
        predict(segmenter, [large], tmp_path / "mask.png")
        mask = mask_of(tmp_path / "mask.png")
        np.testing.assert_array_equal(mask, segmenter.predict(large))
        assert (mask == segmenter.predict(load_image(large))).mean() > 0.95
        predict(segmenter, [large], tmp_path, overlays=True)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "mask.png").read_bytes()
        with Image.open(tmp_path / "a_overlay.jpg") as overlay:
            assert overlay.size == (270, 288)

    def test_an_image_that_an_overlay_cannot_be_made_of(
        self, segmenter: Segmenter, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It fails alone, and leaves no mask."""
        picture(large.with_name("b.png"))

        def load(path: str, decoding: Decoding) -> torch.Tensor:
            if path == str(large):
                raise ImageError(path, "too-large", "does not fit in memory")
            return load_image(path, decoding)

        monkeypatch.setattr(prediction, "load_image", load)
        results = predict(segmenter, [large.parent], tmp_path / "out", overlays=True)
        assert reasons(results) == ["too-large", None]
        assert files(tmp_path / "out") == {"b.png", "b_overlay.jpg", "failed.jsonl"}


class TestBadFiles:
    def test_among_good_ones_are_listed_and_the_others_done(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        junk(images / "bad.jpg")
        (images / "empty.png").touch()
        results = predict(segmenter, [images], tmp_path / "out")
        assert files(tmp_path / "out") == {"a.png", "b.png", "deep/er/c.png", "failed.jsonl"}
        lines = (tmp_path / "out" / "failed.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [
            {"path": result.image, "reason": reason, "message": str(result.error)}
            for result, reason in zip(results, reasons(results), strict=True)
            if result.error
        ]
        assert reasons(results) == [None, None, "not-an-image", None, "empty"]
        error = overall_error(results)
        assert isinstance(error, PartialError) and "2 of 5 images failed" in str(error)

    def test_a_single_bad_file_is_the_error(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """A list of failures that lies there is not this program's."""
        bad, out = junk(tmp_path / "bad.jpg"), tmp_path / "out"
        out.mkdir()
        (out / "failed.jsonl").write_text("mine")
        assert isinstance(overall_error(predict(segmenter, [bad], out / "mask.png")), ImageError)
        assert files(out) == {"failed.jsonl"}
        assert (out / "failed.jsonl").read_text() == "mine"

    def test_too_large_and_missing_images(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        work = plan(scan([images]), tmp_path / "out")
        (images / "b.png").unlink()
        results = list(predict_events(segmenter, work, decoding=Decoding(550)))
        assert reasons(results) == ["too-large", "missing", None]

    def test_skipped_files_count(self) -> None:
        done = [Predicted("a", Path("a.png"))]
        skipped = [Skipped("b", "dangling-link", "b: is a link to nothing; remove it")]
        assert overall_error(done) is None
        error = overall_error(done, skipped)
        assert isinstance(error, PartialError) and "1 of 2 images failed" in str(error)
        bad = Predicted("c", None, ImageError("c", "empty", "is empty"))
        error = overall_error([bad], skipped)
        assert isinstance(error, InputError) and not isinstance(error, ImageError)
        assert "none of the 2 images" in str(error)


class TestStopping:
    @pytest.fixture
    def many(self, tmp_path: Path, threads: None) -> Path:
        """More images than one thread looks ahead."""
        torch.set_num_threads(1)
        for index in range(40):
            picture(tmp_path / "many" / f"{index:02}.png", 8, 8)
        return tmp_path / "many"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_leaves_whole_masks_and_resume_ends_the_work(
        self, segmenter: Segmenter, many: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        out = tmp_path / "out"
        events = predict_events(segmenter, plan(scan([many]), out))
        next(events)
        os.kill(os.getpid(), number)
        with pytest.raises(StoppedError, match="finish with --resume") as caught:
            list(events)
        assert caught.value.exit_code == 128 + number
        done = files(out)
        assert 1 <= len(done) < 40
        assert {mask_of(out / name).shape for name in done} == {(8, 8)}
        again = predict(segmenter, [many], out, resume=True)
        assert (len(again), sum(result.kept for result in again)) == (40, len(done))
        assert len(files(out)) == 40

    def test_no_thread_and_no_handler_stays(
        self, segmenter: Segmenter, many: Path, tmp_path: Path
    ) -> None:
        before = signal.getsignal(signal.SIGINT), threading.active_count()
        events = predict_events(segmenter, plan(scan([many]), tmp_path / "out"))
        next(events)
        events.close()  # type: ignore[attr-defined]
        assert (signal.getsignal(signal.SIGINT), threading.active_count()) == before


def test_each_page_has_a_mask_below_the_name_of_its_file(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    pages = [Image.new("RGB", (40 + page, 30), (40 * page, 90, 90)) for page in range(3)]
    pages[0].save(tmp_path / "images" / "stack.tif", save_all=True, append_images=pages[1:])
    work = plan(each_page(scan([tmp_path / "images"])), tmp_path / "out")
    results = list(predict_events(segmenter, work))
    assert reasons(results) == [None] * 3
    assert mask_of(tmp_path / "out" / "stack.tif" / "3.png").shape == (30, 42)


class TestMoreFiles:
    WANTED = Wanted(overlay=True, confidence=True, npy=True)
    ENDS = ("_overlay.jpg", "_confidence.png", ".npy", ".png")

    def test_are_noted_and_resumed(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        results = predict(segmenter, [images], out, wanted=self.WANTED)
        assert files(out) == {
            f"{stem}{end}" for stem in ("a", "b", "deep/er/c") for end in self.ENDS
        }
        assert set(results[0].files.values()) == {out / f"a{end}" for end in self.ENDS}
        assert noted_outputs(out) == {f"{stem}{end}" for stem in "ab" for end in self.ENDS}
        (out / "b.npy").write_bytes((out / "b.npy").read_bytes()[:-1])
        work = plan(scan([images]), out, wanted=self.WANTED, resume=True)
        told: list[Notice] = []
        results = list(predict_events(segmenter, work, tell=told.append))
        assert [(result.mask, result.kept) for result in results] == [
            (out / "a.png", True),
            (out / "deep/er/c.png", True),
            (out / "b.png", False),
        ]
        assert [notice.text for notice in told] == [
            "1 mask of an earlier run not whole: made again"
        ]
        assert all(result.kept for result in predict_events(segmenter, work))

    def test_too_many_clusters_for_pixels_without_one(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        many = segmenter.with_centroids(centroids_of(300))
        with pytest.raises(UsageError, match="--min-confidence: 255 is an id"):
            predict(many, [images], tmp_path / "out", wanted=Wanted(min_confidence=0.5))
        assert not (tmp_path / "out").exists()


class TestTiles:
    @pytest.fixture
    def wide(self, tmp_path: Path) -> Path:
        (tmp_path / "wide").mkdir()
        Image.fromarray(scene(3, 0, 600)[0][:280]).save(tmp_path / "wide" / "a.png")
        picture(tmp_path / "wide" / "b.png")
        return tmp_path / "wide"

    def test_above_their_size(self, segmenter: Segmenter, wide: Path, tmp_path: Path) -> None:
        """The masks of other images do not change, nor do those of images that are not larger."""
        plain, whole, tiled = (
            predict(segmenter, [wide], tmp_path / str(tile), wanted=Wanted(tile=tile))
            for tile in (0, 600, 300)
        )
        written = [
            [result.mask.read_bytes() for result in each if result.mask]
            for each in (plain, whole, tiled)
        ]
        assert written[1] == written[0] and written[2][1] == written[0][1]
        assert written[2][0] != written[0][0]
        assert tiled[0].mask is not None and mask_of(tiled[0].mask).shape == (280, 600)

    def test_see_an_image_twice_as_large(
        self, segmenter: Segmenter, wide: Path, tmp_path: Path
    ) -> None:
        """32 × 69 pixels as a whole, 64 × 128 in tiles, as their sides are multiples of 32."""
        (result, _) = predict(segmenter, [wide], tmp_path / "out", wanted=Wanted(tile=300))
        pixels = load_image(wide / "a.png")[None]
        shown = torch.nn.functional.interpolate(pixels, (64, 128), mode="bilinear", antialias=True)
        assert result.mask is not None
        expected = segmenter.mask(segmenter.scores(shown)[0], 280, 600)
        assert (mask_of(result.mask) == expected).mean() > 0.99

    def test_larger_than_what_is_taken(
        self, segmenter: Segmenter, wide: Path, tmp_path: Path
    ) -> None:
        work = plan(scan([wide]), tmp_path / "out", wanted=Wanted(tile=300))
        results = list(predict_events(segmenter, work, decoding=Decoding(280 * 600 - 1)))
        assert reasons(results) == ["too-large", None]


class TestVideos:
    def test_each_frame_has_a_mask(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        """After those of the images; every third one here."""
        clip, out = write_video(tmp_path / "clip.mkv", 10), tmp_path / "out"
        results = predict(segmenter, [clip, images / "a.jpg"], out, wanted=Wanted(every=3))
        names = [f"frame_{number:06}" for number in (0, 3, 6, 9)]
        assert [result.image for result in results[1:]] == [f"{clip}/{name}" for name in names]
        masks = [result.mask for result in results[1:]]
        assert [mask.name for mask in masks if mask] == [f"{name}.png" for name in names]
        assert {mask.parent.name for mask in masks if mask} == {"clip.mkv"}
        assert overall_error(results) is None
        for mask, (_, frame) in zip(masks, frames(str(clip), 3), strict=True):
            assert mask is not None
            np.testing.assert_array_equal(mask_of(mask), segmenter.predict(frame))

    def test_are_noted(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """A later run does not take frames' masks for photographs."""
        clip = write_video(tmp_path / "clip.mkv", 3)
        predict(segmenter, [clip], tmp_path / "out", wanted=Wanted(overlay=True))
        found = noted_outputs(tmp_path / "out" / "clip.mkv")
        assert found >= {
            f"frame_00000{n}{end}" for n in range(3) for end in ("_overlay.jpg", ".png")
        }

    def test_a_damaged_one(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """Its frames before the damage, then the failure."""
        clip = damage(write_video(tmp_path / "clip.mp4", 90))
        results = predict(segmenter, [clip], tmp_path / "out", wanted=Wanted(every=10))
        assert reasons(results) == [None] * (len(results) - 1) + ["corrupt"]
        assert 2 <= len(results) - 1 < 9 and isinstance(overall_error(results), PartialError)
        (line,) = (tmp_path / "out" / "failed.jsonl").read_text().splitlines()
        assert json.loads(line)["path"] == str(clip)

    def test_no_video_at_all(self, segmenter: Segmenter, tmp_path: Path) -> None:
        clip = junk(tmp_path / "clip.mp4")
        assert isinstance(overall_error(predict(segmenter, [clip], tmp_path / "out")), ImageError)

    def test_resumed(self, segmenter: Segmenter, tmp_path: Path) -> None:
        clip, out = write_video(tmp_path / "clip.mkv", 5), tmp_path / "out"
        predict(segmenter, [clip], out)
        gone = out / "clip.mkv" / "frame_000002.png"
        before = gone.read_bytes()
        gone.unlink()
        results = predict(segmenter, [clip], out, resume=True)
        assert [result.kept for result in results] == [True, True, False, True, True]
        assert gone.read_bytes() == before

    def test_a_folder_that_cannot_be_made(
        self, segmenter: Segmenter, images: Path, tmp_path: Path
    ) -> None:
        clip, out = write_video(images / "clip.mkv", 3), tmp_path / "out"
        out.mkdir()
        (out / "clip.mkv").touch()
        results = predict(segmenter, [clip, images / "a.jpg"], out, overwrite=True)
        assert reasons(results) == [None, "not-written"]
