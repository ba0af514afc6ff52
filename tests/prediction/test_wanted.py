"""What is written for each image: how names end, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.errors import UsageError
from densesiam_seg.prediction.wanted import Wanted, file_names

ALL = Wanted(overlay=True, confidence=True, entropy=True, npy=True)


class TestFiles:
    def test_a_mask_alone(self) -> None:
        assert Wanted().files(Path("o/a.png")) == {"mask": Path("o/a.png")}

    def test_the_mask_is_last(self) -> None:
        """A mask that is there has all that belongs to it."""
        assert ALL.files(Path("o/a.jpg.png")) == {
            "overlay": Path("o/a.jpg_overlay.jpg"),
            "confidence": Path("o/a.jpg_confidence.png"),
            "entropy": Path("o/a.jpg_entropy.png"),
            "npy": Path("o/a.jpg.npy"),
            "mask": Path("o/a.jpg.png"),
        }
        assert list(ALL.ends)[-1] == "mask"

    @pytest.mark.parametrize(
        ("form", "mask", "map_"), [("tiff", ".tif", ".tif"), ("npy", ".npy", ".png")]
    )
    def test_other_formats(self, form: Any, mask: str, map_: str) -> None:
        """An array beside an array would be the same file; a map is a picture."""
        found = Wanted(form=form, confidence=True, npy=form == "npy")
        assert found.ends == {"confidence": f"_confidence{map_}", "mask": mask}

    def test_single_clusters_in_place_of_the_mask(self) -> None:
        found = Wanted(only={7: "sky", 3: "road"}).files(Path("a.png"))
        assert found == {"only 7": Path("a_sky.png"), "only 3": Path("a_road.png")}

    def test_a_name_of_the_users_own(self) -> None:
        """It is that of the only picture of a cluster, as of a mask, whatever its letter case."""
        own = Path("o/x.TIFF")
        assert Wanted(form="tiff").files(own, own_name=True) == {"mask": own}
        assert Wanted(form="tiff", only={7: "sky"}).files(own, own_name=True) == {"only 7": own}
        two = Wanted(form="tiff", only={7: "sky", 3: "road"}).files(own, own_name=True)
        assert set(two.values()) == {Path("o/x_sky.tif"), Path("o/x_road.tif")}

    def test_a_legend_is_on_an_overlay(self) -> None:
        assert "overlay" in Wanted(legend=True).ends


class TestNamesOfClusters:
    def test_are_safe_and_unique(self) -> None:
        names = {
            0: "sky",
            1: "../etc",
            2: "Sky",
            3: "overlay",
            4: "a b/c",
            5: "",
            6: "木",
            7: "???",
        }
        assert file_names(names) == {
            0: "sky",
            1: "etc",
            2: "Sky-2",
            3: "overlay-3",
            4: "a-b-c",
            5: "5",
            6: "木",
            7: "7",
        }

    def test_are_each_once_whatever_ids_are_in_them(self) -> None:
        names = {0: "a b", 1: "a-b-3", 3: "a/b", 4: "overlay", 5: "overlay-4"}
        assert file_names(names) == {
            0: "a-b",
            1: "a-b-3",
            3: "a-b-3-3",
            4: "overlay-4",
            5: "overlay-4-5",
        }

    def test_are_short(self) -> None:
        (name,) = file_names({0: "é" * 500}).values()
        assert len(name.encode()) == 60


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"form": "jpg"}, "--format jpg"),
            ({"min_confidence": 1.5}, "--min-confidence 1.5"),
            ({"min_confidence": float("nan")}, "--min-confidence nan"),
            ({"tile": 100}, "--tile 100: must be at least 256"),
            ({"tile": -1}, "--tile -1"),
            ({"every": 0}, "--every 0"),
        ],
    )
    def test_out_of_range(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            Wanted(**options)

    def test_two_formats(self) -> None:
        assert Wanted(form="tiff").settled("tiff").form == "tiff"
        with pytest.raises(UsageError, match="--format tiff: the name in --out says png"):
            Wanted(form="tiff").settled("png")

    def test_no_id_is_left_for_pixels_without_a_cluster(self) -> None:
        Wanted(min_confidence=0.5).require_ids(255)
        Wanted().require_ids(300)
        with pytest.raises(UsageError, match="256 clusters"):
            Wanted(min_confidence=0.5).require_ids(256)
