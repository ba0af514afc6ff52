"""What each image becomes, and what is refused before any work."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from photographs import picture
from PIL import Image

from densesiam_seg.errors import UsageError
from densesiam_seg.images.opening import SUFFIXES
from densesiam_seg.images.scan import scan
from densesiam_seg.peers.shard import Shard
from densesiam_seg.prediction import plan as planning
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.wanted import Wanted


def overlay_name(mask: Path) -> str:
    return mask.stem + "_overlay.jpg"


def earlier(path: Path) -> None:
    """A mask or an overlay of an earlier run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("P" if path.suffix == ".png" else "RGB", (30, 20)).save(path)


class TestPlan:
    def test_a_folder_keeps_sub_folders(self, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        work = plan(scan([images]), out)
        assert work.folder == out
        assert work.targets == (out / "a.png", out / "b.png", out / "deep/er/c.png")
        assert work.sources == tuple(str(images / n) for n in ("a.jpg", "b.png", "deep/er/c.webp"))
        assert work.failures == out / "failed.jsonl"
        assert not out.exists()

    def test_one_image(self, images: Path, tmp_path: Path) -> None:
        """The mask's own name, or a folder, also one that is called .png."""
        one = scan([images / "a.jpg"])
        assert plan(one, tmp_path / "new" / "m.PNG").targets == (tmp_path / "new" / "m.PNG",)
        assert plan(one, tmp_path / "o").targets == (tmp_path / "o" / "a.png",)
        (tmp_path / "o.png").mkdir()
        assert plan(one, tmp_path / "o.png").targets == (tmp_path / "o.png" / "a.png",)

    def test_places_that_do_not_fit(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there are 3 images; give a folder"):
            plan(scan([images]), tmp_path / "mask.png")
        (tmp_path / "notes").write_text("mine")
        with pytest.raises(UsageError, match="a file of another kind"):
            plan(scan([images]), tmp_path / "notes", overwrite=True)

    @pytest.mark.parametrize(
        "suffix", sorted({*SUFFIXES, ".PGM", ".txt", ".mp4"} - {".png", ".tif", ".tiff"})
    )
    def test_masks_are_png(self, images: Path, tmp_path: Path, suffix: str) -> None:
        """But a folder may be called as it likes."""
        out = tmp_path / f"mask{suffix}"
        with pytest.raises(UsageError, match="masks are PNG"):
            plan(scan([images / "a.jpg"]), out)
        out.mkdir()
        assert plan(scan([images / "a.jpg"]), out).targets == (out / "a.png",)
        assert plan(scan([images / "a.jpg"]), tmp_path / "v1.2").folder == tmp_path / "v1.2"

    def test_every_name_has_a_mask_of_its_own(self, images: Path, tmp_path: Path) -> None:
        (images / "hard.jpg").hardlink_to(images / "a.jpg")
        (images / "soft.jpg").symlink_to("a.jpg")
        targets = plan(scan([images], merge=False), tmp_path).targets
        assert [path.stem for path in targets] == ["a", "b", "c", "hard", "soft"]

    def test_names_of_the_longest_kind(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The longest part of an overlay's name is its end."""
        monkeypatch.setattr(planning, "longest_name", lambda folder: 30)
        for length in (26, 27):
            picture(images / f"{'x' * length}.png")
        for overlays, cut in ((False, 1), (True, 2)):
            work = plan(scan([images]), tmp_path, wanted=Wanted(overlay=overlays))
            assert work.shortened == cut
            for target in work.targets:
                name = overlay_name(target) if overlays else target.name
                assert len(name) <= 30

    def test_what_exists_is_refused(self, images: Path, tmp_path: Path) -> None:
        """Other files in the folder are no hindrance."""
        out = tmp_path / "out"
        picture(out / "b_overlay.jpg")
        assert len(plan(scan([images]), out).targets) == 3
        with pytest.raises(UsageError, match=r"b_overlay\.jpg: exists already"):
            plan(scan([images]), out, wanted=Wanted(overlay=True))
        picture(out / "b.png")
        with pytest.raises(UsageError, match=r"out/b\.png: exists already; give --overwrite"):
            plan(scan([images]), out)
        assert len(plan(scan([images]), out, overwrite=True).targets) == 3

    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    def test_an_input_is_never_overwritten(
        self, images: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        """Neither through a link nor by an overlay."""
        (tmp_path / "link").symlink_to(images)
        for out in (images, tmp_path / "link"):
            with pytest.raises(UsageError, match=r"b\.png: would overwrite an input image"):
                plan(scan([images]), out, **options)
        picture(images / "a_overlay.jpg")
        with pytest.raises(UsageError, match="would overwrite an input image"):
            plan(
                scan([images / "a.jpg", images / "a_overlay.jpg"]),
                images,
                wanted=Wanted(overlay=True),
                **options,
            )


class TestFormats:
    def test_a_name_says_which(self, images: Path, tmp_path: Path) -> None:
        for name, form in (
            ("m.png", "png"),
            ("m.TIF", "tiff"),
            ("m.tiff", "tiff"),
            ("m.npy", "npy"),
        ):
            work = plan(scan([images / "a.jpg"]), tmp_path / name)
            assert (work.wanted.form, work.files(0)) == (form, {"mask": tmp_path / name})
        with pytest.raises(UsageError, match="--format png: the name in --out says tiff"):
            plan(scan([images / "a.jpg"]), tmp_path / "m.tif", wanted=Wanted(form="png"))

    def test_a_folder(self, images: Path, tmp_path: Path) -> None:
        work = plan(scan([images]), tmp_path, wanted=Wanted(form="tiff", entropy=True))
        assert work.files(0) == {
            "entropy": tmp_path / "a_entropy.tif",
            "mask": tmp_path / "a.tif",
        }

    def test_one_cluster_under_a_name_of_the_users_own(self, images: Path, tmp_path: Path) -> None:
        wanted = Wanted(only={7: "sky"})
        own = plan(scan([images / "a.jpg"]), tmp_path / "x.png", wanted=wanted)
        assert own.files(0) == {"only 7": tmp_path / "x.png"}
        folder = plan(scan([images / "a.jpg"]), tmp_path / "o", wanted=wanted)
        assert folder.files(0) == {"only 7": tmp_path / "o" / "a_sky.png"}

    def test_every_file_is_looked_at(self, images: Path, tmp_path: Path) -> None:
        wanted = Wanted(confidence=True, npy=True)
        for name in ("b_confidence.png", "b.npy"):
            (tmp_path / name).touch()
            with pytest.raises(UsageError, match=f"{name}: exists already"):
                plan(scan([images]), tmp_path, wanted=wanted)
            (tmp_path / name).unlink()

    def test_names_of_the_longest_map_fit(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(planning, "longest_name", lambda folder: 40)
        picture(images / f"{'x' * 30}.png")
        work = plan(scan([images]), tmp_path, wanted=Wanted(confidence=True))
        assert work.shortened == 1
        names = [path.name for place in range(4) for path in work.files(place).values()]
        assert max(map(len, names)) == 40


class TestVideos:
    @pytest.fixture
    def clip(self, images: Path) -> Path:
        (images / "clip.mp4").write_text("looked at later")
        return images / "clip.mp4"

    def test_come_last_with_a_folder_each(self, images: Path, clip: Path, tmp_path: Path) -> None:
        work = plan(scan([clip, images / "a.jpg"]), tmp_path / "out")
        assert work.sources == (str(images / "a.jpg"), str(clip))
        assert work.targets == (tmp_path / "out/a.png", tmp_path / "out/clip.mp4")
        assert work.stills == 1
        assert plan(scan([clip]), tmp_path / "o").failures == tmp_path / "o" / "failed.jsonl"

    def test_are_taken_by_name_alone(self, images: Path, clip: Path) -> None:
        found = scan([images])
        assert len(found) == 3 and found.passed_over.others == {".mp4": 1}

    def test_places_that_do_not_fit(self, images: Path, clip: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="a video has many frames"):
            plan(scan([clip]), tmp_path / "m.png")
        with pytest.raises(UsageError, match="is an input itself"):
            plan(scan([clip]), images)
        (tmp_path / "clip.mp4").mkdir()
        earlier(tmp_path / "clip.mp4" / "frame_000003.png")
        with pytest.raises(UsageError, match="holds frames already"):
            plan(scan([clip]), tmp_path)
        assert len(plan(scan([clip]), tmp_path, overwrite=True).sources) == 1
        assert len(plan(scan([clip]), tmp_path, resume=True).sources) == 1


class TestParts:
    """Of a job in shards."""

    @pytest.fixture
    def many(self, tmp_path: Path) -> Path:
        """Seven images, two of which share a stem with those of other parts, and three videos among them."""
        folder = tmp_path / "many"
        for name in ("a.jpg", "a.png", "b/c.jpg", "d.jpg", "e.jpg", "f.jpg", "f.webp"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        for name in ("a.mp4", "c.mp4", "z.mp4"):
            (folder / name).touch()
        return folder

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
    def test_together_are_the_whole(self, many: Path, tmp_path: Path, count: int) -> None:
        """Each source once, under the very name that it has in one process; images and videos are spread evenly."""
        found = scan([many, *many.glob("*.mp4")])
        whole = plan(found, tmp_path / "out")
        assert len(whole.sources) == 10 and whole.stills == 7
        parts = [plan(found, tmp_path / "out", shard=Shard(i, count)) for i in range(count)]
        expected = dict(zip(whole.sources, whole.targets, strict=True))
        pairs = [p for part in parts for p in zip(part.sources, part.targets, strict=True)]
        assert len(pairs) == 10 and dict(pairs) == expected
        assert {target.name for _, target in pairs} >= {"a.jpg.png", "a.png.png", "f.webp.png"}
        for total, sizes in ((7, [part.stills for part in parts]), (3, videos_of(parts))):
            assert sum(sizes) == total and max(sizes) - min(sizes) <= 1
        for part in parts:
            assert [*part.sources] == sorted(part.sources[: part.stills]) + sorted(
                part.sources[part.stills :]
            )

    def test_of_the_whole_job_are_those_of_each_process(self, many: Path, tmp_path: Path) -> None:
        """Also after a plan was sent to another process."""
        found = scan([many])
        job = plan(found, tmp_path / "out", shard=Shard())
        assert (job.keeps, job.failures) == (True, tmp_path / "out" / "failed-0-of-1.jsonl")
        sent = pickle.loads(pickle.dumps(job))
        for index in range(3):
            part, own = (
                sent.part(Shard(index, 3)),
                plan(found, tmp_path / "out", shard=Shard(index, 3)),
            )
            assert (part.sources, part.targets) == (own.sources, own.targets)
            assert part.failures == own.failures == tmp_path / "out" / f"failed-{index}-of-3.jsonl"
            assert (part.note, part.images) == (f"{index}-of-3", job.images)
            assert [part.stamp(place) for place in range(len(part.sources))] == [
                Path(source).stat().st_mtime_ns // 10**6 for source in part.sources
            ]

    def test_keep_what_is_there_without_being_asked(self, many: Path, tmp_path: Path) -> None:
        """Also a part that has nothing there; other things in the way are told as ever."""
        earlier(tmp_path / "out" / "a.jpg.png")
        found = scan([many])
        with pytest.raises(UsageError, match="exists already"):
            plan(found, tmp_path / "out")
        assert plan(found, tmp_path / "out", shard=Shard(0, 2)).keeps
        with pytest.raises(UsageError, match=r"failed-0-of-2\.jsonl: is no list"):
            (tmp_path / "out" / "failed-0-of-2.jsonl").write_text("mine\n")
            plan(found, tmp_path / "out", shard=Shard(0, 2))

    def test_overwrite_no_input(self, images: Path) -> None:
        """Only the shard of the image in question is refused."""
        assert len(plan(scan([images]), images, shard=Shard(0, 3)).sources) == 1
        with pytest.raises(UsageError, match=r"b\.png: would overwrite an input image"):
            plan(scan([images]), images, shard=Shard(1, 3))

    def test_one_file_has_none(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be made in shards; give a folder"):
            plan(scan([images / "a.jpg"]), tmp_path / "mask.png", shard=Shard(0, 2))

    def test_the_list_of_images_has_a_digest(self, images: Path, tmp_path: Path) -> None:
        """Of its names; times do not matter."""
        before = plan(scan([images]), tmp_path / "out").images
        os.utime(images / "b.png", (7, 7))
        assert plan(scan([images]), tmp_path / "out").images == before
        picture(images / "d.png")
        assert plan(scan([images]), tmp_path / "out").images != before

    def test_no_object_per_image_is_sent(self, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(300):
            (folder / f"{number:03}.jpg").touch()
        found = scan([folder])
        work = plan(found, tmp_path / "out", shard=Shard(1, 3))
        assert len(pickle.dumps(work)) < len(pickle.dumps(found)) + 2000


def videos_of(parts: list[planning.Plan]) -> list[int]:
    return [len(part.sources) - part.stills for part in parts]
