"""What a TIFF's tags say of its samples is what is shown, or the file is refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import pixels_of, reason_of
from numpy.typing import NDArray
from tiff_files import (
    COMPRESSION,
    COUNTS,
    FLOAT,
    NODATA,
    ORIENTATION,
    SIGNED,
    SUBFILE,
    UNSIGNED,
    page,
    write_tiff,
)

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import image_size, load_image
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.labels import load_label

SHADES = np.arange(32)


def ramp(bits: int, low: int = 0) -> NDArray[np.int64]:
    """Two equal rows from `low` to the largest number of so many bits."""
    top = 2**bits - 1
    return np.tile((SHADES * (top - low) // 31) + low, (2, 1))


def shown(values: NDArray[Any], full: int) -> NDArray[np.int64]:
    """Integers times 255 / full, to the nearest, in whole numbers."""
    return (510 * values.astype(object) + full) // (2 * full)


def red(path: Path, **choices: Any) -> Any:
    return load_image(path, Decoding(**choices))[0].numpy()


def test_integers_of_every_form_are_shown_or_refused_by_name(tmp_path: Path) -> None:
    """Bits, sign, colour, further bands, planes and byte order in every combination, the writer being our own."""
    outcomes: Counter[str] = Counter()

    @settings(max_examples=900, deadline=None, derandomize=True, database=None)
    @given(
        bits=st.sampled_from([*range(1, 17), 1, 2, 4, 8, 16, 16, 32, 17, 24, 31]),
        kind=st.sampled_from([UNSIGNED, UNSIGNED, SIGNED]),
        photometric=st.sampled_from([0, 1, 2]),
        samples=st.integers(1, 5),
        extra=st.sampled_from([None, 0, 1, 2]),
        planar=st.booleans(),
        deflated=st.booleans(),
        order=st.sampled_from("<>"),
        big=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def check(
        bits: int,
        kind: int,
        photometric: int,
        samples: int,
        extra: int | None,
        planar: bool,
        deflated: bool,
        order: str,
        big: bool,
        seed: int,
    ) -> None:
        colours = 3 if photometric == 2 else 1
        samples = max(samples, colours)
        more = samples - colours
        marks = [extra, *[0] * (more - 1)] if extra is not None and more else None
        full = min(2 ** (bits - (kind == SIGNED)) - 1, 65535)
        values = np.random.default_rng(seed).integers(0, full, (3, 5, samples), endpoint=True)
        form: dict[str, Any] = {"planar": planar, "deflated": deflated}
        made = page(values, bits, kind=kind, photometric=photometric, extra=marks, **form)
        path = write_tiff(tmp_path / "a.tif", made, order=order, big=big)
        try:
            found = load_image(path).permute(1, 2, 0).numpy()
        except ImageError as error:
            outcomes[error.reason] += 1
            assert error.reason == "unsupported" and f"{bits} bits" in str(error)
            assert bits > 16 or (kind == SIGNED and bits not in (8, 16)), str(error)
            return
        outcomes["shown"] += 1
        alpha = values[..., [colours]] if marks and extra else None
        bands = values if alpha is None else np.delete(values, colours, 2)
        grey = bands[..., :3] if bands.shape[2] >= 3 else bands[..., :1]
        expected = shown(grey, full)
        if photometric == 0:
            expected = 255 - expected
        expected = np.broadcast_to(expected, (3, 5, 3)).astype(float)
        if alpha is None:
            np.testing.assert_array_equal(found, expected)
        else:
            share = alpha / full
            laid = (expected if extra == 1 else expected * share) + 255 * (1 - share)
            assert np.abs(found - laid.clip(0, 255)).max() <= 1

    check()
    assert outcomes["shown"] >= 500, outcomes


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_every_number_of_a_depth_becomes_the_nearest_shade(tmp_path: Path, bits: int) -> None:
    every = np.arange(2**bits).reshape(-1, 64)
    path = write_tiff(tmp_path / "a.tif", page(every, bits))
    np.testing.assert_array_equal(red(path), shown(every, 2**bits - 1))
    white_is_zero = write_tiff(tmp_path / "b.tif", page(every, bits, photometric=0))
    np.testing.assert_array_equal(red(white_is_zero), 255 - shown(every, 2**bits - 1))


def test_twelve_bits_by_tag_and_in_sixteen(tmp_path: Path) -> None:
    packed = write_tiff(tmp_path / "packed.tif", page(ramp(12), 12))
    np.testing.assert_array_equal(red(packed)[0, [0, 1, 31]], [0, 8, 255])
    decoding = Decoding()
    within = write_tiff(tmp_path / "within.tif", page(ramp(12), 16))
    assert load_image(within, decoding).max() == 16
    (line,) = decoding.notes.lines()
    assert "4095 of 65535" in line and "--stretch" in line
    np.testing.assert_array_equal(red(within, stretch=(0.0, 4095 / 65535)), red(packed))


def test_signed_samples_are_refused_only_where_they_are_negative(tmp_path: Path) -> None:
    values = np.tile(np.arange(-60, 68, 4), (2, 1))
    path = write_tiff(tmp_path / "a.tif", page(values, 8, kind=SIGNED))
    assert reason_of(load_image, path) == "bad-values"
    stretched = red(path, stretch=(-60 / 127, 64 / 127))[0]
    assert stretched[0] == 0 and stretched[-1] == 255 and (np.diff(stretched.astype(int)) > 0).all()
    sound = write_tiff(tmp_path / "b.tif", page(ramp(15), 16, kind=SIGNED))
    np.testing.assert_array_equal(red(sound), shown(ramp(15), 32767))


COLOUR = np.broadcast_to(np.array([200, 100, 50, 10, 255]), (4, 4, 5))


@pytest.mark.parametrize(
    ("samples", "photometric", "extra", "noted"),
    [
        (4, 2, None, True),  # near infrared behind red, green and blue, untold
        (4, 2, [0], True),
        (4, 1, [0, 0, 0], True),  # as GDAL writes four bands of any meaning
        (3, 1, None, False),
        (5, 2, [0, 0], True),
        (5, 2, [0, 2], True),  # the last one is opaque
        (5, 1, [0, 0, 0, 2], True),
    ],
)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_further_band_is_alpha_only_where_the_file_says_so(
    tmp_path: Path,
    samples: int,
    photometric: int,
    extra: list[int] | None,
    noted: bool,
    planar: bool,
    bits: int,
) -> None:
    values = COLOUR[..., :samples] * (257 if bits == 16 else 1)
    made = page(values, bits, photometric=photometric, extra=extra, planar=planar)
    path, decoding = write_tiff(tmp_path / "a.tif", made), Decoding()
    found = load_image(path, decoding)
    np.testing.assert_array_equal(found[:, 0, 0], [200, 100, 50])
    assert any("--bands" in line for line in decoding.notes.lines()) == noted
    if samples == 4:
        other = load_image(path, Decoding(bands=(4, 3, 2)))[:, 0, 0].tolist()
        assert other == [10, 50, 100]
        assert load_image(path, Decoding(bands=(4,)))[:, 0, 0].tolist() == [10, 10, 10]
    with pytest.raises(ImageError, match="--bands"):
        load_image(path, Decoding(bands=(6,)))


def test_values_that_stand_for_no_data_are_filled_and_counted(tmp_path: Path) -> None:
    values = np.tile(np.arange(32) * 10.0, (2, 1)).astype(np.float32)
    expected = red(write_tiff(tmp_path / "whole.tif", page(values, 32, kind=FLOAT)))
    for text, hole in (("nan", np.nan), ("-9999", -9999.0), ("-3.4028235e+38", -3.4028235e38)):
        holed = values.copy()
        holed[1, 7] = hole
        decoding = Decoding()
        path = write_tiff(tmp_path / "a.tif", page(holed, 32, kind=FLOAT, tags={NODATA: text}))
        found = load_image(path, decoding)[0].numpy()
        assert abs(int(found[1, 7]) - expected.mean()) < 3
        found[1, 7] = expected[1, 7]
        np.testing.assert_array_equal(found, expected)
        assert any("1 of 64 pixels" in line for line in decoding.notes.lines())
    bands = np.broadcast_to(np.array([200, 100, 0]), (4, 4, 3)).copy()
    bands[0, 0] = 0
    path = write_tiff(tmp_path / "b.tif", page(bands, 8, tags={NODATA: "0"}))
    holes = load_image(path)
    assert holes[:, 0, 0].tolist() == holes[:, 1, 1].tolist() == [200, 100, 0]  # 0 in all bands
    nothing = write_tiff(tmp_path / "c.tif", page(np.zeros((4, 4)), 8, tags={NODATA: "0"}))
    assert reason_of(load_image, nothing) == "bad-values"


def small(value: int, **more: Any) -> dict[str, Any]:
    return page(np.full((4, 6), value), 8, **more)


def test_pages_are_counted_and_chosen(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "stack.tif", small(10), small(200), page(np.full((4, 6), 90), 16))
    decoding = Decoding()
    assert load_image(path, decoding)[0, 0, 0] == 10
    assert any("3 of them" in line and "--page" in line for line in decoding.notes.lines())
    assert red(path, page=2)[0, 0] == 200
    assert load_image(f"{path}/2")[0, 0, 0] == 200
    assert red(path, page=3).max() == 0  # 90 of 65535
    with pytest.raises(ImageError, match="has 3 pages"):
        load_image(path, Decoding(page=4))
    assert reason_of(load_image, f"{path}/0") == "no-such-page"


def test_a_thumbnail_is_never_the_image(tmp_path: Path) -> None:
    thumbnail = page(np.full((2, 3), 9), 8, tags={SUBFILE: 1})
    main = page(np.full((8, 12), 4000), 12)
    before = write_tiff(tmp_path / "before.tif", thumbnail, main)
    inside = write_tiff(tmp_path / "inside.tif", thumbnail | {"inner": [main]})
    after = write_tiff(
        tmp_path / "after.tif", main, thumbnail, page(np.ones((8, 12)), 1, tags={SUBFILE: 4})
    )
    for path in (before, inside, after):
        decoding = Decoding()
        assert image_size(path) == (8, 12)
        assert load_image(path, decoding)[0, 0, 0] == 249  # 4000 of 4095
        assert [line for line in decoding.notes.lines() if "a mask" not in line] == []
        assert bool(decoding.notes.lines()) == (path == after)  # its mask is not used
    raw = write_tiff(
        tmp_path / "raw.dng", thumbnail | {"inner": [page(np.ones((8, 12)), 16, photometric=32803)]}
    )
    assert reason_of(load_image, raw) == "unsupported"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_eight_bits(tmp_path: Path, orientation: int) -> None:
    values = np.arange(12).reshape(3, 4) * 20
    eight, twelve = (
        write_tiff(
            tmp_path / f"{bits}.tif", page(values * factor, bits, tags={ORIENTATION: orientation})
        )
        for bits, factor in ((8, 1), (16, 257))
    )
    np.testing.assert_array_equal(pixels_of(eight), pixels_of(twelve))
    assert image_size(twelve) == pixels_of(eight).shape[:2]


def test_what_is_not_supported_is_named_and_what_is_damaged_is_not_guessed(tmp_path: Path) -> None:
    made = page(ramp(16), 16, tags={COMPRESSION: 34661})  # JBIG
    path = write_tiff(tmp_path / "a.tif", made)
    with pytest.raises(ImageError, match=r"compression JBIG.*save") as caught:
        load_image(path)
    assert caught.value.reason == "unsupported"
    volume = page(np.zeros((4, 6)), 8, tags={32997: 16})  # ImageDepth
    assert reason_of(load_image, write_tiff(tmp_path / "v.tif", volume)) == "unsupported"
    short = write_tiff(tmp_path / "b.tif", page(ramp(16), 16))
    whole = short.read_bytes()
    short.write_bytes(
        whole.replace((2 * 32 * 2).to_bytes(4, "little"), (2**20).to_bytes(4, "little"))
    )
    assert reason_of(load_image, short) == "truncated"
    empty = page(ramp(16), 16)
    empty["planes"] = []
    assert reason_of(load_image, write_tiff(tmp_path / "c.tif", empty)) == "truncated"
    assert COUNTS not in empty["tags"]
    wide = page(np.zeros((1, 1, 3)), 16, tags={256: 30_000, 257: 2_000, 277: 60, 258: [16] * 60})
    assert reason_of(load_image, write_tiff(tmp_path / "d.tif", wide)) == "too-large"


def test_tiles_that_were_never_written_are_no_file_header(tmp_path: Path) -> None:
    """GDAL leaves offset and length 0 where all values are 0, or no data."""
    made = page(np.full((2, 4, 3), 90), 8, planar=True)
    made["sparse"] = {0}
    assert load_image(write_tiff(tmp_path / "a.tif", made))[:, 0, 0].tolist() == [0, 90, 90]
    made["sparse"] = {0, 1, 2}
    path = write_tiff(tmp_path / "b.tif", made)
    with pytest.raises(ImageError, match="holds no data") as caught:
        load_image(path)
    assert caught.value.reason == "bad-values"


def test_palettes_of_eight_and_sixteen_bits(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]])
    colours = [[255, 0, 7], [0, 255, 9], [3, 4, 5]]
    for bits, factor in ((8, 257), (8, 1), (16, 257)):
        table = np.zeros((3, 2**bits), int)
        table[:, :3] = np.transpose(colours) * factor
        made = page(indices, bits, photometric=3, tags={320: table.reshape(-1).tolist()})
        path = write_tiff(tmp_path / "a.tif", made)
        np.testing.assert_array_equal(pixels_of(path), np.array(colours)[indices])
        np.testing.assert_array_equal(load_label(path), indices)
        assert load_image(path, Decoding(bands=(2,)))[0].tolist() == [[0, 255], [4, 255]]
    for kind, samples in ((3, 1), (5, 4)):
        values = np.zeros((2, 2, samples))
        more = {NODATA: "0", 320: [0] * 256 + [65535] * 512} if kind == 3 else {NODATA: "0"}
        path = write_tiff(tmp_path / "b.tif", page(values, 8, photometric=kind, tags=more))
        decoding = Decoding()
        load_image(path, decoding)
        assert any("not used" in line for line in decoding.notes.lines())


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_that_the_file_leaves_open_or_contradicts(tmp_path: Path, bits: int) -> None:
    factor = 257 if bits == 16 else 1
    rgb = page(COLOUR[..., :3] * factor, bits)
    del rgb["tags"][262]
    assert load_image(write_tiff(tmp_path / "a.tif", rgb))[:, 0, 0].tolist() == [200, 100, 50]
    marked = page(COLOUR[..., :3] * factor, bits, extra=[2])
    assert load_image(write_tiff(tmp_path / "b.tif", marked))[:, 0, 0].tolist() == [200, 100, 50]


def test_an_alpha_of_fewer_bits_is_opaque_at_its_own_end(tmp_path: Path) -> None:
    values = np.full((2, 2, 4), 25700)
    for top, noted in ((255, True), (65535, False)):
        values[..., 3] = top
        decoding = Decoding()
        path = write_tiff(tmp_path / "a.tif", page(values, 16, extra=[2]))
        assert load_image(path, decoding)[:, 0, 0].tolist() == [100] * 3
        assert any("alpha" in line for line in decoding.notes.lines()) == noted
    real = np.full((2, 2, 4), 0.5)
    real[..., 3] = [[1, 1], [0, np.nan]]
    path = write_tiff(tmp_path / "b.tif", page(real, 32, kind=FLOAT, extra=[2]))
    assert red(path).tolist() == [[128, 128], [255, 255]]
    assert red(path, stretch=(0.0, 2.0)).tolist() == [[64, 64], [255, 255]]


@pytest.mark.parametrize(
    ("text", "hole"),
    [("-3.40282e+38", -3.4028235e38), ("-1.79e+308", -3.4028235e38), ("-9999,0", -9999)],
)
def test_spellings_of_no_data(tmp_path: Path, text: str, hole: float) -> None:
    values = np.tile(np.linspace(0, 1, 32), (2, 1))
    values[1, 3] = hole
    path = write_tiff(tmp_path / "a.tif", page(values, 32, kind=FLOAT, tags={NODATA: text}))
    assert red(path)[0].tolist() == shown(SHADES, 31).tolist()


def test_a_value_for_no_data_that_is_not_used_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    for text, noted in (("-9999", False), ("0", True)):
        more = [(NODATA, "s", 0, text, True)]
        tifffile.imwrite(path, grey, compression="jpeg", extratags=more)
        decoding = Decoding()
        assert abs(load_image(path, decoding)[0].numpy().astype(int) - grey).max() < 6
        assert any("not used" in line for line in decoding.notes.lines()) == noted
    assert reason_of(load_label, path) == "bad-values"  # lossy


def test_a_stack_behind_one_page_is_counted(tmp_path: Path) -> None:
    made = small(10, tags={270: "ImageJ=1.54\nimages=6\nslices=6\n"})
    path, decoding = write_tiff(tmp_path / "a.tif", made), Decoding()
    assert load_image(path, decoding)[0, 0, 0] == 10
    assert any("6 of them" in line for line in decoding.notes.lines())
    assert reason_of(load_image, f"{path}/2") == "unsupported"


def test_colour_labels_in_planes_are_colours(tmp_path: Path) -> None:
    made = page(COLOUR[..., :3], 8, planar=True)
    np.testing.assert_array_equal(load_label(write_tiff(tmp_path / "a.tif", made)), COLOUR[..., :3])
