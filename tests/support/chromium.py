"""A page in headless Chromium, driven by Selenium, with a list of what it asks for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromedriver")


def require_chromium() -> None:
    """Skip a test, saying why, where the browser, its driver or Selenium is not installed."""
    for name in PROGRAMS:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian: apt install chromium chromium-driver)")
    pytest.importorskip("selenium", reason="Selenium is not installed (extra [test])")


@contextmanager
def chromium(folder: Path, *, dark: bool = False, size: str = "1280,800") -> Iterator[Any]:
    """A Selenium driver of a browser that finds no other machine and keeps its files in `folder`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which(PROGRAMS[0]))
    words = [
        "--headless=new", f"--window-size={size}", f"--user-data-dir={folder / 'browser'}", "--disable-gpu",
        "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--no-sandbox")  # as root there is none
    for word in words:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(shutil.which(PROGRAMS[1])))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def requested(driver: Any) -> list[str]:
    """The addresses that the page has asked for since the last call."""
    messages = (json.loads(each["message"])["message"] for each in driver.get_log("performance"))
    return [
        each["params"]["request"]["url"]
        for each in messages
        if each["method"] == "Network.requestWillBeSent"
    ]


def complaints(driver: Any) -> list[str]:
    """Errors on the browser's console since the last call: of scripts, refusals of the page's own policy."""
    return [each["message"] for each in driver.get_log("browser") if each["level"] == "SEVERE"]
