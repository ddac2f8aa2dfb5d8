"""Whatever stands in a request's head: it is read, or refused, and nothing else happens."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from outpace.server.client import presented_keys
from outpace.server.deadlines import HEADER, LONGEST_MS, deadline_of, note_arrival
from outpace.server.errors import APIError
from outpace.server.key_ring import KeyRing
from outpace.server.middleware import KeyAuth, LoopbackOnly
from outpace.server.settings import ServerSettings

KEY = "sk-open sesame"
# What a server takes for a header's value: no control characters, and latin-1.
values = st.text(st.characters(min_codepoint=32, max_codepoint=255, blacklist_characters="\x7f"), max_size=40)
names = st.sampled_from(
    ["localhost", "127.0.0.1", "[::1]", "evil.example", "localhost.evil.example", "127.0.0.1.evil"]
)
marks = st.sampled_from(["localhost", "evil.example", "8000", *"@#?/\\:[]% ."])
hosts = st.one_of(values, st.builds("{}:{}".format, names, values), st.lists(marks, max_size=6).map("".join))


def scope_of(**headers: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/models",
        "headers": raw,
        "query_string": b"",
        "state": {"request_id": "r"},
    }


async def let_in(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def status(door: LoopbackOnly | KeyAuth, scope: dict[str, Any]) -> int:
    """What a client sees that comes to this door; behind it all is 200."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(door(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"]


@given(st.one_of(values, st.floats().map(str), st.integers().map(str)))
@example("nan")
@example("inf")
@example("1e999")
@example("-0")
@example("1_0")
@example("9" * 5000)
def test_a_deadline_is_a_time_within_a_day_or_refused(text: str) -> None:
    scope = scope_of(**{HEADER: text})
    note_arrival(scope)
    now = time.perf_counter()
    try:
        deadline = deadline_of(HTTPConnection(scope), None)
    except APIError as error:
        if (error.status, error.param) != (400, HEADER):
            raise
    else:
        assert now - 1 < deadline <= now + LONGEST_MS / 1000


@given(values, st.sampled_from(["", "Bearer ", "bearer  ", "Basic ", "Bearer\t"]), values)
def test_only_the_key_opens(authorization: str, scheme: str, other: str) -> None:
    door = KeyAuth(let_in, KeyRing(ServerSettings(api_key=KEY)))
    scope = scope_of(authorization=scheme + authorization, x_api_key=other)
    knows = KEY in presented_keys(Headers(scope=scope))
    assert status(door, scope) == (200 if knows else 401)
    assert status(door, scope_of(authorization=scheme + authorization, x_api_key=KEY)) == 200


@given(hosts)
@example("localhost@evil.example")
@example("evil.example#localhost")
@example("evil.example\\@localhost:80")
@example("[::1")
@example("[::1]evil.example")
@example("")
def test_a_host_is_this_machine_or_refused(host: str) -> None:
    door = LoopbackOnly(let_in)
    seen = status(door, scope_of(host=host))
    assert seen in {200, 403}
    if seen == 200:
        assert any(name in host.lower() for name in ("localhost", "127.", "::1", "0:1", "::ffff:7f"))
    assert status(door, scope_of(host="localhost:8000")) == 200


@given(st.sampled_from(["http://", "https://"]), hosts)
@example("http://", "localhost@evil.example")
@example("http://", "evil.example/localhost")
@example("https://", "[::1")
def test_an_origin_is_this_machine_or_named_or_refused(scheme: str, site: str) -> None:
    door = LoopbackOnly(let_in, ["https://chat.example"])
    seen = status(door, scope_of(host="localhost", origin=scheme + site))
    assert seen in {200, 403}
    if seen == 200 and scheme + site != "https://chat.example":
        assert any(name in site.lower() for name in ("localhost", "127.", "::1", "0:1", "::ffff:7f"))


@pytest.mark.parametrize(
    "site", ["evil.example", "localhost.evil.example", "127.0.0.1.evil", "localhost@evil.example"]
)
def test_sites_that_look_like_this_machine(site: str) -> None:
    door = LoopbackOnly(let_in)
    assert status(door, scope_of(host=site)) == 403
    assert status(door, scope_of(host="localhost", origin=f"http://{site}")) == 403
