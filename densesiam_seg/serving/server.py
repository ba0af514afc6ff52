"""Who may ask, and how much: a server on this machine's loopback address alone.

A request is answered if it names this machine as its host (another name that leads here is a page elsewhere, whose
browser was told so), if its address begins with the secret of this server, and, where it edits, if the page itself sent
it. What a reply may do in the browser is bounded by its headers.
"""

from __future__ import annotations

import gzip
import secrets
import socketserver
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from threading import BoundedSemaphore, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from densesiam_seg.errors import UsageError, one_line

if TYPE_CHECKING:
    from densesiam_seg.serving.routes import Reply
    from densesiam_seg.serving.view import View

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
"""Names under which the page may be asked for; any port, as a tunnel may begin at another one."""
MAX_BODY = 1 << 16
"""Bytes of an edit."""
CONNECTIONS = 32
"""At once; a browser opens six."""
IDLE_SECONDS = 30
_COMPRESSED = 1 << 10
"""Replies of more bytes are compressed, for tunnels."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """A server that holds its port from the beginning, and answers within `open`."""

    daemon_threads = True
    request_queue_size = CONNECTIONS
    # Elsewhere this lets a port be used again at once; on Windows it would let others share it.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, port: int = 0, tell: Callable[[str], object] | None = None) -> None:
        """`port` 0 takes a free one; `tell` gets a line for a bug. Raises UsageError for a port that cannot be had."""
        self.token = secrets.token_urlsafe(24)
        self.tell = tell or (lambda text: None)
        self.view: View | None = None
        self._room = BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"--port {port}: cannot be had ({why}); give another, or 0 for any that is free"
            ) from error

    def server_bind(self) -> None:
        """As of every TCP server. That of `http.server` would ask the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, int(self.server_address[1])

    @property
    def address(self) -> str:
        """Of the page, with the secret."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @contextmanager
    def open(self, view: View) -> Iterator[str]:
        """Answer requests while the block runs; gives the page's address."""
        self.view = view
        thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield self.address
        finally:
            self.shutdown()
            thread.join()
            self.server_close()
            self.view = None  # connections that are open are answered no more
            view.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, or end it where there are too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The whole of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """A browser that has left is no error."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: Server

    def do_GET(self) -> None:
        """Answer a request for something to see."""
        self._send(self._reply("GET"))

    def do_POST(self) -> None:
        """Answer an edit."""
        self._send(self._reply("POST"))

    def version_string(self) -> str:
        """The name of the server, without versions."""
        return "densesiam-seg"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses hold the secret."""

    def _reply(self, method: str) -> Reply:
        from densesiam_seg.serving.routes import answer, refusal

        try:
            url = urlsplit(self.path)
        except ValueError:
            return refusal(403, "forbidden")
        token, slash, path = url.path.removeprefix("/").partition("/")
        # Compared in a time that does not tell how much of it is right.
        right = secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if not (self._is_for_here() and right and slash):
            return refusal(403, "forbidden")
        body = b""
        if method == "POST":
            if not self._is_from_the_page():
                return refusal(403, "forbidden")
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
                return refusal(411, "give the body's length")
            if len(length) > len(str(MAX_BODY)) or int(length) > MAX_BODY:
                return refusal(413, "too large")
            body = self.rfile.read(int(length))
        view = self.server.view
        if view is None:
            return refusal(503, "ended")
        try:
            return answer(view, method, path, url.query, body)
        except Exception as error:
            self.server.tell(f"{type(error).__name__}: {error}")
            return refusal(500, one_line(f"{type(error).__name__}: {error}"))

    def _is_for_here(self) -> bool:
        """Whether the host that is asked for is this machine: a page elsewhere that leads here has another name."""
        hosts = self.headers.get_all("Host", [])
        return len(hosts) == 1 and hosts[0].partition(":")[0].lower() in HOSTS

    def _is_from_the_page(self) -> bool:
        """Whether a page of this server sent it, in a way that no form of another page could."""
        return (
            self.headers.get("Origin") == f"http://{self.headers['Host']}"
            and self.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            and self.headers.get_content_type() == "application/json"
        )

    def _send(self, reply: Reply) -> None:
        body, headers = reply.body, dict(_HEADERS)
        accepted = self.headers.get("Accept-Encoding", "")
        if len(body) > _COMPRESSED and "gzip" in accepted and reply.kind != "image/jpeg":
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(body)))
        if reply.status >= 400:
            # What follows may be the rest of a body that was not read.
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
