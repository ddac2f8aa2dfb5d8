"""HTTP to a server, with the standard library, and its websocket."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Mapping
from typing import Any

from outpace.errors import OutpaceError

__all__ = ["Server", "ServerError"]


class ServerError(OutpaceError):
    """A server cannot be reached, or refused a request."""


class Server:
    """A server's address, with the key that it asks for ("" for none).

    An address without `http://` is taken as one with it, and `/v1`, where OpenAI's clients look, is left out.
    """

    def __init__(self, url: str, api_key: str = "", *, timeout: float = 60.0) -> None:
        url = url if "://" in url else f"http://{url}"
        self.url = url.rstrip("/").removesuffix("/v1")
        self.api_key = api_key
        self._timeout = timeout

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON that an address answers. Raises `ServerError`."""
        return self._json(path, self._ask("GET", path, None, headers or {}))

    def head(self, path: str) -> None:
        """Whether an address is there. Raises `ServerError` where it is not."""
        self._ask("HEAD", path, None, {})

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        """The JSON that a request is answered with. Raises `ServerError`."""
        return self._json(path, self.post_text(path, body, headers))

    def post_text(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> str:
        """The whole of an answer, a stream's too. Raises `ServerError`."""
        return self._ask("POST", path, json.dumps(body).encode(), headers or {})

    def converse(self, path: str, message: Mapping[str, Any], last: Collection[str]) -> list[Any]:
        """Send a message over a websocket; the JSON events that come, up to one of a type in `last`.

        Raises `ServerError`.
        """
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        address = self.url.replace("http", "ws", 1) + path
        events: list[Any] = []
        try:
            with connect(
                address, additional_headers=headers, open_timeout=self._timeout, max_size=None
            ) as socket:
                socket.send(json.dumps(message))
                while not events or events[-1]["type"] not in last:
                    events.append(json.loads(socket.recv(timeout=self._timeout)))
        except (WebSocketException, OSError) as error:
            raise ServerError(f"{address}: {error}") from None
        return events

    def listed(self, path: str, field: str, *keys: str) -> list[dict[str, Any]]:
        """The objects that an address lists in a field, each with these keys. Raises `ServerError`."""
        answer = self.get(path)
        try:
            found: list[dict[str, Any]] = list(answer[field])
            for each in found:
                for key in keys:
                    each[key]
        except (KeyError, TypeError):
            raise self._no_api(path, json.dumps(answer)) from None
        return found

    def _json(self, path: str, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise self._no_api(path, text) from None

    def _no_api(self, path: str, text: str) -> ServerError:
        return ServerError(f"{self.url}{path}: what answers there is no server of models: {text[:100]!r}")

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> str:
        head = {"content-type": "application/json", **headers}
        if self.api_key:
            head["authorization"] = f"Bearer {self.api_key}"
        address = urllib.parse.urlsplit(self.url)
        if address.scheme not in {"http", "https"} or not address.netloc:
            raise ServerError(f"{self.url}: this is no address; write for instance http://127.0.0.1:8000")
        request = urllib.request.Request(self.url + path, body, head, method=method)  # noqa: S310 - checked above
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            said = _message(error.read().decode(errors="replace"))
            raise ServerError(f"{method} {path}: status {error.code}: {said}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerError(
                f"{self.url} cannot be reached: {error}; is `outpace serve` running there?"
            ) from None


def _message(body: str) -> str:
    """What an error says, in OpenAI's form, in Ollama's, or as it came."""
    try:
        said = json.loads(body)["error"]
        return str(said if isinstance(said, str) else said["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:300]
