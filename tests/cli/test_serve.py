"""`serve` on the command line: its address, its end, and what it refuses at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from asker import Asker
from program import Cli, Patch, refused

from densesiam_seg.cli import serve

PROGRAM = Path(__file__).parents[1] / "support" / "slim_program.py"


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], Asker]]:
    """The program in a process of its own, and a client of its page."""
    command = [sys.executable, "-P", str(PROGRAM), "serve", *map(str, arguments), "--no-browser"]
    path = os.pathsep.join([str(PROGRAM.parent), *filter(None, sys.path)])
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            address = process.stdout.readline()
            assert address, process.stderr.read()
            url = urlsplit(address.strip())
            assert url.scheme == "http" and url.hostname == "127.0.0.1"
            yield process, Asker(url.port or 0, url.path.strip("/"))
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_its_address_to_its_end(
    model_folder: Path, image_folder: Path, number: signal.Signals
) -> None:
    """A signal is how it is meant to end: exit code 0."""
    machine = ("--device", "cpu", "--precision", "fp32")
    with served(model_folder, image_folder, *machine) as (process, ask):
        assert ask.json("state")["images"] == 12
        assert ask("state", whole="/state")[0] == 403
        assert ask("mask/3")[0] == 200
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), error
        assert "error" not in error and "Traceback" not in error
        assert len(error.splitlines()) == 2 and ask.token not in error


class TestRefusals:
    def test_before_the_model_is_loaded(
        self, cli: Cli, model_folder: Path, image_folder: Path, tmp_path: Path
    ) -> None:
        refused(cli("serve", tmp_path, image_folder), 4, "model", "no model here")
        refused(cli("serve", model_folder, tmp_path / "none"), 3, "input", "none")
        for port in ("70000", "-1", "x"):
            refused(cli("serve", model_folder, image_folder, "--port", port), 2, "usage", "--port")

    def test_a_port_in_use(self, cli: Cli, model_folder: Path, image_folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            found = cli("serve", model_folder, image_folder, "--port", port)
            refused(found, 2, "usage", f"--port {port}", "another")


class TestBrowser:
    def test_only_one_with_a_window_is_opened(self, monkeypatch: Patch) -> None:
        opened: list[str] = []

        def opens(address: str) -> bool:
            opened.append(address)
            return True

        monkeypatch.setattr("webbrowser.open", opens)
        monkeypatch.setattr(sys, "platform", "linux")
        for name in serve._DISPLAYS:
            monkeypatch.delenv(name, raising=False)
        assert not serve._open("http://127.0.0.1:1/x/") and opened == []
        monkeypatch.setenv("DISPLAY", ":0")
        assert serve._open("http://127.0.0.1:1/x/") and opened == ["http://127.0.0.1:1/x/"]
