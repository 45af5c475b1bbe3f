"""A stand-in for the hub: the few requests of an upload, over HTTP."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the stand-in received: repositories (private or not), and their files.

    accepts: whether it takes commits; if not, it answers 500
    """

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.accepts = True
        self.address = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, value: object, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != "Bearer hf_right":
                self._answer({"error": "Invalid token"}, 401)
            elif self.path.startswith("/api/whoami"):
                self._answer({"name": "owner", "type": "user"})
            else:
                self._answer({"id": "owner/name", "sha": "0" * 40, "siblings": []})

        def do_POST(self) -> None:
            body = self._body()
            if self.path == "/api/repos/create":
                value = json.loads(body)
                name = f"{value.get('organization') or 'owner'}/{value['name']}"
                hub.repositories[name] = bool(value.get("private")) or value.get("visibility") == "private"
                self._answer({"url": f"{hub.address}/{name}", "name": name, "id": name})
            elif not hub.accepts:
                self._answer({"error": "Internal error"}, 500)
            elif re.search(r"/preupload/", self.path):
                files = [
                    {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for item in json.loads(body)["files"]
                ]
                self._answer({"files": files})
            elif re.search(r"/commit/", self.path):
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                oid = "1" * 40
                self._answer({"commitUrl": f"{hub.address}/owner/name/commit/{oid}", "commitOid": oid})
            else:
                self._answer({})

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
