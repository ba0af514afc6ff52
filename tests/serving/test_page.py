"""The page in headless Chromium: what a person does on it, and what the canvas shows then."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import chromium, complaints, requested, require_chromium
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.images.scan import scan
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.naming import edits
from densesiam_seg.naming.clusters import read_clusters
from densesiam_seg.serving import routes
from densesiam_seg.serving.server import Server
from densesiam_seg.serving.view import View

PATIENCE = 20.0
HOSTILE = "<img src=x onerror=alert(1)>"
ENTER, ESCAPE, CONTROL, SHIFT = "\ue007", "\ue00c", "\ue009", "\ue008"


@pytest.fixture(scope="module", autouse=True)
def _browser() -> None:
    require_chromium()


class Page:
    """What a person sees and does on the page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def at(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def run(self, script: str, *values: object) -> Any:
        return self.driver.execute_script(script, *values)

    def until(self, met: Callable[[], Any], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not met():
            assert time.monotonic() < until, f"{what}: {self.text('#message')}"
            time.sleep(0.03)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def settle(self) -> None:
        """Wait for the mask to be there and drawn."""
        self.until(lambda: self.at("#stage").get_attribute("aria-busy") == "false", "a mask")
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )

    def row(self, cluster: int) -> str:
        return f"#clusters li[data-cluster='{cluster}']"

    def name(self, cluster: int) -> str:
        return str(self.at(f"{self.row(cluster)} .name input").get_property("value"))

    def pixel(self, place: tuple[int, int], size: tuple[int, int]) -> list[int]:
        """Red, green, blue and alpha of the canvas over a pixel (row, column) of a mask of that size."""
        script = """
const canvas = document.getElementById("mask"), [y, x, height, width] = arguments[0];
const at = [(x + 0.5) * canvas.width / width, (y + 0.5) * canvas.height / height].map(Math.floor);
return [...canvas.getContext("2d").getImageData(...at, 1, 1).data]"""
        return [*self.run(script, [*place, *size])]

    def point(self, place: tuple[int, int], size: tuple[int, int]) -> Any:
        """Actions that begin over that pixel."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.at("#mask")
        box = canvas.rect
        x = (place[1] + 0.5) * box["width"] / size[1] - box["width"] / 2
        y = (place[0] + 0.5) * box["height"] / size[0] - box["height"] / 2
        return ActionChains(self.driver).move_to_element_with_offset(canvas, round(x), round(y))

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, key: str) -> None:
        """A key with Ctrl."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).key_down(CONTROL).send_keys(key).key_up(CONTROL).perform()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def page(driver: Any, server: Server, view: View) -> Iterator[Page]:
    """The page as it is after its start; no script has failed, and no other machine was asked, when a test is done."""
    driver.get("about:blank")
    requested(driver), complaints(driver)
    with server.open(view) as address:
        driver.get(address)
        page = Page(driver)
        page.settle()
        yield page
        asked = [url for url in requested(driver) if urlsplit(url).scheme != "data"]
        assert len(asked) >= 8
        assert [url for url in asked if not url.startswith(address)] == []
        unexpected = [each for each in complaints(driver) if "/1 - Failed to load" not in each]
        # Only the damaged image is refused, and edits that a test gets refused on purpose.
        assert [each for each in unexpected if "409" not in each] == []


@pytest.fixture
def mask(view: View) -> NDArray[np.integer]:
    """That of the first image."""
    return view.mask(0)


def inner(mask: NDArray[np.integer], cluster: int, more: int = 0) -> tuple[int, int]:
    """A pixel of a cluster whose neighbours are of it too, so that no border is near; `more` takes a later one."""
    own = np.pad(mask == cluster, 1)
    places = np.argwhere(
        np.all([np.roll(own, shift, (0, 1)) for shift in SHIFTS], axis=0)[1:-1, 1:-1]
    )
    assert len(places), f"cluster {cluster} has no inner pixel"
    return int(places[more][0]), int(places[more][1])


SHIFTS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def largest(mask: NDArray[np.integer], count: int) -> list[int]:
    """The clusters with the most pixels."""
    return [int(k) for k in np.argsort(-np.bincount(mask.ravel()), kind="stable")[:count]]


def tinted(view: View, cluster: int, alpha: float = 0.5) -> list[int]:
    return [*view.segmenter.palette[cluster], round(255 * alpha)]


def alike(found: list[int], wanted: list[int]) -> bool:
    """Colours that are kept with their alpha are rounded twice."""
    return all(abs(one - other) <= 2 for one, other in zip(found, wanted, strict=True))


def test_the_canvas_shows_the_mask(page: Page, view: View, mask: NDArray[np.integer]) -> None:
    for cluster in largest(mask, 3):
        assert alike(page.pixel(inner(mask, cluster), mask.shape), tinted(view, cluster)), cluster
    page.run(
        "const slider = arguments[0]; slider.value = 90; slider.oninput()", page.at("#opacity")
    )
    page.settle()
    cluster = largest(mask, 1)[0]
    assert alike(page.pixel(inner(mask, cluster), mask.shape), tinted(view, cluster, 0.9))


def test_a_border_has_the_whole_colour(page: Page, view: View, mask: NDArray[np.integer]) -> None:
    script = """
const canvas = document.getElementById("mask");
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
return data.filter((value, index) => index % 4 === 3 && value === 255).length"""
    assert page.run(script) > 0
    page.at("#borders").click()
    page.settle()
    assert page.run(script) == 0


def test_what_is_under_the_pointer(page: Page, view: View, mask: NDArray[np.integer]) -> None:
    cluster = largest(mask, 1)[0]
    place = inner(mask, cluster)
    page.point(place, mask.shape).perform()
    sure = round(view.confidence(0)[place] / 2.55)
    told = page.text("#here")
    assert told.startswith(f"cluster_0{cluster}: id {cluster}, ")
    assert abs(int(told.split(", ")[1].split()[0]) - sure) <= 2
    assert page.text("#tip strong") == f"cluster_0{cluster}" and page.at("#tip").is_displayed()
    assert "hover" in page.at(page.row(cluster)).get_attribute("class").split()


def test_a_name_given_by_clicking(page: Page, model: Path) -> None:
    """It is text, whatever it looks like; on the page, and in the file that masks are named by."""
    page.at(f"{page.row(2)} .name input").click()
    page.chord("a")
    page.keys(HOSTILE, ENTER)
    page.until(lambda: page.text("#revision") == "1", "an edit")
    assert page.name(2) == HOSTILE
    assert read_clusters(model / "clusters.json").clusters[2].name == HOSTILE
    assert page.run("return document.querySelectorAll('aside img, header img').length") == 0
    page.driver.refresh()
    page.settle()
    assert page.name(2) == HOSTILE


def test_a_name_that_is_refused_is_told_and_gone(page: Page, model: Path) -> None:
    before = (model / "clusters.json").read_bytes()
    page.at(f"{page.row(2)} .name input").click()
    page.chord("a")
    page.keys("cluster_01", ENTER)
    assert "name of cluster 1 already" in page.text("#message") and page.name(2) == "cluster_02"
    assert page.text("#selected") == "2: cluster_01, cluster_02"  # to be merged, if that is meant
    page.at(f"{page.row(2)} .name input").click()
    page.chord("a")
    page.keys("7", ENTER)
    page.until(lambda: "not be a number" in page.text("#message"), "a refusal by the program")
    page.until(lambda: page.name(2) == "cluster_02", "the former name")
    page.at(f"{page.row(2)} .name input").click()
    page.keys("something", ESCAPE)
    assert page.name(2) == "cluster_02"
    assert (model / "clusters.json").read_bytes() == before


def test_a_merge_by_clicking_changes_the_mask_and_undo_brings_it_back(
    page: Page, view: View, model: Path, mask: NDArray[np.integer]
) -> None:
    first, second = largest(mask, 2)
    one, other = inner(mask, first), inner(mask, second)
    page.point(one, mask.shape).click().perform()
    page.point(other, mask.shape).key_down(SHIFT).click().key_up(SHIFT).perform()
    assert page.text("#selected") == f"2: cluster_0{first}, cluster_0{second}"
    page.at("#merge").click()
    page.until(lambda: page.text("#revision") == "1", "an edit")
    # The name of what was merged waits to be typed.
    page.keys("ground", ENTER)
    page.until(lambda: page.text("#revision") == "2", "a name")
    page.keys(ESCAPE)
    page.settle()
    assert not page.at(page.row(second)).is_displayed() and page.text("#count") == "4"
    for place in (one, other):
        assert alike(page.pixel(place, mask.shape), tinted(view, first))
    assert Segmenter.load(model, device="cpu").grouping[second] == first
    page.point(other, mask.shape).perform()
    assert page.text("#here").startswith("ground") and f"(id {second})" in page.text("#here")
    page.at("#undo").click()
    page.until(lambda: page.text("#revision") == "3", "an undo")
    page.chord("z")
    page.until(lambda: page.text("#revision") == "4", "an undo by keys")
    page.settle()
    assert page.at("#undo").get_property("disabled")
    for place, cluster in ((one, first), (other, second)):
        assert alike(page.pixel(place, mask.shape), tinted(view, cluster))


def test_the_selected_is_seen_and_the_rest_dimmed_or_hidden(
    page: Page, view: View, mask: NDArray[np.integer]
) -> None:
    first, second = largest(mask, 2)
    page.at(f"{page.row(first)} input[type=checkbox]").click()
    page.settle()
    assert alike(page.pixel(inner(mask, first), mask.shape), tinted(view, first, 0.25))
    dimmed = page.pixel(inner(mask, second), mask.shape)
    assert 150 < dimmed[3] < 255
    page.at("#only").click()
    page.settle()
    assert page.pixel(inner(mask, second), mask.shape)[3] == 255
    assert alike(page.pixel(inner(mask, first), mask.shape), tinted(view, first, 0.25))


def test_with_keys_alone(page: Page, view: View, mask: NDArray[np.integer]) -> None:
    """Another image; the pointer on the canvas; a selection."""
    page.run("document.getElementById('mask').focus()")
    for key in ("\ue012", "\ue013", "\ue014"):  # left, up, right
        page.keys(key)
    assert page.at("#cross").is_displayed() and ": id " in page.text("#here")
    page.keys(ENTER)
    found = [k for k in range(5) if "chosen" in page.at(page.row(k)).get_attribute("class")]
    assert [f"cluster_0{k}" for k in found] == [page.text("#here").split(":")[0]]
    page.run("document.activeElement.blur()")
    page.keys("\ue014")
    page.until(lambda: page.text("#name") == "damaged.jpg", "the next image")


def test_edits_of_other_programs_are_seen(
    page: Page, view: View, model: Path, mask: NDArray[np.integer]
) -> None:
    first, second = largest(mask, 2)
    edits.merge(model, [str(first), str(second)], "both")
    page.until(lambda: page.name(first) == "both", "the other program's edit")
    page.settle()
    assert alike(page.pixel(inner(mask, second), mask.shape), tinted(view, first))
    assert page.text("#revision") == "1" and "another program" in page.text("#message")


def test_names_of_files_are_text_and_a_damaged_image_says_so(page: Page) -> None:
    rows = page.driver.find_elements("css selector", "#images li")
    assert [row.text for row in rows] == ["a <b>&.jpg", "damaged.jpg", "sub/c.png"]
    rows[1].click()
    page.until(lambda: "damaged.jpg" in page.text("#trouble"), "a message")
    assert page.at("#trouble").is_displayed() and not page.at("#frame").is_displayed()
    rows[2].click()
    page.until(lambda: page.at("#frame").is_displayed(), "the next picture")
    page.settle()
    assert page.text("#trouble") == "" and page.text("#name") == "sub/c.png"


def test_pages_of_many_images(
    driver: Any, model: Path, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "NAMES_AT_ONCE", 3)
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (32, 32), (30 * index, 90, 90)).save(folder / f"{index}.png")
    with Server() as server, server.open(View(model, segmenter, scan([folder]))) as address:
        driver.get(f"{address}#5")
        page = Page(driver)
        page.settle()
        assert page.text("#range") == "4–6 of 8" and page.text("#name") == "4.png"
        page.at("#later").click()
        page.until(lambda: page.text("#range") == "7–8 of 8", "the next page")
        assert page.text("#images") == "6.png7.png" and page.text("#name") == "4.png"
        for _ in range(2):
            page.at("#previous").click()
        page.until(lambda: page.text("#name") == "2.png", "the image before the page")
        assert page.text("#range") == "1–3 of 8"


def test_a_server_that_has_ended_is_told(
    driver: Any, server: Server, view: View, model: Path
) -> None:
    with server.open(view) as address:
        driver.get(address)
        page = Page(driver)
        page.settle()
    page.until(lambda: "has ended" in page.text("#message"), "a message")
    shutil.rmtree(model)
