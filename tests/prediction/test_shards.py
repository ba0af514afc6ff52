"""Parts of a prediction: together they are the whole, whoever is killed, runs twice or begins at the same moment."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from children import Child, Family
from photographs import junk, picture
from programs import sabotage, slim
from tar_files import write_tar
from videos import write_video

import densesiam_seg
from densesiam_seg.errors import InputError, PartialError, UsageError
from densesiam_seg.events import Notice
from densesiam_seg.images.scan import scan
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.outputs import noted_outputs
from densesiam_seg.io.records import read_records
from densesiam_seg.naming.edits import merge, rename
from densesiam_seg.peers.record import RECORD, read_record
from densesiam_seg.peers.shard import Shard
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import predict_events
from densesiam_seg.prediction.shards import ImageTally
from densesiam_seg.prediction.wanted import Wanted


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """Seven images in two folders: of several sizes, two with one stem, one that is none."""
    folder = tmp_path / "seven"
    for number, (name, size) in enumerate(
        {
            "a.jpg": (20, 30),
            "a.png": (31, 17),
            "b/a.png": (20, 30),
            "b/d.webp": (8, 9),
            "e.jpg": (20, 30),
            "g.jpg": (40, 25),
        }.items()
    ):
        picture(folder / name, *size)
        os.utime(folder / name, (1_600_000_000 + number, 1_600_000_000 + number))
    junk(folder / "f.jpg")
    return folder


def masks_of(folder: Path) -> dict[str, bytes]:
    """All that is not hidden, but for the record and lists of failures."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.name != RECORD and path.suffix != ".jsonl"
    }


def failed(folder: Path) -> list[str]:
    """The names in all lists of failures of the shards."""
    lists = sorted(folder.glob("failed-*-of-*.jsonl"))
    return [Path(record["path"]).name for path in lists for record in read_records(path)]


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def predict(model: Segmenter, images: Path, out: Path, **options: Any) -> ImageTally:
    return densesiam_seg.predict(images, out, model, **options)


class TestUnion:
    @pytest.mark.parametrize(
        "wanted",
        [
            Wanted(),
            Wanted(legend=True, confidence=True),
            Wanted(only={3: "sky", 1: "road"}, npy=True, form="tiff", min_confidence=0.3),
        ],
    )
    def test_the_files_of_one_process(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path, wanted: Wanted
    ) -> None:
        """Byte for byte, in whatever order the shards come."""
        how = Refinement(flip=True, refine="guided")
        whole = predict(segmenter, seven, tmp_path / "0", wanted=wanted, refinement=how)
        expected = masks_of(tmp_path / "0")
        assert (whole.done, whole.kept, len(whole.failed)) == (6, 0, 1)
        assert len(expected) == 6 * len(wanted.ends)
        for count in (1, 2, 3, 4, 9):
            out = tmp_path / str(count)
            shards = [Shard(index, count) for index in range(count)]
            random.Random(count).shuffle(shards)
            tallies = [
                predict(segmenter, seven, out, wanted=wanted, refinement=how, shard=shard)
                for shard in shards
            ]
            assert masks_of(out) == expected
            assert sum(tally.images for tally in tallies) == 7
            assert failed(out) == ["f.jpg"]
            # Each has a note of its own: on a network disk appends of several hosts overwrite each other.
            notes = {path.name for path in out.glob(".densesiam-seg-outputs*")}
            assert notes <= {f".densesiam-seg-outputs-{i}-of-{count}.jsonl" for i in range(count)}
            for path in expected:
                assert (out / path).name in noted_outputs((out / path).parent)
            with pytest.raises(InputError, match="that this program wrote"):
                scan([out])

    def test_the_parts_of_a_plan_that_was_sent(
        self, segmenter: Segmenter, model_folder: Path, seven: Path, tmp_path: Path
    ) -> None:
        """As Ray has it: the plan goes out, each part of it meets a model of its own, and results come back."""
        predict(segmenter, seven, tmp_path / "whole")
        sent = pickle.dumps(plan(scan([seven], merge=False), tmp_path / "out", shard=Shard()))
        tallies = []
        for index in range(3):
            work = pickle.loads(sent).part(Shard(index, 3))
            model = Segmenter.load(model_folder, device="cpu", precision="fp32")
            results = pickle.loads(pickle.dumps(list(predict_events(model, work))))
            tallies.append(ImageTally())
            for each in results:
                tallies[-1].add(each)
        assert masks_of(tmp_path / "out") == masks_of(tmp_path / "whole")
        assert [(t.done, t.kept, len(t.failed)) for t in tallies] == [
            (2, 0, 0),
            (2, 0, 0),
            (2, 0, 1),
        ]
        assert "not a JPEG" in str(tallies[2].failed[0].error)

    def test_images_in_tars(self, segmenter: Segmenter, seven: Path, tmp_path: Path) -> None:
        """Their masks are those of the files; what is there stays until the tar is packed again."""
        predict(segmenter, seven, tmp_path / "files")
        names = ["a.jpg", "a.png", "b/a.png", "b/d.webp", "e.jpg", "f.jpg", "g.jpg"]
        contents = {name: (seven / name).read_bytes() for name in names}
        tars, out = tmp_path / "tars", tmp_path / "out"
        for tar, part in (("x", names[:4]), ("y", names[4:])):
            write_tar(tars / f"{tar}.tar", {name: contents[name] for name in part})
            os.utime(tars / f"{tar}.tar", (1_600_000_000, 1_600_000_000))
        for index in (2, 0, 1):
            predict(segmenter, tars, out, shard=Shard(index, 3))
        found = masks_of(out)
        assert {name[6:]: data for name, data in found.items()} == masks_of(tmp_path / "files")
        assert {name[:5] for name in found} == {"x.tar", "y.tar"}
        (record,) = read_records(out / "failed-2-of-3.jsonl")
        assert record["path"] == f"{tars}/y.tar/f.jpg"
        again = predict(segmenter, tars, out, shard=Shard(0, 3))
        assert (again.done, again.kept) == (0, 2)
        os.utime(tars / "x.tar", (2_000_000_000, 2_000_000_000))  # younger than the masks
        again = predict(segmenter, tars, out, shard=Shard(0, 3))
        assert (again.done, again.kept) == (2, 0)

    def test_a_video_is_one_source(self, segmenter: Segmenter, seven: Path, tmp_path: Path) -> None:
        """One shard has all of its frames; the second run keeps them."""
        clips = [write_video(tmp_path / name, 5) for name in ("x.mkv", "y.mkv")]
        inputs = [seven / "a.jpg", *clips]
        densesiam_seg.predict(inputs, tmp_path / "whole", segmenter)
        for again in (False, True):
            for index in range(2):
                options: dict[str, Any] = {"shard": Shard(index, 2)}
                tally = densesiam_seg.predict(inputs, tmp_path / "out", segmenter, **options)
                assert (tally.kept if again else tally.done) == 5 + index
        assert masks_of(tmp_path / "out") == masks_of(tmp_path / "whole")
        os.utime(clips[0], (4e9, 4e9))
        shard = Shard(0, 2)
        again_made = densesiam_seg.predict(inputs, tmp_path / "out", segmenter, shard=shard)
        assert (again_made.done, again_made.kept) == (5, 0)


class TestRunAgain:
    def test_what_is_there_stays(self, segmenter: Segmenter, seven: Path, tmp_path: Path) -> None:
        """But what is gone, broken, or older than its image; shards of another number find it too."""
        out = tmp_path / "out"
        for index in range(2):
            predict(segmenter, seven, out, shard=Shard(index, 2))
        expected, before = masks_of(out), stamps(out)
        (out / "e.png").unlink()
        (out / "b" / "a.png").write_bytes(expected["b/a.png"][:-1])
        later = (out / "g.png").stat().st_mtime_ns + 10**9
        os.utime(seven / "g.jpg", ns=(later, later))
        tallies = [predict(segmenter, seven, out, shard=Shard(index, 3)) for index in range(3)]
        assert (sum(t.done for t in tallies), sum(t.kept for t in tallies)) == (3, 3)
        assert masks_of(out) == expected
        after = stamps(out)
        assert {name for name in before if before[name] != after[name]} == {
            "e.png",
            "a.png",
            "g.png",
        }

    def test_resume_of_one_process_goes_on_with_shards(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path
    ) -> None:
        predict(segmenter, seven, tmp_path / "out", shard=Shard(1, 2))
        tally = predict(segmenter, seven, tmp_path / "out", resume=True)
        assert (tally.done, tally.kept, len(tally.failed)) == (3, 3, 1)

    def test_images_that_came_in_between_are_told(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path
    ) -> None:
        out, told = tmp_path / "out", list[Notice]()
        for index in (0, 1, 1):
            work = plan(scan([seven]), out, shard=Shard(index, 2))
            list(predict_events(segmenter, work, tell=told.append))
            assert [notice.warning for notice in told] == [True] * (index and 1)
            picture(seven / "h.jpg") if index == 0 else None
        assert "the list of images is not that" in told[0].text


CHANGES: dict[str, Callable[[Segmenter], dict[str, Any]]] = {
    "--refine": lambda model: {"refinement": Refinement(refine="guided")},
    "--format": lambda model: {"wanted": Wanted(form="tiff")},
    "--tile": lambda model: {"wanted": Wanted(tile=300)},
    "--batch-size": lambda model: {"batch_size": 3},
}


class TestMadeOtherwise:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("how", [{"shard": Shard(0, 2)}, {"resume": True}])
    def test_options_are_refused(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path, change: str, how: dict[str, Any]
    ) -> None:
        out, options = tmp_path / "out", CHANGES[change](segmenter)
        predict(segmenter, seven, out, **how)
        before = masks_of(out)
        with pytest.raises(UsageError, match="its masks were made otherwise"):
            predict(segmenter, seven, out, **{**how, **options})
        assert masks_of(out) == before

    def test_what_changes_no_byte_is_not(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path
    ) -> None:
        """Another overlay, or map, is made beside the mask."""
        out, shard = tmp_path / "out", Shard(0, 1)
        predict(segmenter, seven, out, shard=shard)
        wanted = Wanted(overlay=True, entropy=True, every=3)
        tally = predict(segmenter, seven, out, shard=shard, wanted=wanted)
        assert (tally.done, tally.kept) == (6, 0)
        predict(segmenter, seven, tmp_path / "whole", wanted=wanted)
        assert masks_of(out) == masks_of(tmp_path / "whole")
        assert predict(segmenter, seven, out, shard=shard).kept == 6

    def test_edits_of_clusters(self, segmenter: Segmenter, seven: Path, tmp_path: Path) -> None:
        """A name is in no mask, but on an overlay with a legend; a merge is in both."""
        folder = segmenter.save(tmp_path / "model")

        def shard(name: str, **options: Any) -> ImageTally:
            model = Segmenter.load(folder, device="cpu", precision="fp32")
            return predict(model, seven, tmp_path / name, shard=Shard(0, 1), **options)

        legend = Wanted(legend=True)
        shard("masks")
        shard("legends", wanted=legend)
        rename(folder, {"1": "sky"})
        assert shard("masks").kept == 6
        with pytest.raises(UsageError, match="another state of its clusters"):
            shard("legends", wanted=legend)
        merge(folder, ["2", "1"])
        for name in ("masks", "legends"):
            with pytest.raises(UsageError, match="another state of its clusters"):
                shard(name, wanted=legend if name == "legends" else None)

    def test_overwrite_makes_them_again_also_after_a_stop(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path
    ) -> None:
        """All shards have --overwrite; none makes anything twice, and no mask of before is kept."""
        out, how = tmp_path / "out", Refinement(refine="guided")
        predict(segmenter, seven, out)
        predict(segmenter, seven, tmp_path / "whole", refinement=how)
        options: dict[str, Any] = {"refinement": how, "overwrite": True}
        events = predict_events(
            segmenter, plan(scan([seven]), out, shard=Shard(0, 2), overwrite=True), refinement=how
        )
        next(events)
        events.close()  # type: ignore[attr-defined]
        tallies = [predict(segmenter, seven, out, shard=Shard(i, 2), **options) for i in range(2)]
        assert 3 <= sum(tally.done for tally in tallies) <= 5
        assert masks_of(out) == masks_of(tmp_path / "whole")
        # The one that goes on need not say it again.
        assert predict(segmenter, seven, out, refinement=how, resume=True).kept == 6
        assert predict(segmenter, seven, out, shard=Shard(0, 2), **options).kept == 3

    def test_masks_of_unknown_making(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path
    ) -> None:
        """As those of a version without a record: --resume keeps them and says so, a shard does so only then."""
        out = tmp_path / "out"
        predict(segmenter, seven, out)
        (out / RECORD).unlink()
        with pytest.raises(UsageError, match="was there before the masks of this job"):
            predict(segmenter, seven, out, shard=Shard(0, 2))
        (out / RECORD).unlink()
        told: list[Notice] = []
        events = predict_events(segmenter, plan(scan([seven]), out, resume=True), tell=told.append)
        assert sum(result.kept for result in events) == 6
        assert [notice.warning for notice in told] == [False]
        assert "nothing tells what made the masks there" in told[0].text
        assert predict(segmenter, seven, out, shard=Shard(0, 2)).kept == 3

    def test_a_job_that_another_has_overtaken(
        self, segmenter: Segmenter, seven: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        events = predict_events(segmenter, plan(scan([seven]), out, shard=Shard(0, 2)))
        next(events)
        other = {"refinement": Refinement(refine="guided"), "overwrite": True}
        predict(segmenter, seven, out, shard=Shard(1, 2), **other)
        with pytest.raises(UsageError, match="another job has written here meanwhile"):
            list(events)


def test_a_launched_script(
    segmenter: Segmenter, seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    for rank in (3, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert predict(segmenter, seven, tmp_path / "out").done == 1
    assert set(masks_of(tmp_path / "out")) == {"a.jpg.png", "b/d.png"}


def test_how_a_shard_ends(segmenter: Segmenter, seven: Path, tmp_path: Path) -> None:
    """One whose images all fail is no failure of the job."""
    tally = predict(segmenter, seven, tmp_path / "out", shard=Shard(5, 7))
    assert (tally.done, len(tally.failed)) == (0, 1)
    error = tally.error((), Shard(5, 7))
    assert isinstance(error, PartialError)
    assert str(error).startswith("1 of 1 image of shard 5/7 failed; first: ")
    assert isinstance(tally.error(), InputError) and ImageTally(done=3).error() is None


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The process that children are forked from."""
    found = Family(tmp_path_factory.mktemp("programs"))
    yield found
    found.close()


class TestProcesses:
    """Real ones, that begin at the same moment in a new folder."""

    @pytest.fixture
    def many(self, tmp_path: Path) -> Path:
        for index in range(24):
            picture(tmp_path / "many" / ("ab"[index % 2]) / f"{index:02}.png", 60, 80 + index % 3)
        junk(tmp_path / "many" / "b" / "99.png")
        return tmp_path / "many"

    def start(
        self, family: Family, model: Path, images: Path, out: Path, shards: Sequence[str]
    ) -> list[Child]:
        machine = ("--device", "cpu", "--precision", "fp32")
        words = ("predict", images, "--model", model, "--out", out, *machine, "--overlay")
        return family.start(
            *(
                slim(
                    (*words, *(("--shard", shard) if shard else ())), sabotage("threads", number=1)
                )
                for shard in shards
            )
        )

    def test_kill_9_and_run_again(
        self, family: Family, model_folder: Path, many: Path, tmp_path: Path
    ) -> None:
        """Three shards at once and one of them twice; whoever is killed, what is there is whole, and a run ends it."""
        (whole,) = self.start(family, model_folder, many, tmp_path / "whole", [""])
        assert whole.wait() == 9
        expected = masks_of(tmp_path / "whole")
        assert len(expected) == 48
        out, draw, killed = tmp_path / "out", random.Random(3), 0
        for enough in (2, 9, 30):
            children = self.start(family, model_folder, many, out, ["0/3", "1/3", "2/3", "1/3"])
            for child in children[1:]:
                self.kill_after(child, out, enough)
                time.sleep(0.01 * draw.random())
            killed += sum(child.wait() == -signal.SIGKILL for child in children)
            done = masks_of(out)
            assert done.items() <= expected.items()
        assert killed >= 3, killed
        since = (read_record(out) or pytest.fail()).since
        children = self.start(family, model_folder, many, out, ["0/3", "1/3", "2/3"])
        assert [child.wait() for child in children] == [0, 0, 9], [c.stderr for c in children]
        assert masks_of(out) == expected and failed(out) == ["99.png"]
        names = {name.partition("/")[2] for name in expected}
        assert noted_outputs(out / "a") | noted_outputs(out / "b") == names | {
            "99.png",
            "99_overlay.jpg",
        }
        record = read_record(out)
        assert record is not None and record.since == since
        times = stamps(out)
        children = self.start(family, model_folder, many, out, ["0/2", "1/2"])
        assert [child.wait() for child in children] == [0, 9]
        assert stamps(out) == times
        told = [child.stderr.splitlines() for child in children]
        assert [lines[-1 - bad] for bad, lines in enumerate(told)] == [
            f"shard 0/2: 0 masks written, 12 kept: {out}",
            f"shard 1/2: 0 masks written, 12 kept: {out}",
        ]

    def kill_after(self, child: Child, out: Path, enough: int) -> None:
        def written() -> bool:
            return child.status is not None or sum(1 for _ in out.rglob("*.png")) >= enough

        child.until(written, 0.0005)
        child.send(signal.SIGKILL)
