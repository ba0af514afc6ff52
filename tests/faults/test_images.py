"""Images that are broken, no images, of odd kinds, giant or tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from giants import write_jpeg, write_png
from image_files import noise
from isolated import in_children
from kinds_of_files import write_every_kind
from labelled_scenes import write_labelled_scenes
from mutants import files_of_every_format, mutant, small_files_below
from photographs import photograph
from PIL import Image
from program import Cli, options, refused
from tiny_runs import reasons
from torch.nn import functional as F
from trials import Trials, fault

from densesiam_seg.datasets.declaration import IGNORE, load_dataset
from densesiam_seg.datasets.reader import samples
from densesiam_seg.errors import ImageError
from densesiam_seg.evaluation.protocol import PROTOCOLS, prepare_sample
from densesiam_seg.images.decode import (
    image_size,
    load_image,
    load_reduced,
    load_square,
    load_stretched,
)
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.labels import load_label
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.io.records import read_records

ROOT = Path(__file__).resolve().parents[2]
BAD_IMAGES = ROOT.parent / "shared" / "data" / "badimages"
GIB = 1 << 30
SIDE = 64

pytestmark = [
    pytest.mark.usefixtures("slim_module"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
]


class TestMutants:
    @fault(
        "F6",
        "10,000 damaged copies of images of every format",
        "decoded or refused by name; no crash, hang or 1 GB",
    )
    def test_mutants(self, trials: Trials, tmp_path: Path) -> None:
        files = list(files_of_every_format().values())
        files += small_files_below(BAD_IMAGES).values() if BAD_IMAGES.is_dir() else []

        def work(number: int) -> str:
            path = tmp_path / "mutant"
            path.write_bytes(mutant(files, number))
            return read_in_every_way(path)

        met = set()
        with quiet():
            numbers = trials.several(300, 10_000)
            for number, text in in_children(work, numbers, memory=GIB, seconds=10):
                with trials.trial(number):
                    assert not text.startswith(("raised", "died"))
                    assert "memory" not in text
                    met.update(text.split())
        assert {"good", "corrupt", "truncated", "not-an-image", "unsupported"} <= met


class quiet:  # noqa: N801 - used like a function
    """libtiff writes what it thinks of a file to the process's own stderr."""

    def __enter__(self) -> None:
        self.kept = os.dup(2)
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.kept, 2)
        os.close(self.kept)


def read_in_every_way(path: Path) -> str:
    """How training, predicting and scoring get on with a file: `good` or the reason's class for each."""
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (load_square, load_stretched, load_reduced, load_image, image_size, load_label):
            more = (SIDE,) if read in (load_square, load_stretched, load_reduced) else ()
            try:
                found: Any = read(path, *more)
            except ImageError as error:
                assert error.path == str(path) and str(error).startswith(f"{path}: ")
                assert error.reason.replace("-", "").isalpha()
                told.append("memory" if isinstance(error.__cause__, MemoryError) else error.reason)
                continue
            told.append("good")
            if read is load_square:
                assert (found.dtype, found.shape) == (torch.uint8, (3, SIDE, SIDE))
            if read is load_stretched:
                assert found[0].shape == (3, SIDE, SIDE) and found[1] > 0
            if read is load_reduced:
                assert found[1] == image_size(path)
    return " ".join(told)


class TestKinds:
    @fault(
        "F6",
        "a file of each kind that people have among images",
        "pixels as defined, or skipped with its class",
    )
    def test_every_kind(
        self,
        trials: Trials,
        tmp_path: Path,
        cli: Cli,
        tiny_settings: dict[str, Any],
        model_folder: Path,
    ) -> None:
        folder = tmp_path / "photos"
        outcomes = write_every_kind(folder)
        assert len(outcomes) > 40
        bad = {name: each for name, each in outcomes.items() if isinstance(each, str)}
        with trials.trial("train"):
            run = train(cli, tmp_path / "run", tiny_settings, folder)
            assert reasons(run / "skipped.jsonl") == bad
            names = json.loads((run / "dataset.json").read_text())["names"]
            assert names == sorted(outcomes.keys() - bad.keys())
        with trials.trial("predict"):
            out = tmp_path / "masks"
            code, told, error = cli(
                "predict", folder, "--model", model_folder, "--out", out, "--json", "-q"
            )
            assert code == 9 and error.splitlines()[-1].startswith("error[partial]: ")
            listed = {Path(path).name: each for path, each in reasons(out / "failed.jsonl").items()}
            skipped = {each["path"]: each["reason"] for each in json.loads(told)["skipped"]}
            assert listed | skipped == bad
        for name, outcome in outcomes.items():
            with trials.trial(name):
                if isinstance(outcome, str):
                    with pytest.raises(ImageError) as caught:
                        load_image(folder / name)
                    among_links = {"dangling-link": "missing", "unreadable": "unreadable"}
                    assert caught.value.reason == among_links.get(outcome, outcome)
                else:
                    pixels, most = outcome
                    found = load_image(folder / name).permute(1, 2, 0).numpy().astype(float)
                    assert found.shape == pixels.shape
                    assert np.abs(found - pixels).max() <= most
                    assert size_of(mask_of(out, Path(name).stem)) == pixels.shape[1::-1]


def mask_of(out: Path, stem: str) -> Path:
    """The mask of the image of that stem, or of one of two, which keep their suffixes."""
    return next(each for each in out.iterdir() if each.name.split(".")[0] == stem)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height, as Pillow has them."""
    with Image.open(path) as image:
        return image.size


def train(cli: Cli, run: Path, settings: dict[str, Any], *images: Path, **more: Any) -> Path:
    """A run of a step or two."""
    given = options({**settings, "epochs": 1, **more})
    code, _, error = cli(
        "train", "--no-report", *images, "--out", run, "--prior", "none", *given, "-q"
    )
    assert code == 0, error
    return run


class TestBadImagesOfOthers:
    @pytest.fixture
    def mixed(self, tmp_path: Path, image_folder: Path) -> Path:
        """A list of the collection and of good images."""
        if not BAD_IMAGES.is_dir():
            pytest.skip("needs the collection of bad images, ../shared/data/badimages")
        folder = tmp_path / "mixed"
        for each in sorted(BAD_IMAGES.rglob("*")):
            if each.is_file():
                target = folder / each.relative_to(BAD_IMAGES)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(each.read_bytes())
        for each in sorted(image_folder.iterdir()):
            (folder / each.name).write_bytes(each.read_bytes())
        # By name, as half of them are called like no image.
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
        (folder / "all.txt").write_text("".join(f"{name}\n" for name in names))
        return folder / "all.txt"

    @fault(
        "F6",
        "193 bad images of others among good ones, to train",
        "skipped.jsonl has the same bytes for any workers",
    )
    def test_train(
        self,
        trials: Trials,
        mixed: Path,
        cli: Cli,
        tmp_path: Path,
        tiny_settings: dict[str, Any],
    ) -> None:
        lists = []
        with quiet():
            for workers in [0, 1, 2, 4] if trials.full else [0, 2]:
                with trials.trial(workers):
                    run = tmp_path / str(workers)
                    train(cli, run, tiny_settings | {"workers": workers, "max-time": "1s"}, mixed)
                    lists.append((run / "skipped.jsonl").read_bytes())
                    assert lists[-1] == lists[0]
                    digests = json.loads((run / "dataset.json").read_text())["digest"]
                    assert (
                        digests
                        == json.loads((tmp_path / "0" / "dataset.json").read_text())["digest"]
                    )
        with trials.trial("classes"):
            reasons: dict[str, set[str]] = {}
            for each in read_records(tmp_path / "0" / "skipped.jsonl"):
                reasons.setdefault(each["path"][:2], set()).add(each["reason"])
                assert each["message"].startswith(str(mixed.parent))
            assert reasons["01"] == {"not-an-image", "too-large"}
            assert reasons["03"] <= {"not-an-image", "unsupported", "corrupt", "bad-values"}
            assert reasons["04"] == {"unsupported", "truncated", "corrupt"}
            assert reasons["05"] <= {"not-an-image", "unsupported"}
            others = set().union(
                *(reasons.get(each, set()) for each in ("07", "09", "10", "12", "13"))
            )
            assert others <= {"not-an-image", "unsupported"}

    @fault(
        "F6",
        "the same to predict, then again with --resume",
        "exit 9, masks of all others; only missing ones are made",
    )
    def test_predict(
        self, trials: Trials, mixed: Path, cli: Cli, tmp_path: Path, model_folder: Path
    ) -> None:
        out = tmp_path / "masks"

        def predict(*more: str) -> dict[str, Any]:
            with quiet():
                code, told, error = cli(
                    "predict", mixed, "--model", model_folder, "--out", out, "--json", "-q", *more
                )
            assert code == 9, error
            found: dict[str, Any] = json.loads(told)
            return found

        first = predict()
        with trials.trial("all"):
            failed = (out / "failed.jsonl").read_bytes()
            assert list(reasons(out / "failed.jsonl")) == [
                each["image"] for each in first["failed"]
            ]
            masks = {each["image"]: Path(each["mask"]) for each in first["masks"]}
            named = {str(mixed.parent / line) for line in mixed.read_text().splitlines()}
            assert masks.keys() | {each["image"] for each in first["failed"]} == named
            assert len(named) > 190 and len(masks) > 50
            for image, mask in masks.items():
                assert size_of(mask) == image_size(image)[::-1]
        with trials.trial("again"):
            times = {path: path.stat().st_mtime_ns for path in masks.values()}
            gone = sorted(masks.values())[:: len(masks) // 3]
            for path in gone:
                path.unlink()
            again = predict("--resume")
            assert sorted(Path(each["mask"]) for each in again["masks"]) == gone
            assert again["kept"] == len(masks) - len(gone)
            assert (out / "failed.jsonl").read_bytes() == failed
            assert all(path.stat().st_mtime_ns == times[path] for path in times.keys() - set(gone))


class TestGiants:
    @fault(
        "F7",
        "giants and bombs, without leave",
        "train skips them by class, predict names the option: 3 or 9",
    )
    def test_refused(
        self,
        trials: Trials,
        cli: Cli,
        tmp_path: Path,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        model_folder: Path,
    ) -> None:
        folder = tmp_path / "giants"
        folder.mkdir()
        giants = {
            "bomb.png": write_png(folder / "bomb.png", 12_000, 12_000, grey=True),
            "real.jpg": write_jpeg(folder / "real.jpg", 20_000, 20_000 if trials.full else 4_480),
        }
        if trials.full:
            giants["large.png"] = write_png(folder / "large.png", 20_000, 20_000)
        assert (folder / "bomb.png").stat().st_size < 2_000_000
        with trials.trial("train"):
            run = train(cli, tmp_path / "run", tiny_settings, folder, image_folder)
            listed = {
                Path(path).name: each for path, each in reasons(run / "skipped.jsonl").items()
            }
            assert listed == dict.fromkeys(giants, "too-large")
        for name, path in giants.items():
            with trials.trial(name):
                given = ("predict", path, "--model", model_folder, "--out", tmp_path / "m.png")
                refused(cli(*given), 3, "image", "--max-pixels")
                assert not (tmp_path / "m.png").exists()
        with trials.trial("with others"):
            small = next(iter(sorted(image_folder.iterdir())))
            all_of_them = ("predict", *giants.values(), small, "--model", model_folder)
            code, _, error = cli(*all_of_them, "--out", tmp_path / "masks", "-q")
            assert code == 9 and "--max-pixels" in error.splitlines()[-1]
            failed = reasons(tmp_path / "masks" / "failed.jsonl")
            assert failed == dict.fromkeys(map(str, giants.values()), "too-large")
            assert len(list((tmp_path / "masks").rglob("*.png"))) == 1

    @fault(
        "F7",
        "giants with leave: 400 MP as JPEG and PNG",
        "in tiles and at once less than 3 GB; at once, the exact mask",
    )
    def test_allowed(self, trials: Trials, tmp_path: Path, model_folder: Path) -> None:
        grey = ("grey.png", 20_000, 20_000)
        wide = ("wide.png", 30_000, 12_000)
        giants = [grey, ("real.jpg", 20_000, 20_000), ("colour.png", 20_000, 20_000), wide]
        for name, width, height in giants if trials.full else [("small.png", 8_000, 5_000)]:
            with trials.trial(name):
                path, out = tmp_path / name, tmp_path / "mask.png"
                if name.endswith("jpg"):
                    write_jpeg(path, width, height)
                else:
                    write_png(path, width, height, grey=name == "grey.png")
                given = ("predict", path, "--model", model_folder, "--out", out, "--overwrite")
                more = ("--max-pixels", 500_000_000, "--device", "cpu", "--precision", "fp32")
                for tile in (4096, 0):
                    peak = peak_of(*given, *more, "--tile", tile)
                    assert peak < 3e9, f"{peak / 1e9:.2f} GB"
                require_untiled(path, out, model_folder, rows=24)
                path.unlink()

    @fault(
        "F7",
        "training on a giant with leave",
        "done in less than 3 GB",
    )
    def test_training(
        self, trials: Trials, tmp_path: Path, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        side = 20_000 if trials.full else 4_000
        giant = write_png(tmp_path / "giant.png", side, side)
        with trials.trial(side):
            given = options({**tiny_settings, "epochs": 1, "max_pixels": 500_000_000})
            run = tmp_path / "run"
            more = ("--prior", "none", "--out", run)
            peak = peak_of("train", giant, image_folder, "--no-report", *given, *more)
            assert peak < 3e9, f"{peak / 1e9:.2f} GB"
            assert read_records(run / "skipped.jsonl") == []

    @fault(
        "F7",
        "masks of 1x1, 1x20000 and 20000x1 pixels",
        "masks of that size, the same twice",
    )
    def test_thin(
        self,
        trials: Trials,
        cli: Cli,
        tmp_path: Path,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        model_folder: Path,
    ) -> None:
        for width, height in ((1, 1), (1, 20_000), (20_000, 1)):
            with trials.trial(f"{width}x{height}"):
                folder = tmp_path / f"{width}x{height}"
                folder.mkdir()
                Image.fromarray(noise(height, width)).save(folder / "a.png")
                found = []
                for number in range(2):
                    out = folder / f"mask{number}.png"
                    given = ("predict", folder / "a.png", "--model", model_folder, "--out", out)
                    assert cli(*given)[0] == 0
                    found.append(out.read_bytes())
                assert size_of(folder / "mask0.png") == (width, height)
                assert found[0] == found[1]
                run = train(cli, folder / "run", tiny_settings, folder / "a.png", image_folder)
                assert read_records(run / "skipped.jsonl") == []

    @fault(
        "F7",
        "large masks, every pixel",
        "as interpolated and compared whole",
    )
    def test_every_pixel(self, trials: Trials) -> None:
        sizes = [(27, 60, 80, 600, 800), (5, 30, 240, 300, 2400), (300, 20, 20, 150, 160)]
        if trials.full:
            sizes += [
                (27, 80, 120, 2000, 3000),
                (6, 320, 320, 5000, 4000),
                (27, 3, 900, 60, 20_000),
            ]
        for clusters, h, w, height, width in sizes:
            with trials.trial((clusters, height, width)):
                draw = torch.Generator().manual_seed(clusters)
                coarse = torch.randn(1, clusters, -(-h // 4), -(-w // 4), generator=draw)
                logits = F.interpolate(coarse, (h, w), mode="bilinear")[0]
                logits += 0.05 * torch.randn(clusters, h, w, generator=draw)
                found = upsample_argmax(logits, height, width)
                assert found.shape == (height, width)
                whole = F.interpolate(logits[None], (height, width), mode="bilinear")[0]
                most, expected = whole.max(0)
                chosen = whole.gather(0, found.long()[None])[0]
                # Where two are as large, rounding decides.
                assert ((found == expected) | (most - chosen < 1e-5)).all()
                assert (found != expected).float().mean() < 1e-4


def peak_of(*arguments: object) -> int:
    """The most bytes that the program was in, as a process of its own, which goes well."""
    peak = Path(str(arguments[1])).with_name("peak")
    program = Path(__file__).parents[1] / "support" / "slim_program.py"
    run = subprocess.run(
        [sys.executable, str(program), *map(str, arguments), "-q"],
        env={**os.environ, "PEAK": str(peak), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return int(peak.read_text())


def require_untiled(image: Path, mask: Path, model: Path, *, rows: int) -> None:
    """Some rows of a mask are what the model's scores give when every pixel of them is interpolated by itself."""
    segmenter = Segmenter.load(model, device="cpu", precision="fp32")
    pixels, (height, width) = segmenter.read(image, decoding=Decoding(None))
    scores = segmenter.scores(pixels)[0].double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
            with Image.open(mask) as found:
                assert found.size == (width, height)
                ids = np.asarray(found)
    assert len(np.unique(ids[:: height // 100])) > 1
    left, right, across = between(scores.shape[2], np.arange(width), width)
    # At the edges, and at places that no tile begins at on purpose.
    for row in np.unique(np.linspace(0, height - 1, rows).astype(int)):
        above, below, down = between(scores.shape[1], np.array([row]), height)
        line = scores[:, above[0]] * (1 - down[0]) + scores[:, below[0]] * down[0]
        whole = line[:, left] * (1 - across) + line[:, right] * across
        chosen = np.take_along_axis(whole, ids[row][None].astype(int), 0)[0]
        assert (whole.max(0) - chosen).max() < 1e-4 * np.abs(scores).max()


def between(source: int, pixels: Any, target: int) -> tuple[Any, Any, Any]:
    """The two places of the source that each pixel lies between, and how far it is from the first."""
    place = ((pixels + 0.5) * source / target - 0.5).clip(0, source - 1)
    low = place.astype(int)
    return low, np.minimum(low + 1, source - 1), place - low


SMALL = ((1, 1), (5, 7), (3, 400), (400, 3), (33, 20))
"""Heights and widths below the 64 pixels that views are cut from."""


class TestSmall:
    @fault(
        "F20",
        "images smaller than a crop, extreme aspects",
        "two trainings give the same bytes, masks of their size",
    )
    def test_train(
        self,
        trials: Trials,
        cli: Cli,
        tmp_path: Path,
        tiny_settings: dict[str, Any],
        model_folder: Path,
    ) -> None:
        for height, width in SMALL:
            with trials.trial((height, width)):
                folder = tmp_path / f"{height}x{width}"
                folder.mkdir()
                for number in range(4):
                    pixels = photograph(height, width, seed=number)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
                runs = [
                    train(cli, tmp_path / f"{folder.name}-{again}", tiny_settings, folder)
                    for again in range(2)
                ]
                models = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
                assert models[0] == models[1]
                out = tmp_path / "masks" / folder.name
                assert cli("predict", folder, "--model", model_folder, "--out", out)[0] == 0
                assert set(map(size_of, out.glob("*.png"))) == {(width, height)}

    @fault(
        "F20",
        "the same with labels, under every protocol",
        "labels keep to their pixels; ignored ones stay so",
    )
    def test_evaluate(self, trials: Trials, cli: Cli, tmp_path: Path, model_folder: Path) -> None:
        for height, width in SMALL:
            root = tmp_path / f"{height}x{width}"
            write_labelled_scenes(root, train=1, val=1, side=48, seed=4)
            declared = root / "scenes.toml"
            declared.write_text(f"ignore_values = [{IGNORE}]\n{declared.read_text()}")
            dataset = load_dataset(declared)
            (sample,) = samples(dataset, root, "val").items
            with Image.open(sample.label) as label:
                cut = np.resize(np.asarray(label), (height, width))
            cut[0, 0] = IGNORE
            Image.fromarray(cut).save(sample.label)
            Image.fromarray(photograph(height, width)).save(sample.image)
            for name, protocol in PROTOCOLS.items():
                with trials.trial((height, width, name)):
                    image, ids = prepare_sample(sample, dataset, protocol, 32)
                    if protocol.crop:
                        assert image.shape[1:] == ids.shape == (32, 32)
                    else:
                        assert ids.shape == (height, width)
                        assert ids[0, 0] == IGNORE
                    require_own_values(sample.label, ids)
                    out = root / f"{name}.json"
                    code, _, error = cli(
                        "evaluate", root / "scenes.toml", "--root", root, "--model", model_folder,
                        "--protocol", name, "--image-size", 32, "--out", out, "-q",
                    )  # fmt: skip
                    known = int((ids != IGNORE).sum())
                    if code == 0:
                        counts = np.array(json.loads(out.read_text())["counts"])
                        assert counts.sum() == known
                    else:
                        assert (code, known) == (3, 0), error


def require_own_values(label: Path, ids: Any) -> None:
    """A label that was resized holds none but its own values."""
    with Image.open(label) as own:
        values: Sequence[int] = np.unique(np.asarray(own)).tolist()
    assert set(np.unique(ids).tolist()) <= {*values, IGNORE}
