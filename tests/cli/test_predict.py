"""`predict`: from image to mask on the command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import Cli, Patch, refused
from videos import cut, write_video

from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.outputs import OUTPUTS
from densesiam_seg.peers.record import RECORD


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of three images of one's own."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name, target in (("00.jpg", ""), ("01.png", ""), ("02.jpg", "deep")):
        shutil.copy(image_folder / name, tmp_path / "images" / target / name)
    return tmp_path / "images"


@pytest.fixture
def predict(cli: Cli, model_folder: Path) -> Cli:
    machine = ("--device", "cpu", "--precision", "fp32")
    return lambda *arguments: cli("predict", *arguments, "--model", model_folder, *machine)


def files(folder: Path) -> set[str]:
    """Those that are not hidden, but for the record."""
    found = (path for path in folder.rglob("*") if path.is_file())
    hidden = (OUTPUTS, RECORD)
    return {path.relative_to(folder).as_posix() for path in found if path.name not in hidden}


def mask_of(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


class TestMasks:
    def test_one_image_and_its_mask(
        self, predict: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        mask = tmp_path / "mask.png"
        assert predict(images / "01.png", "--out", mask) == (0, "", f"1 mask written: {mask}\n")
        np.testing.assert_array_equal(mask_of(mask), segmenter.predict(images / "01.png"))

    @pytest.mark.parametrize("batch", [(), ("-b", "auto"), ("-b", "2"), ("-b", "64")])
    def test_a_folder(
        self, predict: Cli, images: Path, tmp_path: Path, batch: tuple[str, ...]
    ) -> None:
        out = tmp_path / "out"
        assert predict(images, "-o", out, *batch) == (0, "", f"3 masks written: {out}\n")
        assert files(out) == {"00.png", "01.png", "deep/02.png"}

    def test_a_glob_and_a_list_and_several(
        self, predict: Cli, images: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        """The list comes from stdin."""
        monkeypatch.chdir(images)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"deep/02.jpg\n")))
        inputs = (f"{images}/*.png", "-", images / "00.jpg")
        assert predict(*inputs, "-o", tmp_path / "out")[0] == 0
        assert files(tmp_path / "out") == {"00.png", "01.png", "deep/02.png"}

    def test_overlays_and_without_a_place_under_runs(
        self, predict: Cli, images: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert predict(images / "00.jpg", "--overlay")[0] == 0
        (run,) = (tmp_path / "runs" / "predict").iterdir()
        assert files(run) == {"00.png", "00_overlay.jpg"}

    def test_json(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        mask = tmp_path / "mask.png"
        code, text, error = predict(images / "00.jpg", "-o", mask, "--json", "-q")
        assert (code, error) == (0, "")
        masks = [{"image": str(images / "00.jpg"), "mask": str(mask)}]
        value = json.loads(text)
        assert value.pop("passed_over")["linked_folders"] == 0
        assert value == {
            "masks": masks,
            "failed": [],
            "skipped": [],
            "kept": 0,
            "shortened": 0,
            "notes": [],
        }

    def test_kmeans_of_any_number(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        readout = ("--readout", "kmeans", "-k", "9", "--seed", "1", "--fit-images", images)
        assert predict(images / "01.png", "-o", tmp_path / "m.png", *readout)[0] == 0
        assert 5 <= mask_of(tmp_path / "m.png").max() < 9

    def test_passes_and_edges(
        self, predict: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        options = ("--flip", "--scales", "0.75,1", "--refine", "guided")
        assert predict(images / "01.png", "-o", tmp_path / "m.png", *options)[0] == 0
        how = Refinement(True, (0.75, 1.0), "guided")
        expected = segmenter.predict(images / "01.png", refinement=how)
        np.testing.assert_array_equal(mask_of(tmp_path / "m.png"), expected)

    def test_a_second_time(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert predict(images, "-o", out)[0] == 0
        refused(predict(images, "-o", out), 2, "usage", "exists already; give --overwrite")
        (out / "01.png").unlink()
        code, _, error = predict(images, "-o", out, "--resume")
        assert (code, error) == (0, f"1 mask written, 2 kept: {out / '01.png'}\n")
        code, _, error = predict(images, "-o", out, "--resume")
        assert (code, error) == (0, f"0 masks written, 3 kept: {out}\n")
        assert predict(images, "-o", out, "--overwrite") == (0, "", f"3 masks written: {out}\n")


class TestShards:
    def test_two_and_both_again(
        self, predict: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        """What concerns all images is told by the first one."""
        (images / "dangling.png").symlink_to("nowhere")
        out = tmp_path / "out"
        told = [predict(images, "-o", out, "--shard", f"{index}/2", "--json") for index in range(2)]
        assert [code for code, _, _ in told] == [9, 0]
        assert [error.splitlines()[-1] for _, _, error in told] == [
            "error[partial]: 1 of 2 images of shard 0/2 failed; first: "
            f"{images / 'dangling.png'}: is a link to nothing; remove it",
            f"shard 1/2: 2 masks written: {out}",
        ]
        assert [json.loads(text)["shard"] for _, text, _ in told] == ["0/2", "1/2"]
        masks = [each["mask"] for _, text, _ in told for each in json.loads(text)["masks"]]
        assert masks == [str(out / name) for name in ("00.png", "01.png", "deep/02.png")]
        np.testing.assert_array_equal(mask_of(out / "01.png"), segmenter.predict(images / "01.png"))
        code, _, error = predict(images, "-o", out, "--shard", "1/2")
        assert (code, error) == (0, f"shard 1/2: 0 masks written, 2 kept: {out}\n")
        found = predict(images, "-o", out, "--shard", "1/2", "--refine", "guided")
        refused(found, 2, "usage", "its masks were made otherwise", "refine none, now guided")

    def test_of_a_launcher(
        self, predict: Cli, images: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        """An image that fails ends no process, as a launcher would then end all others."""
        (images / "bad.jpg").write_bytes(b"junk")
        monkeypatch.setenv("WORLD_SIZE", "2")
        out = tmp_path / "out"
        threads = torch.get_num_threads()
        for rank, done in enumerate((2, 1)):
            monkeypatch.setenv("RANK", str(rank))
            code, _, error = predict(images, "-o", out)
            assert code == 0
            assert f"shard {rank}/2: {done} mask" in error
        assert error.splitlines()[-1].startswith("warning: 1 of 2 images of shard 1/2 failed; ")
        assert error.endswith(f"(listed in {out / 'failed-1-of-2.jsonl'})\n")
        torch.set_num_threads(threads)
        monkeypatch.setenv("WORLD_SIZE", "1")
        refused(predict(images, "-o", out), 2, "usage", "RANK=1, WORLD_SIZE=1")

    def test_mistakes_under_a_launcher(
        self, predict: Cli, images: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        """What all processes do wrong is told by the first; what only one meets is told by that one."""
        out = tmp_path / "out"
        out.mkdir()
        (out / "01.png").write_text("mine")
        monkeypatch.setenv("WORLD_SIZE", "3")
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            for wrong, text in {
                ("-", "-o", out): "a list file",
                (images,): "--out is missing",
            }.items():
                code, _, error = predict(*wrong)
                assert (code, text in error) == (2, rank == 0)
        found = {}
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            threads = torch.get_num_threads()
            found[rank] = predict(images, "-o", out)
            torch.set_num_threads(threads)
        assert [code for code, _, _ in found.values()] == [0, 2, 0]
        error = found[1][2]
        assert error.startswith(
            f"error[usage] (process 1 of 3): {out / '01.png'}: was there before"
        )

    def test_more_shards_than_images(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        found = predict(images / "00.jpg", "-o", out, "--shard", "0/2")
        assert found == (0, "", f"shard 0/2: 0 masks written: {out}\n")
        assert files(out) == set()


class TestMoreFiles:
    def test_beside_the_mask_and_in_json(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        options = ("--legend", "--confidence", "--entropy", "--npy", "--format", "tiff")
        code, text, _ = predict(images / "01.png", "-o", out, *options, "--json")
        assert code == 0
        kinds = {"mask": ".tif", "npy": ".npy", "overlay": "_overlay.jpg"}
        kinds |= {"confidence": "_confidence.tif", "entropy": "_entropy.tif"}
        expected = {kind: str(out / f"01{end}") for kind, end in kinds.items()}
        assert json.loads(text)["masks"] == [{"image": str(images / "01.png"), **expected}]
        assert files(out) == {f"01{end}" for end in kinds.values()}
        again = predict(images / "01.png", "-o", out, *options)
        refused(again, 2, "usage", "exists already; give --overwrite")
        assert predict(images / "01.png", "-o", out, *options, "--overwrite")[0] == 0

    def test_single_clusters(
        self, predict: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        """By id and by name; where --out names a file it is that of the only one."""
        out = tmp_path / "out"
        code, text, error = predict(images, "-o", out, "--only", "3,cluster_01", "--json")
        assert (code, error) == (0, f"3 masks written: {out}\n")
        found = json.loads(text)["masks"][0]["only"]
        assert found == {"3": str(out / "00_cluster_03.png"), "1": str(out / "00_cluster_01.png")}
        assert len(files(out)) == 6
        own = tmp_path / "sky.png"
        code, _, error = predict(images / "01.png", "-o", own, "--only", "3")
        assert (code, error) == (0, f"1 mask written: {own}\n")
        with Image.open(own) as picture:
            mask = segmenter.predict(images / "01.png")
            np.testing.assert_array_equal(np.asarray(picture), 255 * (mask == 3))

    def test_names_of_a_fresh_read_out(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        readout = ("--readout", "kmeans", "-k", "9", "--fit-images", images)
        code, _, _ = predict(images / "01.png", "-o", tmp_path / "o", *readout, "--only", "8")
        assert code == 0 and files(tmp_path / "o") == {"01_cluster_08.png"}

    def test_pixels_below_a_confidence(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        mask = tmp_path / "m.png"
        assert predict(images / "01.png", "-o", mask, "--min-confidence", "1")[0] == 0
        assert (mask_of(mask) == 255).mean() > 0.9

    def test_an_array(
        self, predict: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        assert predict(images / "01.png", "-o", tmp_path / "m.npy")[0] == 0
        found = np.load(tmp_path / "m.npy")
        np.testing.assert_array_equal(found, segmenter.predict(images / "01.png"))

    def test_a_geotiff_without_rasterio(
        self, predict: Cli, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        from densesiam_seg.prediction import georeference

        monkeypatch.setattr(georeference, "find_spec", lambda name: None)
        monkeypatch.setattr(georeference, "is_georeferenced", lambda source: True)
        (tmp_path / "a.tif").touch()
        found = predict(tmp_path / "a.tif", "-o", tmp_path / "m.tif")
        refused(found, 2, "usage", "densesiam-seg[geo]")


class TestVideos:
    def test_frames_and_damage(self, predict: Cli, tmp_path: Path) -> None:
        clip, out = write_video(tmp_path / "my clip.mkv", 90), tmp_path / "out"
        assert predict(clip, "-o", out, "--every", "40")[0] == 0
        names = {f"my clip.mkv/frame_0000{n}.png" for n in ("00", "40", "80")}
        assert files(out) == names
        refused(predict(clip, "-o", out), 2, "usage", "holds frames already")
        code, _, error = predict(clip, "-o", out, "--every", "40", "--resume")
        assert (code, error) == (0, f"0 masks written, 3 kept: {out}\n")
        cut(clip, 0.7)
        code, text, error = predict(clip, "-o", tmp_path / "o", "--every", "40", "--json")
        assert code == 9 and error.splitlines()[-1].startswith("error[partial]: 1 of ")
        assert [each["image"] for each in json.loads(text)["failed"]] == [str(clip)]
        refused(predict(clip, "-o", tmp_path / "m.png"), 2, "usage", "many frames")

    def test_training_takes_none(self, cli: Cli, tmp_path: Path) -> None:
        clip = write_video(tmp_path / "clip.mp4", 3)
        found = cli("train", clip, "-o", tmp_path / "run", "--device", "cpu")
        assert found[0] == 3 and "is not a JPEG" in found[2]


class TestWhatElseIsThere:
    def test_is_told_in_one_line_and_in_json(
        self, predict: Cli, images: Path, tmp_path: Path
    ) -> None:
        (images / "notes.md").touch()
        (images / "@eaDir").mkdir()
        (images / "@eaDir" / "00.jpg").touch()
        (tmp_path / "far").mkdir()
        shutil.copy(images / "01.png", tmp_path / "far" / "03.png")
        (images / "far").symlink_to(tmp_path / "far")
        code, text, error = predict(images, "-o", tmp_path / "out", "--json", "-q")
        assert code == 0
        found = json.loads(text)["passed_over"]
        assert (found["linked_folders"], found["others"]) == (1, {".md": 1})
        assert (found["system"], found["system_images"]) == ({"@eaDir": 1}, 1)
        (line,) = error.splitlines()
        assert line.startswith("warning: passed over: ") and "1 linked folder not followed" in line
        assert predict(images, "-o", tmp_path / "all", "--follow-links")[0] == 0
        assert files(tmp_path / "all") == {"00.png", "01.png", "deep/02.png", "far/03.png"}

    def test_masks_of_an_earlier_run_are_no_images(
        self, predict: Cli, images: Path, monkeypatch: Patch
    ) -> None:
        monkeypatch.chdir(images)
        for count in (0, 6):
            code, text, _ = predict(".", "--overlay", "--json", "-o", f"masks{count}")
            assert code == 0 and len(json.loads(text)["masks"]) == 3
            assert json.loads(text)["passed_over"]["outputs"] == count

    def test_links_have_masks_of_their_own(
        self, predict: Cli, images: Path, tmp_path: Path
    ) -> None:
        (images / "hard.jpg").hardlink_to(images / "00.jpg")
        (images / "soft.png").symlink_to("01.png")
        assert predict(images, "-o", tmp_path / "out")[0] == 0
        names = {"00.png", "01.png", "deep/02.png", "hard.png", "soft.png"}
        assert files(tmp_path / "out") == names

    def test_long_names(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        (images / "00.jpg").rename(images / f"{'x' * 251}.jpg")
        code, text, error = predict(images, "-o", tmp_path / "out", "--overlay", "--json")
        assert code == 0 and "1 name" in error
        assert json.loads(text)["shortened"] == 1
        assert len(files(tmp_path / "out")) == 6


class TestBadInput:
    def test_bad_files_among_good_ones(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        (images / "bad.jpg").write_bytes(b"junk")
        (images / "dangling.png").symlink_to("nowhere")
        out = tmp_path / "out"
        code, text, error = predict(images, "-o", out, "--json")
        assert code == 9
        lines = error.splitlines()
        assert lines[0].startswith("warning: skipped (dangling-link): ")
        assert lines[1].startswith(f"warning: failed: {images / 'bad.jpg'}: ")
        assert lines[2:-1] == [f"3 masks written: {out}"]
        assert lines[-1].startswith("error[partial]: 2 of 5 images failed")
        assert files(out) == {"00.png", "01.png", "deep/02.png", "failed.jsonl"}
        value = json.loads(text)
        assert [item["image"] for item in value["failed"]] == [str(images / "bad.jpg")]
        assert [item["reason"] for item in value["skipped"]] == ["dangling-link"]

    def test_a_single_bad_file(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"junk")
        found = predict(tmp_path / "bad.jpg", "-o", tmp_path / "mask.png")
        refused(found, 3, "image", "bad.jpg: is not a JPEG")
        found = predict(images / "00.jpg", "-o", tmp_path / "m.png", "--max-pixels", "4095")
        refused(found, 3, "image", "--max-pixels")

    def test_weird_names(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        names = ["a\nb.png", "[/red].png", os.fsdecode(b"\xff.png"), "-x.png"]
        folder = tmp_path / "weird"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / "01.png", folder / name)
        (folder / "bad\n[bold].png").write_bytes(b"junk")
        code, out, error = predict(folder, "-o", tmp_path / "out", "--json")
        assert code == 9
        assert files(tmp_path / "out") == {*names, "failed.jsonl"}
        masks = {item["mask"] for item in json.loads(out)["masks"]}
        assert masks == {str(tmp_path / "out" / name) for name in names}
        assert len(error.splitlines()) == 3
        assert error.count(r"bad\n[bold].png") == 2

    def test_nothing_there(self, predict: Cli, tmp_path: Path) -> None:
        refused(predict(tmp_path / "none.jpg"), 3, "input", "no such file or folder")
        refused(predict(tmp_path), 3, "input", "no image found")
        refused(predict(f"{tmp_path}/*.jpg"), 3, "input", "no image found")


class TestRefusals:
    def test_models(self, cli: Cli, images: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        command = ("predict", images / "00.jpg", "-o", tmp_path / "m.png", "--device", "cpu")
        found = cli(*command, "--model", tmp_path / "none")
        refused(found, 4, "model", "none: no model here")
        monkeypatch.chdir(tmp_path)
        refused(cli(*command), 4, "model", "train one first")
        assert not (tmp_path / "m.png").exists()

    def test_places(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        before = (images / "01.png").read_bytes()
        found = predict(images, "-o", images, "--overwrite")
        refused(found, 2, "usage", "would overwrite an input image")
        assert (images / "01.png").read_bytes() == before
        refused(predict(images, "-o", tmp_path / "m.png"), 2, "usage", "give a folder")
        for name in ("m.jpg", "m.bmp", "m.webm", "m.zip"):
            refused(predict(images, "-o", tmp_path / name), 2, "usage", "masks are PNG")
        found = predict(images, "-o", tmp_path / "m.tif", "--format", "png")
        refused(found, 2, "usage", "--format png: the name in --out says tiff")
        assert predict(images, "-o", tmp_path / "results.v2")[0] == 0
        assert files(tmp_path / "results.v2") == {"00.png", "01.png", "deep/02.png"}
        (tmp_path / "00_overlay.jpg").touch()
        found = predict(images / "00.jpg", "-o", tmp_path, "--overlay")
        refused(found, 2, "usage", "00_overlay.jpg: exists already")
        found = predict(images / "00.jpg", "-o", tmp_path / "00_overlay.jpg" / "m.png")
        refused(found, 5, "output", "cannot be written")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("-k", "3"), "belong to --readout kmeans"),
            (("--over-clusters", "9"), "belongs to --readout merge"),
            (("-b", "all"), "--batch-size all"),
            (("--only", "sky"), "--only sky: no such cluster"),
            (("--format", "bmp"), "--format bmp"),
            (("--min-confidence", "-1"), "--min-confidence -1"),
            (("--tile", "5"), "--tile 5"),
            (("--every", "0"), "--every 0"),
            (("-b", "0"), "--batch-size 0: must be 1 to 1024"),
            (("--device", "foo"), "--device foo"),
            (("--precision", "foo"), "precision = 'foo'"),
        ],
    )
    def test_options(
        self, cli: Cli, images: Path, model_folder: Path, arguments: tuple[str, str], words: str
    ) -> None:
        found = cli("predict", images / "00.jpg", "-m", model_folder, *arguments)
        refused(found, 2, "usage", words)

    def test_kmeans_needs_images(self, predict: Cli, images: Path) -> None:
        found = predict(images / "00.jpg", "--readout", "kmeans")
        refused(found, 3, "input", "--fit-images")
