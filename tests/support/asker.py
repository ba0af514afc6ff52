"""A client of a served page, without a browser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any


@dataclass
class Asker:
    """Requests to a server of this machine. A header of None is left out."""

    port: int
    token: str
    headers: dict[str, str] = field(default_factory=dict)
    """Of the last answer."""

    def __call__(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        whole: str | None = None,
        **headers: str | None,
    ) -> tuple[int, bytes]:
        """Status and body for a path below the secret, or for the `whole` one."""
        method = method or ("GET" if body is None else "POST")
        given = {"Host": f"127.0.0.1:{self.port}"}
        if method == "POST":
            given |= {
                "Origin": f"http://127.0.0.1:{self.port}",
                "Content-Type": "application/json",
            }
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(
                method, whole or f"/{self.token}/{path}", skip_host=True, skip_accept_encoding=True
            )
            if sent is not None:
                given["Content-Length"] = str(len(sent))
            for name, value in (given | changed).items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(sent)
            reply = connection.getresponse()
            self.headers = dict(reply.getheaders())
            return reply.status, reply.read()
        finally:
            connection.close()

    def json(self, path: str, body: Any = None, **headers: str | None) -> Any:
        """What is answered, which is no error."""
        status, found = self(path, body, **headers)
        assert status == 200, (status, found)
        return json.loads(found)
