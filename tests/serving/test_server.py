"""Who may ask: the secret, the host, the origin, bounds; and that nothing listens beyond loopback."""

from __future__ import annotations

import gzip
import json
import socket
import time
from pathlib import Path

import pytest
from asker import Asker

from densesiam_seg.errors import UsageError
from densesiam_seg.serving import server as module
from densesiam_seg.serving.server import Server
from densesiam_seg.serving.view import View

GETS = (
    "", "page.html", "page.css", "page.js", "asking.js", "images.js", "stage.js", "clusters.js", "state",
    "images?from=0", "thumbnail/0", "picture/0", "mask/0", "confidence/0", "nothing", "rename",
)  # fmt: skip
POSTS = {
    "rename": {"cluster": 1, "name": "sky"},
    "merge": {"clusters": [1, 2]},
    "undo": {"revision": 0},
    "state": {},
    "nothing": {},
}


class TestSecret:
    @pytest.mark.parametrize("wrong", ["", "x/", "/", "..", "%s", "%sx/", "x%s/", "%s%%00/"])
    def test_no_route_answers_without_it(self, ask: Asker, model: Path, wrong: str) -> None:
        before = (model / "clusters.json").read_bytes()
        # A part of the secret, as it is and longer; the whole one without the / behind it.
        part = ask.token if wrong == "%s" else ask.token[:-1]
        start = "/" + (wrong % part if "%s" in wrong else wrong)
        paths = [""] if wrong == "%s" else GETS
        for path in paths:
            assert ask("", whole=start + path)[0] == 403, path
        for path, body in POSTS.items():
            assert ask("", body, whole=start + path)[0] == 403, path
        assert (model / "clusters.json").read_bytes() == before

    def test_it_is_another_one_each_time_and_long(self) -> None:
        with Server() as one, Server() as other:
            assert one.token != other.token and min(len(one.token), len(other.token)) >= 32
            assert one.address == f"http://127.0.0.1:{one.server_port}/{one.token}/"

    def test_with_it_every_address_is_there(self, ask: Asker) -> None:
        found = {path: ask(path)[0] for path in GETS}
        assert {path for path, status in found.items() if status != 200} == {
            "page.html",
            "nothing",
            "rename",
        }
        assert found["nothing"] == 404


class TestHost:
    @pytest.mark.parametrize(
        "host", [None, "", "evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.2"]
    )
    def test_other_names_are_refused(self, ask: Asker, host: str | None) -> None:
        """A page elsewhere whose name is told to lead here would have its own name in this header."""
        for path in GETS:
            assert ask(path, Host=host)[0] == 403, path
        assert ask("rename", POSTS["rename"], Host=host, Origin=f"http://{host}")[0] == 403

    def test_tunnels_may_have_other_ports(self, ask: Asker) -> None:
        assert ask("state", Host="localhost:9000")[0] == 200
        origin = "http://localhost:9000"
        assert ask("rename", POSTS["rename"], Host="localhost:9000", Origin=origin)[0] == 200


class TestEditsComeFromThePage:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": None},
            {"Origin": "null"},
            {"Origin": "http://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "http://localhost:{port}"},
            {"Origin": "https://127.0.0.1:{port}"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Content_Type": "text/plain"},
            {"Content_Type": None},
        ],
    )
    def test_others_are_refused(
        self, ask: Asker, model: Path, headers: dict[str, str | None]
    ) -> None:
        before = (model / "clusters.json").read_bytes()
        given = {key: value and value.format(port=ask.port) for key, value in headers.items()}
        for path, body in POSTS.items():
            assert ask(path, body, **given)[0] == 403, path
        assert (model / "clusters.json").read_bytes() == before

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT"])
    def test_other_methods_do_nothing(self, ask: Asker, method: str) -> None:
        assert ask("state", method=method)[0] == 501


class TestBounds:
    def test_a_body(self, ask: Asker, model: Path) -> None:
        before = (model / "clusters.json").read_bytes()
        long = json.dumps({"cluster": 1, "name": "x" * module.MAX_BODY}).encode()
        assert ask("rename", long)[0] == 413
        assert ask("rename", b"{}", Content_Length="9" * 40)[0] == 413
        for length in (None, "-1", "x", "1_0", "²"):
            assert ask("rename", b"{}", Content_Length=length)[0] == 411, length
        assert ask("rename", b"{}", Transfer_Encoding="chunked")[0] == 411
        assert (model / "clusters.json").read_bytes() == before

    def test_a_long_address(self, ask: Asker) -> None:
        assert ask("x" * 70_000)[0] == 414
        assert ask("mask/" + "9" * 5000)[0] == 404

    def test_connections(self, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those beyond the bound end at once, and when others have left there is room again."""
        idle = [
            socket.create_connection(("127.0.0.1", ask.port)) for _ in range(module.CONNECTIONS)
        ]
        with socket.create_connection(("127.0.0.1", ask.port), timeout=20) as one_more:
            assert one_more.recv(1) == b""
        for each in idle:
            each.close()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                assert ask("state")[0] == 200
                return
            except (ConnectionError, OSError):
                time.sleep(0.02)
        raise AssertionError("no room after the others have left")

    def test_one_that_says_nothing_is_ended(
        self, view: View, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module.Handler, "timeout", 0.1)
        with server.open(view), socket.create_connection(("127.0.0.1", server.server_port)) as one:
            one.settimeout(20)
            one.sendall(b"GET / HT")
            assert one.recv(100) == b""


class TestListening:
    @pytest.mark.skipif(
        not Path("/proc/net/tcp").exists(), reason="no list of sockets on this system"
    )
    def test_on_loopback_alone(self, ask: Asker) -> None:
        """State 0A is a socket that listens; 0100007F is 127.0.0.1."""
        port = f"{ask.port:04X}"
        found = [
            line.split()[1]
            for name in ("tcp", "tcp6")
            if (table := Path(f"/proc/net/{name}")).exists()
            for line in table.read_text(encoding="ascii").splitlines()[1:]
            if line.split()[3] == "0A" and line.split()[1].endswith(f":{port}")
        ]
        assert found == [f"0100007F:{port}"]

    def test_other_addresses_of_this_machine(self, ask: Asker) -> None:
        """127.0.0.2 is this machine too, on Linux, and no one listens there; nor at the address that others know."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Sends nothing: it only asks which address would be used.
            try:
                probe.connect(("192.0.2.1", 9))
                others = {"127.0.0.2", probe.getsockname()[0]} - {"127.0.0.1", "0.0.0.0"}
            except OSError:
                others = {"127.0.0.2"}
        for address in others:
            with pytest.raises(OSError):
                socket.create_connection((address, ask.port), timeout=2)

    def test_a_port_in_use(self, server: Server) -> None:
        with server, pytest.raises(UsageError, match=f"--port {server.server_port}"):
            Server(server.server_port)

    def test_no_name_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def asked(*_: object) -> str:
            raise AssertionError("asks the network")

        monkeypatch.setattr(socket, "getfqdn", asked)
        monkeypatch.setattr(socket, "gethostbyaddr", asked)
        Server().server_close()

    def test_after_the_end_the_port_is_free(self, server: Server, view: View) -> None:
        with server.open(view):
            pass
        Server(server.server_port).server_close()


class TestReplies:
    def test_headers(self, ask: Asker) -> None:
        for path in (*GETS, "../x"):
            ask(path)
            assert ask.headers["Cache-Control"] == "no-store", path
            assert ask.headers["Referrer-Policy"] == "no-referrer"
            assert ask.headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in ask.headers
            policy = dict(
                part.strip().split(" ", 1)
                for part in ask.headers["Content-Security-Policy"].split(";")
            )
            assert policy["default-src"] == "'none'" == policy["frame-ancestors"]
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert "Python" not in ask.headers["Server"]

    def test_compressed_where_that_is_understood(self, ask: Asker) -> None:
        plain = ask("mask/0")[1]
        assert "Content-Encoding" not in ask.headers
        packed = ask("mask/0", Accept_Encoding="gzip, br")[1]
        assert ask.headers["Content-Encoding"] == "gzip" and len(packed) < len(plain)
        assert gzip.decompress(packed) == plain

    def test_a_bug_is_told_and_ends_nothing(
        self, server: Server, view: View, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []
        server.tell = told.append

        def broken() -> None:
            raise ZeroDivisionError("by zero")

        monkeypatch.setattr(view, "state", broken)
        with server.open(view):
            ask = Asker(server.server_port, server.token)
            status, body = ask("state")
            assert (status, json.loads(body)) == (500, {"error": "ZeroDivisionError: by zero"})
            assert told == ["ZeroDivisionError: by zero"] and ask("images?from=0")[0] == 200
