"""A model that is loaded elsewhere is the same, with the read-out that was chosen here."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.errors import ModelError
from densesiam_seg.inference.identity import digest_of_model
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.on_ray.sent_model import SentModel


def test_it_brings_its_read_out(model_folder: Path) -> None:
    segmenter = Segmenter.load(model_folder, device="cpu", precision="fp32")
    width = segmenter.network.encoder.width
    centres = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    other = segmenter.with_centroids(Centroids(centres, torch.ones(3)))
    sent = pickle.loads(pickle.dumps(SentModel.of(other, model_folder, "cpu")))
    assert (sent.kind, sent.precision, sent.device) == ("cpu", "fp32", "cpu")
    loaded = sent.load()
    assert digest_of_model(loaded) == digest_of_model(other) != digest_of_model(segmenter)
    image = torch.arange(3 * 32 * 32).remainder(251).byte().reshape(3, 32, 32)
    assert (loaded.predict(image) == other.predict(image)).all()
    assert loaded.readout == "kmeans"


def test_another_model_or_none_is_refused(model_folder: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(model_folder, device="cpu", precision="fp32")
    sent = SentModel.of(segmenter, model_folder, "cpu")
    with pytest.raises(ModelError, match="no model here"):
        replace(sent, path=tmp_path).load()
    with torch.no_grad():
        next(segmenter.network.parameters()).add_(1)
    segmenter.save(tmp_path / "other")
    with pytest.raises(ModelError, match="is another model there"):
        replace(sent, path=tmp_path / "other").load()


def test_of_several_gpus_a_worker_sees_one(segmenter: Segmenter, model_folder: Path) -> None:
    assert SentModel.of(segmenter, model_folder, "cuda:3").device == "cuda"
    assert SentModel.of(segmenter, model_folder, "auto").device == "auto"
