"""Whatever is wrong with a request to the Anthropic dialect, the answer is one JSON error that names it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import MAX_CONTEXT, RunningServer

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
USER = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def block(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [fields]}]


CASES: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
    ({"messages": block(text="Hi")}, "messages[0].content[0].type"),
    ({"messages": block(type="text")}, "messages[0]"),
    ({"messages": block(type="text", text=5)}, "messages[0].content[0].text"),
    ({"messages": block(type="image", source={"type": "base64", "data": "x"})}, "'image'"),
    ({"messages": block(type="document", source={"type": "base64", "data": "x"})}, "'document'"),
    ({"messages": block(type="a" * 10_000)}, "messages[0]"),
    ({"messages": block(type="tool_result", content="x")}, "tool_use_id"),
    ({"messages": block(type="tool_result", tool_use_id="t", content=5)}, "messages[0].content[0].content"),
    ({"messages": block(type="tool_result", tool_use_id="t", content=[{"type": "text"}])}, "messages[0]"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}]}, "'name'"),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "input": 5}]}]},
        "messages[0].content[0].input",
    ),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"name": "f"}]}, "input_schema"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305'"),
    ({"tools": [{"name": "f", "input_schema": 5}]}, "tools[0].input_schema"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "must"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"thinking": {"budget_tokens": 5}}, "thinking.type"),
    ({"thinking": True}, "thinking"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
    ({"output_format": {"type": "xml"}}, "output_format"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "input_schema"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"messages": block(type="text", text="a " * MAX_CONTEXT * 2)}, "prompt is too long"),
]
MESSAGE_CASES: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": "a"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": [5]}, "stop_sequences[0]"),
    ({"stop_sequences": ["a"] * 1000}, "stop_sequences"),
    ({"stream": 1}, "stream"),
]


def check_error(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert sorted(body) == ["error", "request_id", "type"]
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"]
    assert sorted(body["error"]) == ["message", "type"]
    assert "Traceback" not in answer.text
    return body["error"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [(path, *case) for path in (MESSAGES, COUNT) for case in CASES if "too long" not in case[1]]
    + [(MESSAGES, *case) for case in [CASES[-1], *MESSAGE_CASES]],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_wrong_requests(
    http: httpx.Client, path: str, fields: dict[str, Any], says: str, *, stream: bool
) -> None:
    body = {"model": "claude-x", "max_tokens": 5, "messages": USER, "stream": stream, **fields}
    answer = http.post(path, json={name: value for name, value in body.items() if value is not None})
    assert answer.status_code == 400, answer.text
    error = check_error(answer)
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b'{"messages":' * 50_000, b'{"model": "\xff"}', b"\xff\xfe", b"[]", b"null"],
    ids=lambda body: str(body[:12]),
)
def test_broken_bodies(http: httpx.Client, body: bytes) -> None:
    for path in (MESSAGES, COUNT):
        answer = http.post(path, content=body)
        assert answer.status_code == 400
        assert check_error(answer)["type"] == "invalid_request_error"


def test_unknown_names_and_addresses(http: httpx.Client) -> None:
    body = {"model": "gpt-9", "max_tokens": 5, "messages": USER}
    for path in (MESSAGES, COUNT):
        answer = http.post(path, json=body)
        assert answer.status_code == 404
        assert check_error(answer)["type"] == "not_found_error"
    assert check_error(http.get(MESSAGES))["type"] == "invalid_request_error"
    nowhere = http.get("/v1/nothing", headers={"anthropic-version": "2023-06-01"})
    assert nowhere.status_code == 404
    assert check_error(nowhere)["type"] == "not_found_error"
    foreign = {"host": "evil.example", "x-api-key": "k"}
    assert check_error(http.get("/v1/models", headers=foreign))["type"] == "permission_error"


@pytest.mark.parametrize("depth", [20, 90, 99, 5000])
def test_deep_nesting(http: httpx.Client, depth: int) -> None:
    """Beyond some depth refused, be it in a tool's schema, in a call's input or in what is not read."""
    deep = '{"a": [' * depth + "1" + "]}" * depth
    start = '{"model": "claude-x", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}'
    call = '{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": '
    bodies = [
        start + '], "tools": [{"name": "f", "input_schema": ' + deep + "}]}",
        start + "," + call + deep + '}]}, {"role": "user", "content": "a"}]}',
        start + '], "metadata": ' + deep + "}",
    ]
    for read, body in zip((True, True, False), bodies, strict=True):
        for path in (MESSAGES, COUNT):
            answer = http.post(path, content=body.encode())
            fits = depth == 20 or (depth < 100 and not read)
            assert answer.status_code == (200 if fits else 400), answer.text
            if not fits:
                assert check_error(answer)["type"] == "invalid_request_error"


def test_many_and_large_blocks(http: httpx.Client, server: RunningServer) -> None:
    many = [{"type": "text", "text": "a"}] * 20_000
    body: dict[str, Any] = {
        "model": "claude-x",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": many}],
    }
    assert "prompt is too long" in check_error(http.post(MESSAGES, json=body))["message"]
    wrong = [*many, *([{"type": "text", "text": 5}] * 20_000)]
    error = check_error(http.post(MESSAGES, json={**body, "messages": [{"role": "user", "content": wrong}]}))
    assert "messages[0].content[20000].text" in error["message"]
    assert len(error["message"]) < 500
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")] * 5_000
    assert (
        "prompt is too long" in check_error(http.post(MESSAGES, json={**body, "messages": turns}))["message"]
    )
    tools = [{**TOOL, "name": f"f{i}", "description": "x" * 100} for i in range(5_000)]
    assert http.post(COUNT, json={**body, "messages": USER, "tools": tools}).status_code in {200, 400}
    server.wait_idle(2)


def test_the_beginning_and_the_rest_of_a_conversation_may_be_odd(http: httpx.Client) -> None:
    """Conversations that agents do send, or that do no harm."""
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True}
    image = {"type": "image", "source": {"type": "base64", "data": "x"}}
    thought = [{"type": "thinking", "thinking": "Hm", "signature": "x"}, {"type": "redacted_thinking"}]
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    conversations: list[list[dict[str, Any]]] = [
        [{"role": "assistant", "content": "Hi"}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": [result]}],
        [*USER, {"role": "assistant", "content": [*thought, call]}],
        [*USER, {"role": "assistant", "content": [*thought, call]}, {"role": "user", "content": [result]}],
        [*USER, {"role": "user", "content": [{**result, "content": [image]}]}],
        [*USER, {"role": "system", "content": "Be terse."}],
        [{"role": "system", "content": "Be terse."}],
    ]
    for conversation in conversations:
        body = {"model": "claude-x", "max_tokens": 1, "messages": conversation, "tools": [TOOL]}
        for path in (MESSAGES, COUNT):
            answer = http.post(path, json=body)
            assert answer.status_code == 200, (conversation, answer.text)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
numbers = st.floats(-3, 3) | st.integers(-1, 3)
kinds = ["text", "tool_use", "tool_result", "thinking", "document", "search_result", "tool_reference"]
blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(kinds), "text": st.text(max_size=5)},
    optional={
        "id": st.text(max_size=3),
        "name": st.text(max_size=3),
        "tool_use_id": st.text(max_size=3),
        "input": st.dictionaries(st.text(max_size=3), anything, max_size=2),
        "content": st.text(max_size=3) | st.lists(anything, max_size=1),
        "source": anything,
        "thinking": st.text(max_size=3),
        "is_error": st.booleans(),
        "cache_control": anything,
    },
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(max_size=20) | st.lists(blocks, max_size=3),
        }
    ),
    max_size=4,
)
fields = {
    "system": st.text(max_size=9) | st.lists(blocks, max_size=2),
    "temperature": numbers,
    "top_p": numbers,
    "top_k": st.integers(-1, 3),
    "stop_sequences": st.lists(st.text(max_size=3), max_size=3),
    "stream": st.booleans(),
    "thinking": st.fixed_dictionaries({"type": st.sampled_from(["enabled", "disabled", "adaptive"])}),
    "tools": st.lists(
        st.fixed_dictionaries(
            {"name": st.text(max_size=3), "input_schema": st.dictionaries(st.text(max_size=3), anything)}
        ),
        max_size=2,
    ),
    "tool_choice": st.fixed_dictionaries({"type": st.sampled_from(["auto", "none", "any"])}),
    "metadata": anything,
}


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly right requests with some fields replaced by anything at all."""
    required = {"model": st.just("claude-x"), "messages": messages, "max_tokens": st.integers(0, 4)}
    body: dict[str, Any] = draw(st.fixed_dictionaries(required, optional=fields))
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)):
        body[name] = draw(anything)
    return body


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies(), path=st.sampled_from([MESSAGES, COUNT]))
def test_no_request_breaks_the_server(http: httpx.Client, body: dict[str, Any], path: str) -> None:
    if isinstance(body["max_tokens"], int) and not isinstance(body["max_tokens"], bool):
        body["max_tokens"] = min(body["max_tokens"], 4)
    answer = http.post(path, content=json.dumps(body).encode("utf-8", "surrogatepass"))
    assert answer.status_code in {200, 400, 404}, answer.text
    if answer.status_code != 200:
        check_error(answer)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        ends = [answer.text.count(f"event: {kind}\n") for kind in ("message_stop", "error")]
        assert ends == [1, 0]
        assert answer.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    elif path == COUNT:
        assert answer.json()["input_tokens"] > 0
    else:
        assert answer.json()["stop_reason"] in {"end_turn", "max_tokens", "stop_sequence", "tool_use"}
