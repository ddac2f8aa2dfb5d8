"""Plain HTTP to a server, with the standard library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from outpace.errors import OutpaceError

__all__ = ["Server", "ServerError"]


class ServerError(OutpaceError):
    """A server cannot be reached, or refused a request."""


class Server:
    """A server's address, with the key that it asks for ("" for none)."""

    def __init__(self, url: str, api_key: str = "", *, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.api_key = api_key
        self._timeout = timeout

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON that an address answers. Raises `ServerError`."""
        return json.loads(self._ask("GET", path, None, headers or {}))

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        """The JSON that a request is answered with. Raises `ServerError`."""
        return json.loads(self.post_text(path, body, headers))

    def post_text(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> str:
        """The whole of an answer, a stream's too. Raises `ServerError`."""
        return self._ask("POST", path, json.dumps(body).encode(), headers or {})

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> str:
        head = {"content-type": "application/json", **headers}
        if self.api_key:
            head["authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url + path, body, head, method=method)  # noqa: S310 - checked below
        if not self.url.startswith(("http://", "https://")):
            raise ServerError(f"{self.url}: the address must begin with http:// or https://")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise ServerError(f"{method} {path}: status {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            raise ServerError(
                f"{self.url} cannot be reached: {error}; is `outpace serve` running there?"
            ) from None
