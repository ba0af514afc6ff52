"""The use case: names, refusals, wholeness, and masks of a model or of a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import FILES, odd_clusters, write_photos
from image_files import noise, saved
from PIL import Image
from tar_files import write_tar

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ImageError, OutputError, StoppedError, UsageError
from densesiam_seg.events import Predicted
from densesiam_seg.exporting import masks as module
from densesiam_seg.exporting.masks import LAYOUTS, MARKER, ExportPlan, export_masks, plan_masks
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.naming.clusters import name_clusters
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import predict_events
from densesiam_seg.prediction.wanted import Wanted


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", odd_clusters(), tmp_path / "masks")
    return tmp_path / "photos"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def planned(
    photos: Path, out: str = "out", layout: str = "lightly-train", **options: Any
) -> ExportPlan:
    folder = photos.parent
    options.setdefault("masks", folder / "masks")
    return plan_masks(scan([photos], merge=False), folder / out, layout, **options)


def run(work: ExportPlan) -> list[Predicted]:
    events = export_masks(work, odd_clusters(), None, Decoding())
    return [event for event in events if isinstance(event, Predicted)]


def ids(out: Path, stem: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(out / "masks" / f"{stem}.png"))


class TestPredicted:
    @pytest.fixture
    def merged(self, segmenter: Segmenter) -> Segmenter:
        clusters = list(segmenter.clusters)
        clusters[3] = replace(clusters[3], merged_into=0)
        network, card = segmenter.network, segmenter.card
        return Segmenter(network, card, clusters, device="cpu", precision="fp32")

    def test_they_are_those_of_predict(self, merged: Segmenter, photos: Path) -> None:
        manifest = scan([photos], merge=False)
        by_predict = photos.parent / "predicted"
        assert all(e.error is None for e in predict_events(merged, plan(manifest, by_predict)))
        work = planned(photos, masks=None)
        events = list(export_masks(work, merged.clusters, merged, merged.new_decoding()))
        assert [e.image for e in events if isinstance(e, Predicted)] == list(work.sources)
        seen = set()
        for stem in work.stems:
            wanted = np.asarray(Image.open(by_predict / f"{stem}.png"))
            np.testing.assert_array_equal(ids(work.out, stem), wanted)
            seen |= set(np.unique(wanted).tolist())
        assert 3 not in seen and len(seen) > 1

    def test_images_in_tars(self, segmenter: Segmenter, photos: Path) -> None:
        """The same files below the name of the tar; JPEG files as they are."""
        files = sorted(path for path in photos.rglob("*") if path.is_file())
        contents = {path.relative_to(photos).as_posix(): path.read_bytes() for path in files}
        tar = write_tar(photos.parent / "tars" / "x.tar", contents)
        found = []
        for images, out in ((photos, "one"), (tar, "two")):
            work = plan_masks(scan([images], merge=False), photos.parent / out, "lightly-train")
            events = export_masks(work, segmenter.clusters, segmenter, Decoding())
            assert all(e.error is None for e in events if isinstance(e, Predicted))
            written = (path for path in work.out.rglob("*") if path.suffix in (".png", ".jpg"))
            found.append({str(p.relative_to(work.out)): p.read_bytes() for p in written})
        assert found[0] == {name.replace("x.tar/", ""): data for name, data in found[1].items()}
        assert len(found[0]) == 2 * len(work.sources)

    def test_large_images_are_read_in_tiles(
        self, merged: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "TILE", 256)
        (tmp_path / "photos").mkdir()
        saved(tmp_path / "photos", "large.png", scene(0, 0, 600)[0])
        manifest = scan([tmp_path / "photos"], merge=False)
        by_predict = tmp_path / "predicted"
        list(predict_events(merged, plan(manifest, by_predict, wanted=Wanted(tile=256))))
        work = planned(tmp_path / "photos", masks=None)
        list(export_masks(work, merged.clusters, merged, merged.new_decoding()))
        wanted = np.asarray(Image.open(by_predict / "large.png"))
        np.testing.assert_array_equal(ids(work.out, "large"), wanted)
        assert (wanted != merged.predict(tmp_path / "photos/large.png")).any()

    def test_masks_of_before_follow_a_merge(
        self, segmenter: Segmenter, merged: Segmenter, photos: Path
    ) -> None:
        manifest = scan([photos], merge=False)
        for name, model in (("before", segmenter), ("after", merged)):
            list(predict_events(model, plan(manifest, photos.parent / name)))
        work = planned(photos, masks=photos.parent / "before")
        list(export_masks(work, merged.clusters, None, Decoding()))
        for stem in work.stems:
            wanted = np.asarray(Image.open(photos.parent / "after" / f"{stem}.png"))
            np.testing.assert_array_equal(ids(work.out, stem), wanted)

    def test_masks_that_are_tiff(self, segmenter: Segmenter, photos: Path) -> None:
        manifest = scan([photos], merge=False)
        masks = photos.parent / "tiff"
        list(predict_events(segmenter, plan(manifest, masks, wanted=Wanted(form="tiff"))))
        work = planned(photos, masks=masks)
        assert all(
            e.error is None
            for e in export_masks(work, segmenter.clusters, None, Decoding())
            if isinstance(e, Predicted)
        )
        np.testing.assert_array_equal(
            ids(work.out, "alpha"), segmenter.predict(photos / "alpha.png")
        )


class TestFailures:
    def test_masks_that_do_not_fit(self, photos: Path) -> None:
        masks = photos.parent / "masks"
        unknown = np.array(Image.open(masks / "alpha.png"))
        unknown[3, 3] = 9
        saved(masks, "alpha.png", unknown)
        saved(masks, "turned.png", noise(5, 5, 1))
        (masks / "same.jpg.png").unlink()
        saved(masks, "same.png.png", noise(23, 28))
        found = {Path(e.image).name: e.error for e in run(planned(photos)) if e.error}
        reasons = {
            name: error.reason for name, error in found.items() if isinstance(error, ImageError)
        }
        assert reasons == {
            "alpha.png": "unknown-cluster",
            "turned.jpg": "bad-size",
            "same.jpg": reasons["same.jpg"],
            "same.png": "bad-values",
        }
        assert "holds the cluster 9, and the model has 0 to 8" in str(found["alpha.png"])
        assert str(found["alpha.png"]).startswith(str(masks / "alpha.png"))
        left = {p.stem for p in (photos.parent / "out/images").rglob("*.*") if p.name[0] != "."}
        assert left == {"plain", "Übung, zwei", "x.y"}

    def test_nothing_is_written_where_nothing_can_be_used(self, photos: Path) -> None:
        shutil.rmtree(photos.parent / "masks")
        (photos.parent / "masks").mkdir()
        assert all(event.error for event in run(planned(photos)))
        assert names_in(photos.parent) == ["masks", "photos"]

    @pytest.mark.parametrize(("out", "layout"), [("out", "coco"), ("out.zip", "cvat")])
    def test_a_full_disk_leaves_nothing(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch, out: str, layout: str
    ) -> None:
        work, real, calls = planned(photos, out, layout), os.fsync, iter(range(99))

        def full(handle: int) -> None:
            if next(calls) > 5:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            run(work)
        assert names_in(photos.parent) == ["masks", "photos"]

    def test_a_signal_leaves_nothing(self, photos: Path) -> None:
        events = export_masks(planned(photos), odd_clusters(), None, Decoding())
        with pytest.raises(StoppedError):
            next(event for event in events if isinstance(event, Predicted))
            os.kill(os.getpid(), signal.SIGTERM)
            list(events)
        assert names_in(photos.parent) == ["masks", "photos"]


class TestPlaces:
    def test_what_is_refused(self, photos: Path) -> None:
        folder = photos.parent
        (folder / "other").mkdir()
        (folder / "other/mine.txt").write_text("x")
        (folder / "old.zip").write_text("x")
        for out, layout, options, match in (
            ("out.zip", "voc", {}, "is a folder"),
            ("other/mine.txt", "voc", {"overwrite": True}, "is a folder"),
            ("out", "cvat", {}, "is one zip file"),
            ("old.zip", "cvat", {}, "give --overwrite or another name"),
            ("other", "voc", {}, "give --overwrite or another folder"),
            ("other", "voc", {"overwrite": True}, "no export wrote it"),
            ("new", "voc", {"masks": folder / "none"}, "no such folder"),
        ):
            with pytest.raises(UsageError, match=match):
                planned(photos, out, layout, **options)
        planned(photos, "old.zip", "cvat", overwrite=True)

    @pytest.mark.parametrize("out", ["photos", "", "masks"])
    def test_inputs_are_never_replaced(self, photos: Path, out: str) -> None:
        (photos.parent / out / MARKER).write_text("{}")
        with pytest.raises(UsageError, match="would overwrite the input"):
            planned(photos, out, overwrite=True)

    def test_without_pycocotools(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"pip install 'densesiam-seg\[coco\]'"):
            planned(photos, layout="coco")
        planned(photos, layout="voc")

    def test_overwriting_leaves_nothing_of_before_but_what_is_not_its_own(
        self, photos: Path
    ) -> None:
        out = photos.parent / "out"
        run(planned(photos, layout="mmseg"))
        (out / "notes.txt").write_text("mine")
        (photos / "plain.jpg").unlink()
        run(planned(photos, layout="lightly-train", overwrite=True))
        found = {path.name for path in out.iterdir()}
        assert found == {"images", "masks", "data.json", "classes.json", "notes.txt", MARKER}
        assert not (out / "images/plain.jpg").exists()

    def test_an_archive_holds_only_what_the_format_has(self, photos: Path) -> None:
        run(planned(photos, "out.zip", "cvat"))
        run(planned(photos, "out.zip", "cvat", overwrite=True))
        with zipfile.ZipFile(photos.parent / "out.zip") as archive:
            names = archive.namelist()
        assert {name.split("/")[0] for name in names} == {
            *("ImageSets", "SegmentationClass", "labelmap.txt", "labels.json")
        }
        assert names_in(photos.parent) == ["masks", "out.zip", "photos"]

    def test_copies_are_no_photographs_for_a_later_run(self, photos: Path) -> None:
        run(planned(photos, "photos/export"))
        assert len(scan([photos], merge=False)) == len(FILES)

    @pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "cvat"])
    def test_names_that_are_no_text(self, tmp_path: Path, layout: str) -> None:
        """The digest is that of the name's bytes without its suffix."""
        folder = tmp_path / "photos"
        folder.mkdir()
        (tmp_path / "masks").mkdir()
        for name in (b"b\xe4d.png", b"two\nlines.png", "👩\u200d🌾.png".encode()):
            Image.new("RGB", (4, 3)).save(folder / os.fsdecode(name))
            Image.new("L", (4, 3)).save(tmp_path / "masks" / os.fsdecode(name))
        work = planned(folder, layout=layout)
        digests = [hashlib.sha256(name).hexdigest()[:8] for name in (b"b\xe4d", b"two\nlines")]
        wanted = {f"b_d-{digests[0]}", f"two_lines-{digests[1]}", "👩\u200d🌾"}
        assert set(work.stems) == wanted
        assert all(event.error is None for event in run(work))
        assert wanted <= {path.stem for path in work.out.rglob("*.*")}

    def test_a_long_name(self, tmp_path: Path) -> None:
        name = "ä" * 120
        (tmp_path / "photos").mkdir()
        (tmp_path / "masks").mkdir()
        saved(tmp_path / "photos", f"{name}.png", noise(9, 9))
        saved(tmp_path / "masks", f"{name}.png", np.zeros((9, 9), np.uint8))
        work = planned(tmp_path / "photos", layout="labelme")
        assert [event.error for event in run(work)] == [None]
        assert (work.out / f"{work.stems[0]}.json").is_file()


def test_every_cluster_may_be_left_alone(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", odd_clusters(), tmp_path / "masks")
    work = planned(tmp_path / "photos")
    events = export_masks(work, name_clusters(9), None, Decoding())
    assert all(e.error is None for e in events if isinstance(e, Predicted))
