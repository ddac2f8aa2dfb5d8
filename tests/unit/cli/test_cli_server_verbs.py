"""The verbs that speak to a server, where there is something else, or nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """An address where every connection is answered with these bytes and closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def page(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()


VERBS = (("ps",), ("stop", "m"), ("launch", "claude", "--show"), ("doctor",))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.2\r\n", page("<html>Log in</html>"), page("{}"), page("[5]"), page('{"models": 5}')],
    ids=["no http", "a page", "an object", "a list", "a number"],
)
def test_what_answers_is_no_server_of_models(invoke: Invoke, verb: tuple[str, ...], answer: bytes) -> None:
    with answering(answer) as url:
        done = invoke(*verb, "--url", url)
    assert done.exit_code == 1
    assert "internal error" not in done.output + done.stderr
    assert url in done.stderr or "doctor" in verb


@pytest.mark.parametrize("url", ["foo://bar", "http://", "http:///v1", ""])
def test_what_is_no_address(invoke: Invoke, url: str) -> None:
    done = invoke("ps", "--url", url)
    assert done.exit_code == 1
    assert "write for instance http://127.0.0.1:8000" in done.stderr


@pytest.mark.parametrize("shape", ["{}/v1", "{}/v1/", "{}/", "{}"])
def test_addresses_as_people_have_them(invoke: Invoke, shape: str) -> None:
    """That of `outpace serve`'s own line, and one without a scheme."""
    with answering(page('{"models": []}')) as url:
        for given in (shape.format(url), shape.format(url.removeprefix("http://"))):
            done = invoke("ps", "--url", given)
            assert (done.exit_code, done.stderr) == (0, "")
            assert "no model is in memory" in done.stdout


def test_a_refusal_is_told_in_its_own_words(invoke: Invoke) -> None:
    for body in ('{"error": "no such model"}', '{"error": {"message": "no such model", "code": 5}}'):
        with answering(page(body, "404 Not Found")) as url:
            done = invoke("stop", "m", "--url", url)
        assert done.stderr == "outpace: error: POST /api/generate: status 404: no such model\n"
