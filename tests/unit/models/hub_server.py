"""A small server that speaks the Hugging Face hub's download protocol, with faults on request."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str = "a" * 40
    token: str = ""  # "": anyone may read
    gated: bool = False
    stated_sha256: dict[str, str] = field(default_factory=dict[str, str])  # lies about checksums


@dataclass
class HubServer:
    """Repositories by name, the requests that came, and how the next downloads go wrong."""

    repositories: dict[str, Repository] = field(default_factory=dict[str, Repository])
    requests: list[tuple[str, str, str]] = field(
        default_factory=list[tuple[str, str, str]]
    )  # method path range
    cut_after: int = 0  # close the connection after so many bytes, once
    status: int = 0  # answer everything with this
    seconds_per_chunk: float = 0.0
    sending: threading.Event = field(default_factory=threading.Event)

    def start(self) -> str:
        """Serve on loopback; the endpoint's address."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.status:
            return self._fail(self.hub.status, "")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path):
            repository = self._repository(match[1])
            if repository is not None:
                self._send(
                    json.dumps(_info(match[1], repository)).encode(), {"Content-Type": "application/json"}
                )
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self._repository(match[1])
            if repository is None:
                return None
            if repository.gated:
                return self._fail(403, "GatedRepo")
            if match[3] not in repository.files:
                return self._fail(404, "EntryNotFound")
            self._send_file(repository, repository.files[match[3]])
        else:
            self._fail(404, "")
        return None

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        authorized = repository is not None and (
            not repository.token or self.headers.get("Authorization") == f"Bearer {repository.token}"
        )
        if not authorized:
            self._fail(401, "RepoNotFound")
            return None
        return repository

    def _send_file(self, repository: Repository, data: bytes) -> None:
        start = (
            int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        )
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(data[start:], headers, 206 if start else 200)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after if len(body) > self.hub.cut_after else 0
        if cut:
            self.hub.cut_after = 0
        try:
            for start in range(0, cut or len(body), 65536):
                self.wfile.write(body[start : min(start + 65536, cut or len(body))])
                if self.hub.seconds_per_chunk and len(body) > 65536:
                    self.hub.sending.set()
                    time.sleep(self.hub.seconds_per_chunk)
        except OSError:
            self.close_connection = True
        if cut:
            self.close_connection = True

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _info(name: str, repository: Repository) -> dict[str, object]:
    siblings: list[dict[str, object]] = []
    for file, data in repository.files.items():
        sibling: dict[str, object] = {
            "rfilename": file,
            "size": len(data),
            "blobId": hashlib.sha1(data).hexdigest(),
        }
        if file.endswith((".gguf", ".safetensors")):
            digest = repository.stated_sha256.get(file, hashlib.sha256(data).hexdigest())
            sibling["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
        siblings.append(sibling)
    return {
        "id": name,
        "modelId": name,
        "sha": repository.commit,
        "siblings": siblings,
        "tags": [],
        "private": False,
    }
