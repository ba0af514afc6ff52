"""`densesiam-seg serve`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from densesiam_seg.cli.options import (
    FollowLinks,
    ImagesArgument,
    Quiet,
    RunArgument,
    io_option,
    require_model,
)
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RunConfig

if TYPE_CHECKING:
    from densesiam_seg.serving.server import Server
    from densesiam_seg.serving.view import View

_LOOK_SECONDS = 0.2
"""How often a request to stop is looked for."""
_DISPLAYS = frozenset({"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"})
"""Of these variables one is there where a browser has a window to show, or the user has chosen one."""


@takes(settings=checked("max_pixels", "device", "precision", "page", "bands"))
def command(
    run: RunArgument,
    images: ImagesArgument,
    *,
    port: Annotated[
        int, io_option("--port", min=0, max=65535, help="Port of the page; 0 takes a free one.")
    ] = 0,
    no_browser: Annotated[
        bool, io_option("--no-browser", help="Print the page's address, and open no browser.")
    ] = False,
    follow_links: FollowLinks = False,
    quiet: Quiet = False,
    settings: RunConfig,
) -> None:
    """Look at masks on a page of this machine; rename and merge clusters by clicking. Ctrl-C ends it."""
    from densesiam_seg.images.scan import scan
    from densesiam_seg.inference.model_card import model_folder

    # Wrong paths, a wrong model or a port in use need not wait for torch.
    pages = settings.page == "all"
    manifest = scan(images, merge=False, follow_links=follow_links, pages=pages)
    require_model(run)
    from densesiam_seg.serving.server import Server

    server = Server(port)
    from densesiam_seg.cli.console import Console
    from densesiam_seg.inference.segmenter import Segmenter
    from densesiam_seg.serving.view import View

    console = Console(quiet=quiet)
    server.tell = lambda text: console.say(text, warning=True)
    console.passed_over(manifest.passed_over)
    console.skipped(manifest.skipped)
    segmenter = Segmenter.load(run, device=settings.device, precision=settings.precision)
    decoding = segmenter.new_decoding(settings)
    view = View(model_folder(run), segmenter, manifest, decoding)
    _serve(server, view, console.say, browser=not no_browser)


def _serve(server: Server, view: View, say: Callable[[str], None], *, browser: bool) -> None:
    """Answer until a signal comes, which is the plain end of this command: exit code 0."""
    from densesiam_seg.io.signals import stop_requests

    with stop_requests() as stop, server.open(view) as address:
        # On stdout, as it is what a script wants to know.
        print(address, flush=True)
        say("only this machine can open it, with this address; Ctrl-C ends it")
        if browser and not _open(address):
            say("no browser found: open the address yourself")
        while not stop:
            time.sleep(_LOOK_SECONDS)
    say("ended; every edit was saved when it was made")


def _open(address: str) -> bool:
    """Whether a browser with a window could be asked to show the page; one in the terminal would take it over."""
    import webbrowser

    if sys.platform not in ("win32", "darwin") and not (_DISPLAYS & os.environ.keys()):
        return False
    return webbrowser.open(address)
