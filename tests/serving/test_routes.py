"""What each address gives, with a plain client."""

from __future__ import annotations

import io
import json
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asker import Asker
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.naming import edits
from densesiam_seg.naming.clusters import read_clusters
from densesiam_seg.serving import routes

IMAGES = ["a <b>&.jpg", "damaged.jpg", "sub/c.png"]


def grid(ask: Asker, path: str) -> NDArray[np.integer]:
    status, body = ask(path)
    assert status == 200, body
    height, width, size = struct.unpack("<3I", body[:12])
    return np.frombuffer(body[12:], f"<u{size}").reshape(height, width)


def shown(state: dict[str, Any]) -> list[int]:
    return [each["shownAs"] for each in state["clusters"]]


class TestImages:
    def test_their_names_a_page_at_a_time(
        self, ask: Asker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert ask.json("images?from=0") == {"from": 0, "names": IMAGES, "atOnce": 200}
        monkeypatch.setattr(routes, "NAMES_AT_ONCE", 2)
        assert ask.json("images?from=2") == {"from": 2, "names": IMAGES[2:], "atOnce": 2}
        assert ask.json("images?from=7")["names"] == []
        for wrong in ("", "from=-1", "from=x", "from=%C2%B2"):
            assert ask.json(f"images?{wrong}")["names"] == []

    def test_mask_picture_and_confidence_are_of_one_size(
        self, ask: Asker, pictures: Path, segmenter: Segmenter
    ) -> None:
        for place in (0, 2):
            mask = grid(ask, f"mask/{place}")
            np.testing.assert_array_equal(mask, segmenter.predict(pictures / IMAGES[place]))
            assert grid(ask, f"confidence/{place}").shape == mask.shape
            with Image.open(io.BytesIO(ask(f"picture/{place}")[1])) as picture:
                assert picture.size == mask.shape[::-1]

    def test_an_unreadable_one_says_why_and_others_go_on(self, ask: Asker) -> None:
        for what in ("thumbnail", "picture", "mask", "confidence"):
            status, body = ask(f"{what}/1")
            assert status == 422 and "damaged.jpg" in json.loads(body)["error"], what
        assert ask("mask/2")[0] == 200

    @pytest.mark.parametrize(
        "path",
        [
            "mask/3", "mask/-1", "mask/", "mask", "mask/0/", "mask/0x0", "mask/%C2%B2", "mask/%30", "mask/+0",
            "mask/1e0", "../clusters.json", "..%2Fclusters.json", "picture/../../a", "picture/..%2f..%2fa",
            "/etc/passwd", "picture//etc/passwd", "page.html", "view.py", "__init__.py", "./page.js", "page.js/",
            "page.js%00", "state/", "thumbnail/a <b>&.jpg".replace(" ", "%20"),
        ],
    )  # fmt: skip
    def test_no_other_address_leads_anywhere(self, ask: Asker, path: str) -> None:
        assert ask(path)[0] == 404


class TestEdits:
    def test_there_and_back(self, ask: Asker, model: Path) -> None:
        before = grid(ask, "mask/0")
        first = ask.json("state")
        assert first["revision"] == 0 and first["undo"] is None and shown(first) == [0, 1, 2, 3, 4]
        found = ask.json("rename", {"cluster": 3, "name": "<b>sky</b>"})
        assert found["clusters"][3]["name"] == "<b>sky</b>" and found["revision"] == 1
        found = ask.json("merge", {"clusters": [3, 1, 4]})
        assert shown(found) == [0, 3, 2, 3, 3] and found["undo"].startswith("merge")
        assert found["clusters"][3]["name"] == "<b>sky</b>"
        stored = read_clusters(model / "clusters.json")
        assert stored.revision == 2 == found["revision"]
        assert Segmenter.load(model, device="cpu").grouping.tolist() == shown(found)
        found = ask.json("undo", {"revision": 2})
        assert shown(found) == [0, 1, 2, 3, 4]
        found = ask.json("undo", {"revision": 3})
        assert found["clusters"] == first["clusters"] and found["undo"] is None
        np.testing.assert_array_equal(grid(ask, "mask/0"), before)

    def test_confidence_is_that_of_what_is_shown(self, ask: Asker) -> None:
        """Merged clusters are surer together; all of them together are certain."""
        before = grid(ask, "confidence/0")
        ask.json("merge", {"clusters": [0, 1]})
        some = grid(ask, "confidence/0")
        assert (some >= before).all() and (some > before).any() and before.max() < 255
        ask.json("merge", {"clusters": [0, 2, 3, 4]})
        assert (grid(ask, "confidence/0") == 255).all()

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("rename", {"cluster": 1, "name": "x" * 101}),
            ("rename", {"cluster": 1, "name": "cluster_02"}),
            ("rename", {"cluster": 9, "name": "sky"}),
            ("rename", {"cluster": -1, "name": "sky"}),
            ("merge", {"clusters": [1]}),
            ("merge", {"clusters": [1, 1]}),
            ("merge", {"clusters": []}),
            ("undo", {"revision": 0}),
        ],
    )
    def test_refused_ones_say_why(self, ask: Asker, model: Path, path: str, body: object) -> None:
        before = (model / "clusters.json").read_bytes()
        status, found = ask(path, body)
        assert status == 409 and json.loads(found)["error"]
        assert (model / "clusters.json").read_bytes() == before

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b"[]", b"null", b'{"cluster": 1}', b'{"cluster": "1", "name": "sky"}', b"[" * 60_000,
            b'{"cluster": true, "name": "sky"}', b'{"cluster": 1, "name": "sky", "more": 1}', b"\xff\xfe",
            b'{"clusters": ["1", "2"]}', b'{"clusters": [1.0, 2]}', b'{"revision": 1.5}',
        ],
    )  # fmt: skip
    def test_bodies_that_mean_nothing(self, ask: Asker, model: Path, body: bytes) -> None:
        before = (model / "clusters.json").read_bytes()
        for path in ("rename", "merge", "undo"):
            assert ask(path, body)[0] == 400
        assert (model / "clusters.json").read_bytes() == before


class TestSeveralAtOnce:
    def test_nothing_is_lost(self, ask: Asker, model: Path) -> None:
        """Twenty edits of the page by four connections, and twenty of another program meanwhile."""
        failed = []

        def rename(cluster: int) -> None:
            for turn in range(5):
                status, found = Asker(ask.port, ask.token)(
                    "rename", {"cluster": cluster, "name": f"page {cluster} {turn}"}
                )
                if status != 200:
                    failed.append(found)

        threads = [threading.Thread(target=rename, args=(cluster,)) for cluster in range(4)]
        for each in threads:
            each.start()
        for turn in range(20):
            edits.rename(model, {"4": f"elsewhere {turn}"})
        for each in threads:
            each.join()
        assert failed == []
        found = ask.json("state")
        names = [each["name"] for each in found["clusters"]]
        assert names == [*(f"page {cluster} 4" for cluster in range(4)), "elsewhere 19"]
        assert found["revision"] == 40

    def test_the_page_learns_of_other_edits_and_of_nothing_else(
        self, ask: Asker, model: Path
    ) -> None:
        first = ask.json("state")
        since = f"state?since={first['version']}"
        assert ask(since) == (204, b"")
        edits.rename(model, {"2": "road"})
        found = ask.json(since)
        assert found["clusters"][2]["name"] == "road" and found["revision"] == 1
        assert ask(f"state?since={found['version']}")[0] == 204

    def test_by_hand_too(self, ask: Asker, model: Path) -> None:
        since = f"state?since={ask.json('state')['version']}"
        path = model / "clusters.json"
        path.write_text(path.read_text().replace("cluster_02", "grass"))
        assert ask.json(since)["clusters"][2]["name"] == "grass"
        path.write_text("{")
        status, found = ask(since)
        assert status == 409 and "clusters.json" in json.loads(found)["error"]

    def test_no_undo_of_what_was_not_seen(self, ask: Asker, model: Path) -> None:
        seen = ask.json("rename", {"cluster": 1, "name": "sky"})["revision"]
        edits.rename(model, {"2": "road"})
        status, found = ask("undo", {"revision": seen})
        assert status == 409 and "another program" in json.loads(found)["error"]
        names = [each["name"] for each in ask.json("state")["clusters"]]
        assert names[1:3] == ["sky", "road"]


def test_a_model_that_was_trained_again(ask: Asker, model: Path) -> None:
    """Its ids mean other clusters than those on the page: nothing is edited any more."""
    assert ask("state")[0] == 200
    config = model / "config.json"
    config.write_text(config.read_text() + "\n")
    before = (model / "clusters.json").read_bytes()
    for path, body in (
        ("state", None),
        ("rename", {"cluster": 1, "name": "sky"}),
        ("merge", {"clusters": [1, 2]}),
    ):
        status, found = ask(path, body)
        assert status == 409 and "replaced" in json.loads(found)["error"], path
    assert (model / "clusters.json").read_bytes() == before
    config.unlink()
    assert ask("state")[0] == 409
