"""What masks are made by: every change of it changes the facts, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from photographs import centroids_of

from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.identity import digest_of_clusters, digest_of_network, facts_of
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter


def with_cluster(segmenter: Segmenter, **changes: object) -> Segmenter:
    """The same with another third cluster."""
    other = copy.copy(segmenter)
    clusters = list(segmenter.clusters)
    clusters[2] = replace(clusters[2], **changes)  # type: ignore[arg-type]
    other.clusters = tuple(clusters)
    return other


def with_weight(segmenter: Segmenter) -> Segmenter:
    """The same with the last bit of one weight turned."""
    other = copy.copy(segmenter)
    other.network = copy.deepcopy(segmenter.network)
    weight = next(other.network.parameters())
    with torch.no_grad():
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    return other


def with_card(segmenter: Segmenter, **changes: object) -> Segmenter:
    other = copy.copy(segmenter)
    other.card = replace(segmenter.card, **changes)  # type: ignore[arg-type]
    return other


NETWORKS: dict[str, Callable[[Segmenter], Segmenter]] = {
    "a weight": with_weight,
    "what it is shown": lambda model: with_card(model, image_size=64),
    "centroids": lambda model: model.with_centroids(centroids_of(5)),
    "other centroids": lambda model: model.with_centroids(centroids_of(6)),
}
CLUSTERS: dict[str, Callable[[Segmenter], Segmenter]] = {
    "a merge": lambda model: with_cluster(model, merged_into=0),
    "a colour": lambda model: with_cluster(model, colour=(1, 2, 3)),
    "members": lambda model: with_cluster(model, members=(4, 5)),
}


def test_networks(segmenter: Segmenter, tmp_path: Path) -> None:
    found = {name: digest_of_network(change(segmenter)) for name, change in NETWORKS.items()}
    assert len({digest_of_network(segmenter), *found.values()}) == 1 + len(NETWORKS)
    own = digest_of_network(segmenter)
    assert digest_of_network(with_card(segmenter, training={"epochs": 7})) == own
    loaded = Segmenter.load(segmenter.save(tmp_path / "model"), device="cpu", precision="fp32")
    assert digest_of_network(loaded) == own


def test_clusters(segmenter: Segmenter) -> None:
    """Shares and where a name came from are in no mask; names are where they are asked for."""
    for names in (False, True):
        own = digest_of_clusters(segmenter, names=names)
        found = {digest_of_clusters(change(segmenter), names=names) for change in CLUSTERS.values()}
        assert len({own, *found}) == 1 + len(CLUSTERS)
        same = with_cluster(segmenter, share=0.7, named_by="user")
        assert digest_of_clusters(same, names=names) == own
        renamed = with_cluster(segmenter, name="sky")
        assert (digest_of_clusters(renamed, names=names) == own) is not names


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({}, set()),
        ({"decoding": Decoding(max_pixels=5)}, set()),
        ({"refinement": Refinement(refine="none")}, set()),
        ({"refinement": Refinement(refine="pamr")}, {"refine"}),
        ({"refinement": Refinement(flip=True, scales=(0.5, 1))}, {"flip", "scales"}),
        ({"decoding": Decoding(page=2)}, {"page"}),
        ({"decoding": Decoding(bands=(4, 3, 2))}, {"bands"}),
        ({"decoding": Decoding(stretch=(0.0, 9.0))}, {"stretch"}),
        ({"batch_size": 4}, {"batch_size"}),
        ({"names": True}, {"clusters"}),
    ],
)
def test_how_images_pass(
    segmenter: Segmenter, change: dict[str, object], changed: set[str]
) -> None:
    """What the model does by itself is the same when it is asked for."""
    plain: dict[str, object] = {
        "decoding": Decoding(),
        "refinement": AS_TRAINED,
        "batch_size": None,
        "names": False,
    }
    before = facts_of(segmenter, **plain)  # type: ignore[arg-type]
    after = facts_of(segmenter, **{**plain, **change})  # type: ignore[arg-type]
    assert {name for name in before if before[name] != after[name]} == changed
    assert (before["device"], before["precision"]) == ("cpu", "float32")


def test_layers_one_by_one_are_another_fact(segmenter: Segmenter) -> None:
    """`--precision fp32` and the same precision chosen by itself round differently."""
    other = Segmenter(segmenter.network, segmenter.card, segmenter.clusters, device="cpu")
    other.precision = segmenter.precision
    found = [
        facts_of(each, each.decoding, AS_TRAINED, None, names=False) for each in (segmenter, other)
    ]
    assert [each["exact"] for each in found] == [True, False]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"exact"}
