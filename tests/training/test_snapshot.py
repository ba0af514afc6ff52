"""What a training under way is read out by, and its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TinyRuns, end, files_of
from torch import Tensor

from densesiam_seg.errors import OutputError
from densesiam_seg.events import EpochRecord, Started
from densesiam_seg.images.decode import load_square
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.run_directory import read_status

pytestmark = pytest.mark.usefixtures("slim_module")


class TestReadout:
    """Where no head learns the clusters, k-means of the features of the training images finds them at the end."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"method": "simsiam"},
            {"method": "mdc"},
            {"pixel_weight": 0.0, "segmentation_weight": 0.0, "region_weight": 0.0},
        ],
    )
    def test_it_is_that_of_the_trained_features(
        self, runs: TinyRuns, settings: dict[str, Any]
    ) -> None:
        end(runs.begin(epochs=1, **settings))
        found = Segmenter.load(runs.path, device="cpu", precision="fp32")

        def squares() -> Iterator[Tensor]:
            for path in sorted(runs.images.iterdir()):
                yield load_square(path, 64)

        card = ModelCard(found.network.architecture, 32, clusters=4)
        fresh = Segmenter(found.network, card, device="cpu", precision="fp32")
        fitted = fit_readout(fresh, squares, 12, 4, seed=0)
        assert found.card.readout == "kmeans"
        assert found.centroids is not None and fitted.centroids is not None
        assert torch.equal(found.centroids, fitted.centroids)
        assert found.clusters == fitted.clusters


class TestPictures:
    """`--visualize-every`."""

    @pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3]), (2, [2])])
    def test_they_come_after_so_many_epochs_and_change_nothing(
        self, runs: TinyRuns, every: int, epochs: list[int]
    ) -> None:
        end(runs.begin("without"))
        events = list(runs.begin(visualize_every=every))
        paths = [runs.path / "report" / f"epoch-{epoch:04}.png" for epoch in epochs]
        assert paths == sorted((runs.path / "report").iterdir())
        for path, epoch in zip(paths, epochs, strict=True):
            with Image.open(path) as picture:
                assert (picture.format, picture.mode) == ("PNG", "RGB")
            place = [str(event) for event in events].index(f"picture: {path}")
            before = events[place - 1]
            assert isinstance(before, EpochRecord) and before.epoch + 1 == epoch
        assert files_of(runs.path / "model") == files_of(runs.folder / "without/model")

    def test_of_few_images_and_of_res5(self, runs: TinyRuns) -> None:
        """Fewer than a picture has room for."""
        paths = sorted(runs.images.iterdir())[:2]
        options: dict[str, Any] = {"images": paths, "batch_size": 2, "epochs": 1}
        options["visualize_every"] = 1
        end(runs.begin("a", **options))
        end(runs.begin("b", command="pretrain", features="res5", **options))
        for run in ("a", "b"):
            assert (runs.folder / run / "report" / "epoch-0001.png").is_file()

    def test_a_place_that_is_taken(self, runs: TinyRuns) -> None:
        mine: Path = runs.path / "report"
        with pytest.raises(OutputError) as caught:
            for event in runs.begin(visualize_every=1):
                if isinstance(event, Started):
                    mine.write_text("mine")
        status = read_status(runs.path)
        assert (status["status"], status["exit_code"]) == ("failed", 5)
        assert status["reason"] == str(caught.value)
        assert mine.read_text() == "mine"


class TestShares:
    """How much of the area each cluster has, as `clusters` lists it."""

    @pytest.mark.parametrize("options", [{"batch_size": 7}, {"epochs": 0, "prior": "mixture"}])
    def test_all_images_count_also_those_that_the_last_epoch_left_out(
        self, runs: TinyRuns, options: dict[str, Any]
    ) -> None:
        end(runs.begin(**options))
        segmenter = Segmenter.load(runs.path, device="cpu", precision="fp32")
        counts = np.zeros(4, np.int64)
        for path in sorted(runs.images.iterdir()):
            counts += np.bincount(segmenter.predict(path).ravel(), minlength=4)
        shares = [cluster.share for cluster in segmenter.clusters]
        # Masks are as large as the images, shares are counted in squares of 32 pixels.
        assert shares == pytest.approx(counts / counts.sum(), abs=0.02)

    def test_an_epoch_of_all_images_counts_them_itself(self, runs: TinyRuns) -> None:
        done = end(runs.begin())
        assert done.last is not None
        found = Segmenter.load(runs.path, device="cpu").clusters
        assert [cluster.share for cluster in found] == done.last.shares
