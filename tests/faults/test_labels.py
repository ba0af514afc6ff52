"""Labels that are not what they seem: the confusion matrix worked out by hand, or a refusal that says what is there.

Every image is 3 pixels wide and 2 high, and its red channel is the cluster of each pixel. The matrix is compared with
what `scoring_events` counts for masks of just these clusters; that the command agrees is seen from the sums of its
rows, as a network's masks are its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from image_files import bare_png
from PIL import ExifTags, Image
from program import Cli
from torch import Tensor
from trials import Trials, fault

from densesiam_seg.evaluation.evaluate import Reading, benchmark, scoring_events
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.protocol import Mask, one_by_one
from densesiam_seg.events import Notice

CLUSTERS = [[0, 1, 2], [0, 1, 2]]
LABEL = [[0, 1, 2], [0, 0, 255]]
COUNTS = [[2, 1, 0], [0, 1, 0], [0, 0, 1]]
"""Of `LABEL` under `CLUSTERS`: rows are classes, columns clusters. One pixel is ignored."""
BY_VALUE = [("a", "values = [0]"), ("b", "values = [1]"), ("c", "values = [2]")]
BY_COLOUR = [("a", "rgb = [[0, 0, 0]]"), ("b", "rgb = [[1, 1, 1]]"), ("c", "rgb = [[2, 9, 2]]")]
DEEP = [("a", "values = [0]"), ("b", "values = [1]"), ("c", "values = [2, 300, -1, 65535]")]

Writer = Callable[[Path], object]


@dataclass(frozen=True)
class Pair:
    """A label and what must come of it: a matrix, or words that the error names beside the file."""

    label: Writer
    counts: list[list[int]] | None = None
    refused: tuple[str, ...] = ()
    classes: list[tuple[str, str]] | None = None
    ignore: str = "ignore_values = [255]"
    suffix: str = ".png"
    clusters: list[list[int]] | None = None
    orientation: int = 1
    """In the image's header; its pixels lie as `clusters` do."""
    warned: str = ""


def of(pixels: object, dtype: type = np.uint8, mode: str | None = None) -> Writer:
    """A file of these numbers, in the format of its name; of another mode that holds them as they are."""

    def write(path: Path) -> None:
        image = Image.fromarray(np.array(pixels, dtype))
        (image if mode is None else image.convert(mode)).save(path)

    return write


def palette(path: Path) -> None:
    """Indices in colours that say something else: all white but for 0, which is as grey as index 2 says."""
    indexed = Image.fromarray(np.array(LABEL, np.uint8), "P")
    indexed.putpalette([2, 2, 2] + [255] * 3 * 255)
    indexed.save(path)


def with_alpha(mode: str, alpha: int) -> Writer:
    """`LABEL` with a channel of that opacity in its last pixel, which is ignored, and opaque elsewhere."""

    def write(path: Path) -> None:
        image = Image.fromarray(coloured() if mode == "RGBA" else np.array(LABEL, np.uint8))
        image.putalpha(255)
        *first, _ = image.getpixel((2, 1))  # type: ignore[misc]
        image.putpixel((2, 1), (*first, alpha))
        assert image.mode == mode
        image.save(path)

    return write


def coloured() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`LABEL` in the colours of `BY_COLOUR`; ignored is (9, 9, 9)."""
    colours = {0: (0, 0, 0), 1: (1, 1, 1), 2: (2, 9, 2), 255: (9, 9, 9)}
    return np.array([[colours[value] for value in row] for row in LABEL], np.uint8)


def few_bits(bits: int) -> Writer:
    """A grey PNG of so many bits a sample, with 3 for what is ignored."""

    def write(path: Path) -> None:
        rows = b""
        for row in ([0, 1, 2], [0, 0, 3]):
            packed = sum(value << (16 - bits * place) for place, value in enumerate(row, 1))
            rows += b"\0" + packed.to_bytes(2, "big")[: (3 * bits + 7) // 8]
        path.write_bytes(bare_png(3, 2, bits, 0, rows))

    return write


def animated(path: Path) -> None:
    frames = [Image.fromarray(np.array(LABEL, np.uint8)) for _ in range(2)]
    frames[1].putpixel((0, 0), 1)
    frames[0].save(path, save_all=True, append_images=frames[1:])


def nothing(path: Path) -> None:
    pass


BITS = [[0, 1, 1], [0, 0, 1]]
ONE_WRONG = np.zeros((200, 300), np.uint8)
ONE_WRONG[199, 299] = 3
IGNORED = [[255] * 3] * 2
COLOURS: dict[str, Any] = {"classes": BY_COLOUR, "ignore": "ignore_rgb = [[9, 9, 9]]"}
PAIRS = {
    "palette of other colours": Pair(palette, COUNTS),
    "colours where values are declared": Pair(of(coloured()), refused=("colour", "values")),
    "values where colours are declared": Pair(of(LABEL), refused=("index", "rgb"), **COLOURS),
    "colours with a map": Pair(of(coloured()), COUNTS, **COLOURS),
    "a colour that is not in the map": Pair(
        of(np.where(coloured() == 2, 3, coloured())), refused=("(3, 9, 3) (1 px)",), **COLOURS
    ),
    "opaque RGBA": Pair(with_alpha("RGBA", 255), COUNTS, **COLOURS),
    "transparent RGBA": Pair(with_alpha("RGBA", 0), refused=("transparent",), **COLOURS),
    "opaque LA": Pair(with_alpha("LA", 255), COUNTS),
    "transparent LA": Pair(with_alpha("LA", 254), refused=("transparent",)),
    "16 bits": Pair(of([[0, 1, 300], [0, 0, 255]], np.uint16), COUNTS, classes=DEEP),
    "16 bits, 256 more than a class": Pair(
        of([[0, 257, 2], [0, 257, 255]], np.uint16), refused=("257 (2 px)",)
    ),
    "65535": Pair(of([[0, 1, 65535], [0, 0, 255]], np.uint16), refused=("65535 (1 px)",)),
    "65535 with a class": Pair(
        of([[0, 1, 65535], [0, 0, 255]], np.uint16), COUNTS, classes=DEEP
    ),
    "-1": Pair(of([[0, 1, -1], [0, -1, 255]], np.int32), refused=("-1 (2 px)",), suffix=".tif"),
    "-1 with a class": Pair(
        of([[0, 1, -1], [0, 0, 255]], np.int32), COUNTS, classes=DEEP, suffix=".tif"
    ),
    "-1 ignored": Pair(
        of([[0, 1, 2], [0, 0, -1]], np.int32),
        COUNTS,
        ignore="ignore_values = [-1]",
        suffix=".tif",
    ),
    "-1 ignored, but stored as 255": Pair(
        of(LABEL), refused=("255 (1 px)",), ignore="ignore_values = [-1]"
    ),
    "1 bit": Pair(of(BITS, np.bool_), [[2, 1, 0], [0, 1, 2], [0, 0, 0]]),
    "2 bits": Pair(few_bits(2), COUNTS, ignore="ignore_values = [3]"),
    "4 bits": Pair(few_bits(4), COUNTS, ignore="ignore_values = [3]"),
    "JPEG": Pair(of(LABEL), refused=("JPEG",), suffix=".jpg"),
    "floats": Pair(of(LABEL, np.float32), refused=("float",), suffix=".tif"),
    "animated": Pair(animated, refused=("2 ",)),
    "many values beyond the last class": Pair(
        of([[3, 3, 2], [0, 3, 77]]), refused=("3 (3 px)", "77 (1 px)")
    ),
    "one pixel in 60,000": Pair(
        of(ONE_WRONG), refused=("3 (1 px)",), clusters=np.zeros_like(ONE_WRONG).tolist()
    ),
    "the last class": Pair(of([[2] * 3] * 2), [[0] * 3, [0] * 3, [2, 2, 2]]),
    "one beyond the last class": Pair(of([[3] * 3] * 2), refused=("3 (6 px)",)),
    "a label that is turned": Pair(
        of(np.array(LABEL).T.tolist()), refused=("2x3", "3x2")
    ),
    "a larger label": Pair(of([[0] * 6] * 4), refused=("6x4", "3x2")),
    "an image that is turned, on its side": Pair(
        of(LABEL), refused=("3x2", "2x3", "EXIF orientation 6"), orientation=6
    ),
    # Shown by half a turn, the clusters are 2 1 0 / 2 1 0.
    "an image that is turned, upside down": Pair(
        of(LABEL),
        [[0, 1, 2], [0, 1, 0], [1, 0, 0]],
        orientation=3,
        warned="EXIF orientation 3",
    ),
    "no label": Pair(nothing, refused=("1 no label", "'x'")),
    "an empty label": Pair(Path.touch, refused=("empty",)),
    "a label that is a web page": Pair(
        lambda path: path.write_bytes(b"<html>"), refused=("is not a JPEG",)
    ),
    "half a label": Pair(
        lambda path: (of(LABEL)(path), path.write_bytes(path.read_bytes()[:50])), refused=()
    ),
}  # fmt: skip


def write_set(root: Path, pair: Pair, name: str = "x") -> Path:
    """A data set of the pair, or another pair for it; returns its declaration."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    red = np.array(pair.clusters or CLUSTERS, np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = pair.orientation
    image = Image.fromarray(np.stack([red, red * 0, red * 0], -1))
    image.save(root / "images" / f"{name}.png", exif=exif)
    pair.label(root / "labels" / f"{name}{pair.suffix}")
    classes = "".join(
        f'    {{ name = "{name}", {raw} }},\n' for name, raw in pair.classes or BY_VALUE
    )
    path = root / "mine.toml"
    path.write_text(
        f'image_suffixes = [".png"]\nlabel_suffix = "{pair.suffix}"\n{pair.ignore}\n'
        f"classes = [\n{classes}]\n"
        '[splits.val]\nimages = ["images"]\nlabels = ["labels"]\n'
    )
    return path


def counted(root: Path) -> tuple[Evaluation, list[str]]:
    """The score of masks that are the red channels, and the warnings."""

    def red(image: Tensor, height: int, width: int) -> Mask:
        assert image.shape[-2:] == (height, width)
        return image[0].numpy()

    task = benchmark(root / "mine.toml", root)
    *others, result = scoring_events(task, one_by_one(red), [Reading(3, "red")], 2)
    assert isinstance(result, Evaluation)
    return result, [event.text for event in others if isinstance(event, Notice) and event.warning]


@pytest.fixture
def evaluate(cli: Cli, model_folder: Path) -> Cli:
    """The command on the data set of a folder."""
    machine = ("--model", model_folder, "--device", "cpu", "--precision", "fp32")
    return lambda root, *more: cli("evaluate", root / "mine.toml", "--root", root, *machine, *more)


def as_json(text: str) -> Any:
    """Strict: other programs know no NaN."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def refused(found: tuple[int, str, str], path: Path, words: tuple[str, ...]) -> None:
    """Exit 3 with one line that names the file and holds the words."""
    code, out, error = found
    assert (code, out, len(error.splitlines())) == (3, "", 1), found
    assert error.startswith(("error[input]: ", "error[image]: "))
    assert str(path) in error and all(word in error for word in words), error


@fault(
    "F8",
    "labels of 35 kinds: modes, depths, values, sizes, turned",
    "the exact confusion matrix, or exit 3 with file, value and count",
)
def test_labels(trials: Trials, tmp_path: Path, evaluate: Cli) -> None:
    for number, (kind, pair) in enumerate(PAIRS.items()):
        with trials.trial(kind):
            root = tmp_path / str(number)
            write_set(root, pair)
            label = root / "labels" / f"x{pair.suffix}"
            if pair.counts is None:
                named = label if label.exists() else root
                refused(evaluate(root), named, pair.refused)
                # Passing over what is missing passes over no label that is wrong.
                refused(evaluate(root, "--allow-missing"), named, pair.refused)
                continue
            result, warnings = counted(root)
            assert result.counts.tolist() == pair.counts
            assert [pair.warned in text for text in warnings] == [True] * bool(pair.warned)
            code, out, error = evaluate(root, "--json")
            assert code == 0, error
            assert pair.warned in error
            sums = [sum(row) for row in pair.counts]
            assert [sum(row) for row in as_json(out)["counts"]] == sums


@fault(
    "F8",
    "one wrong label among 40, at any place",
    "exit 3 naming it, although several are read at once",
)
def test_one_wrong_label(trials: Trials, tmp_path: Path, evaluate: Cli) -> None:
    right, wrong = Pair(of(LABEL)), Pair(of([[0, 3, 3], [0, 0, 3]]))
    root = tmp_path / "set"
    for index in range(40):
        write_set(root, right, f"{index:02}")
    result, _ = counted(root)
    assert result.counts.tolist() == [[40 * count for count in row] for row in COUNTS]
    for n in trials.several(4, 40):
        with trials.trial(n):
            place = 39 - n
            write_set(root, wrong, f"{place:02}")
            refused(evaluate(root), root / "labels" / f"{place:02}.png", ("3 (3 px)",))
            write_set(root, right, f"{place:02}")


@fault(
    "F21",
    "an ignored image, absent classes, one class, no label",
    "absent ones left out of means and named; no NaN in the JSON",
)
def test_absent_classes(trials: Trials, tmp_path: Path, evaluate: Cli) -> None:
    """`LABEL` and variants; means over the classes that are there, worked out by hand."""
    with trials.trial("an image without a labelled pixel adds nothing"):
        root = tmp_path / "ignored"
        write_set(root, Pair(of(LABEL)))
        before = evaluate(root, "--json")
        write_set(root, Pair(of(IGNORED)), "y")
        result, _ = counted(root)
        assert (result.images, result.counts.tolist()) == (2, COUNTS)
        after = evaluate(root, "--json")
        assert before[0] == after[0] == 0
        assert as_json(before[1])["scores"] == as_json(after[1])["scores"]

    with trials.trial("an absent class"):
        root = tmp_path / "absent"
        # a: clusters 0, 1, 0, 1; c: 2, 2. Cluster 1 can be matched to the absent b, so a has 2 of 4 pixels.
        write_set(root, Pair(of([[0, 0, 2], [0, 0, 2]])))
        result, _ = counted(root)
        assert result.counts.tolist() == [[2, 2, 0], [0, 0, 0], [0, 0, 2]]
        scores = result.scores
        assert scores.iou == pytest.approx((50, None, 100))
        assert scores.accuracy == pytest.approx((50, None, 100))
        assert (scores.mean_iou, scores.mean_accuracy) == (75, 75)
        assert scores.pixel_accuracy == pytest.approx(100 * 4 / 6)
        assert scores.absent == ("b",)
        code, out, _ = evaluate(root, "--json")
        assert code == 0
        found = as_json(out)["scores"]
        assert (found["iou"][1], found["accuracy"][1], found["share"][1]) == (None, None, 0)
        there = [found["iou"][0], found["iou"][2]]
        assert found["mean_iou"] == pytest.approx(sum(there) / 2)

    with trials.trial("one class"):
        root = tmp_path / "one"
        write_set(root, Pair(of([[1, 1, 1], [1, 255, 1]]), clusters=[[0, 0, 0], [0, 0, 1]]))
        result, _ = counted(root)
        assert result.counts.tolist() == [[0, 0, 0], [4, 1, 0], [0, 0, 0]]
        assert result.scores.iou == pytest.approx((None, 80, None))
        assert (result.scores.mean_iou, result.scores.pixel_accuracy) == pytest.approx((80, 80))
        assert result.scores.absent == ("a", "c")
        assert (result.scores.things_iou, result.scores.stuff_iou) == (None, None)
        found = as_json(evaluate(root, "--json")[1])["scores"]
        assert (found["iou"][0], found["iou"][2], found["things_iou"]) == (None, None, None)

    with trials.trial("a declaration of one class"):
        root = tmp_path / "single"
        write_set(root, Pair(of([[7, 7, 7], [7, 255, 7]]), classes=[("only", "values = [7]")]))
        code, out, _ = evaluate(root, "--json")
        assert code == 0
        found = as_json(out)
        assert (np.shape(found["counts"]), np.sum(found["counts"])) == ((1, 5), 5)
        assert found["scores"]["mean_iou"] == found["scores"]["pixel_accuracy"] == 100

    with trials.trial("no labelled pixel at all"):
        root = tmp_path / "none"
        write_set(root, Pair(of(IGNORED)))
        code, out, error = evaluate(root)
        assert (code, out, len(error.splitlines())) == (3, "", 1)
        assert error.startswith("error[input]: no pixel has a label")

    with trials.trial("the table names them"):
        code, out, _ = evaluate(tmp_path / "absent")
        assert code == 0
        assert "nan" not in out.lower()
        (told,) = (line for line in out.splitlines() if "absent" in line)
        assert told.endswith(": b")
