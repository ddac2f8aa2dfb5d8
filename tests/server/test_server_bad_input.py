"""Whatever is wrong with a request, the answer is one JSON error that names it."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from serving import MAX_CONTEXT, RunningServer

from outpace.server.settings import ServerSettings

USER = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"

MISSING, UNSUPPORTED = "missing_required_parameter", "unsupported_parameter"


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def called(**fields: Any) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}, **fields}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


CHAT_CASES: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "Hi"}, "messages", "invalid_type"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"messages": [*USER, {"role": "tool", "content": "4"}]},
        "messages[1].tool_call_id",
        "missing_required_parameter",
    ),
    ({"messages": [*USER, {"role": "tool", "tool_call_id": "a"}]}, "messages[1].content", MISSING),
    ({"messages": [*USER, called(id=5)]}, "messages[1].tool_calls[0].id", "invalid_type"),
    ({"messages": [*USER, called(id=None)]}, "messages[1].tool_calls[0].id", "invalid_type"),
    ({"messages": [*USER, called(type="custom")]}, "messages[1].tool_calls[0].type", "invalid_value"),
    ({"messages": [*USER, called(function={})]}, "messages[1].tool_calls[0].function.name", MISSING),
    (
        {"messages": [*USER, called(function={"name": "f", "arguments": {}})]},
        "messages[1].tool_calls[0].function.arguments",
        "invalid_type",
    ),
    ({"messages": [*USER, {"role": "function", "name": "f", "content": "4"}]}, "messages[1]", UNSUPPORTED),
    (
        {"messages": [*USER, {"role": "assistant", "function_call": {"name": "f"}}]},
        "messages[1]",
        UNSUPPORTED,
    ),
    ({"messages": USER, "tools": {}}, "tools", "invalid_type"),
    ({"messages": USER, "tools": [{"type": "function"}]}, "tools[0].function", MISSING),
    ({"messages": USER, "tools": [{"type": "web_search"}]}, "tools[0]", UNSUPPORTED),
    ({"messages": USER, "tools": [tool(name=None)]}, "tools[0].function.name", "invalid_type"),
    ({"messages": USER, "tools": [tool(name="")]}, "tools[0].function.name", "invalid_value"),
    ({"messages": USER, "tools": [tool(name='f"}\n')]}, "tools[0].function.name", "invalid_value"),
    ({"messages": USER, "tools": [tool(name="f" * 129)]}, "tools[0].function.name", "invalid_value"),
    ({"messages": USER, "tools": [tool(), tool()]}, "tools[1].function.name", "invalid_value"),
    ({"messages": USER, "tools": [tool(parameters=[])]}, "tools[0].function.parameters", "invalid_type"),
    ({"messages": USER, "tools": [tool()], "tool_choice": "must"}, "tool_choice", "invalid_value"),
    ({"messages": USER, "tools": [tool()], "tool_choice": choice("g")}, "tool_choice", "invalid_value"),
    ({"messages": USER, "tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"messages": USER, "tools": [tool()], "tool_choice": {"type": "x"}}, "tool_choice", UNSUPPORTED),
    ({"messages": USER, "functions": [{"name": "f"}]}, "functions", UNSUPPORTED),
    (
        {"messages": USER, "response_format": {"type": "grammar"}},
        "response_format.type",
        "unsupported_parameter",
    ),
    ({"messages": USER, "modalities": ["audio"]}, "modalities", "unsupported_parameter"),
    ({"messages": USER, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"messages": USER, "max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"messages": USER, "max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
    ({"messages": USER, "max_tokens": "9"}, "max_tokens", "invalid_type"),
    ({"messages": USER, "max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"messages": USER, "max_tokens": 10**30}, "max_tokens", "invalid_value"),
    ({"messages": USER, "temperature": "hot"}, "temperature", "invalid_type"),
    ({"messages": USER, "temperature": True}, "temperature", "invalid_type"),
    ({"messages": USER, "temperature": 1e9}, "temperature", "invalid_value"),
    ({"messages": USER, "top_p": 1.01}, "top_p", "invalid_value"),
    ({"messages": USER, "top_k": -2}, "top_k", "invalid_value"),
    ({"messages": USER, "min_p": 2}, "min_p", "invalid_value"),
    ({"messages": USER, "n": 0}, "n", "invalid_value"),
    ({"messages": USER, "n": 10**6}, "n", "invalid_value"),
    ({"messages": USER, "seed": 2**70}, "seed", "invalid_value"),
    ({"messages": USER, "stop": [""]}, "stop", "invalid_value"),
    ({"messages": USER, "stop": [5]}, "stop[0]", "invalid_type"),
    ({"messages": USER, "repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"messages": USER, "presence_penalty": 1e30}, "presence_penalty", "invalid_value"),
    ({"messages": USER, "logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
    ({"messages": USER, "logit_bias": {"99999999": 1}}, "logit_bias", "invalid_value"),
    ({"messages": USER, "logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ({"messages": USER, "model": "gpt-9"}, "model", "model_not_found"),
    ({"messages": USER, "model": 5}, "model", "invalid_type"),
    ({"messages": USER, "stream": 1}, "stream", "invalid_type"),
    ({"messages": [{"role": "user", "content": "a " * MAX_CONTEXT}]}, "messages", "context_length_exceeded"),
]

TEXT_CASES: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "prompt", "missing_required_parameter"),
    ({"prompt": None}, "prompt", "invalid_type"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 513}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 257, "n": 2}, "prompt", "invalid_value"),
    ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
    ({"prompt": [-1]}, "prompt", "invalid_value"),
    ({"prompt": [10**20]}, "prompt", "invalid_value"),
    ({"prompt": [[1], [10**6]]}, "prompt", "invalid_value"),
    ({"prompt": [10**20], "echo": True}, "prompt", "invalid_value"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_by_model"),
    ({"prompt": "a", "suffix": "b", "echo": True}, "suffix", "unsupported_parameter"),
    ({"prompt": "a", "best_of": 3}, "best_of", "unsupported_parameter"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "invalid_value"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "invalid_type"),
    ({"prompt": [5] * MAX_CONTEXT}, "prompt", "context_length_exceeded"),
    ({"prompt": ["a", "b " * MAX_CONTEXT]}, "prompt", "context_length_exceeded"),
]


def check_error(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    assert "Traceback" not in answer.text
    return error


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [(CHAT, *case) for case in CHAT_CASES] + [(TEXT, *case) for case in TEXT_CASES],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_wrong_requests(
    http: httpx.Client, path: str, body: dict[str, Any], param: str | None, code: str, *, stream: bool
) -> None:
    if stream and param in {"stream_options", "stream"}:
        pytest.skip("is about streaming itself")
    answer = http.post(path, json={**body, "stream": True} if stream else body)
    assert answer.status_code == (404 if code == "model_not_found" else 400), answer.text
    error = check_error(answer)
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert param.split("[")[0].split(".")[0] in error["message"] or code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"messages": NaN}', "invalid_type"),
        (b'{"prompt": "a", "messages": [], "temperature": NaN}', "invalid_value"),
        (b'{"prompt": "\\ud800", "messages": []}', "invalid_json"),
        (b'{"prompt": "\xff", "messages": []}', "invalid_utf8"),
        (b"\xff\xfe", "invalid_utf8"),
        (b"[]", "invalid_type"),
        (b"5", "invalid_type"),
        (b"null", "invalid_type"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_broken_bodies(http: httpx.Client, path: str, body: bytes, code: str) -> None:
    answer = http.post(path, content=body)
    assert answer.status_code == 400
    expected = {code, "missing_required_parameter"} if path == TEXT and b"NaN" in body else {code}
    assert check_error(answer)["code"] in expected


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" * 400])
def test_numbers_that_no_answer_could_show(http: httpx.Client, number: str) -> None:
    """In fields of any content too, which answers show again."""
    body = f'{{"input": "Hi NaN", "max_output_tokens": 1, "metadata": {{"a": {number}}}}}'
    for path in ("/v1/responses", "/v1/responses?stream"):
        answer = http.post(path, content=body)
        assert (answer.status_code, check_error(answer)["code"]) == (400, "invalid_json")
    fine = http.post("/v1/responses", content=body.replace(f": {number}", f': "{number} NaN", "b": 1e300'))
    assert fine.status_code == 200
    assert fine.json()["metadata"] == {"a": f"{number} NaN", "b": 1e300}


def packed(data: bytes, encoding: str) -> bytes:
    return gzip.compress(data) if encoding.endswith("gzip") else zlib.compress(data)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "GZIP"])
def test_packed_bodies(http: httpx.Client, encoding: str) -> None:
    headers = {"content-encoding": encoding}
    plain = json.dumps({"messages": USER, "max_tokens": 1}).encode()
    body = packed(plain, encoding.lower())
    assert http.post(CHAT, content=body, headers=headers).status_code == 200
    for broken in (plain, body[:-9], b""):
        answer = http.post(CHAT, content=broken, headers=headers)
        assert (answer.status_code, check_error(answer)["code"]) == (400, "invalid_encoding")
    bomb = packed(b" " * (ServerSettings().max_body_bytes + 1), encoding.lower())
    assert http.post(CHAT, content=bomb, headers=headers).status_code == 413
    assert http.post(CHAT, content=plain, headers={"content-encoding": "identity"}).status_code == 200
    unknown = http.post(CHAT, content=plain, headers={"content-encoding": "zstd"})
    assert (unknown.status_code, unknown.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "zstd" in check_error(unknown)["message"]


def test_unknown_addresses(http: httpx.Client) -> None:
    nowhere = http.get("/v2/nothing")
    assert nowhere.status_code == 404
    assert check_error(nowhere)["code"] == "unknown_url"
    wrong = http.get(CHAT)
    assert wrong.status_code == 405
    assert check_error(wrong)["code"] == "method_not_allowed"
    assert "POST" in wrong.headers["allow"]


def test_one_bad_prompt_of_many_leaves_nothing_running(http: httpx.Client, server: RunningServer) -> None:
    body = {"prompt": ["a"] * 20 + ["b " * MAX_CONTEXT], "max_tokens": 500, "ignore_eos": True}
    assert http.post(TEXT, json=body).status_code == 400
    server.wait_idle(2)


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
small = st.integers(-1, 3)
numbers = st.floats(-3, 3) | small
fields = {
    "model": st.just("test-model"),
    "n": small,
    "temperature": numbers,
    "top_p": numbers,
    "top_k": small,
    "min_p": numbers,
    "repetition_penalty": numbers,
    "presence_penalty": numbers,
    "frequency_penalty": numbers,
    "logit_bias": st.dictionaries(st.integers(-1, 50).map(str), numbers, max_size=3),
    "seed": st.integers(),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "stop_token_ids": st.lists(st.integers(-1, 50), max_size=3),
    "logprobs": st.booleans() | small,
    "top_logprobs": small,
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "echo": st.booleans(),
    "suffix": st.text(max_size=2),
    "tools": st.lists(
        st.fixed_dictionaries(
            {
                "type": st.just("function"),
                "function": st.fixed_dictionaries(
                    {"name": st.sampled_from("fgh") | st.text(max_size=3)},
                    optional={"parameters": st.dictionaries(st.text(max_size=3), anything, max_size=2)},
                ),
            },
        ),
        max_size=2,
    ),
    "tool_choice": st.sampled_from(["none", "auto", "required"]),
    "parallel_tool_calls": st.booleans(),
    "response_format": st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object"])}),
    "ignore_eos": st.booleans(),
    "max_completion_tokens": small,
}
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]),
            "content": st.text(max_size=20)
            | st.lists(st.fixed_dictionaries({"type": st.just("text")}), max_size=1),
        },
        optional={
            "tool_call_id": st.text(max_size=3),
            "reasoning_content": st.text(max_size=3),
            "tool_calls": st.lists(
                st.fixed_dictionaries(
                    {
                        "id": st.text(max_size=3),
                        "function": st.fixed_dictionaries(
                            {"name": st.text(max_size=3), "arguments": st.text(max_size=3) | st.just("{}")}
                        ),
                    }
                ),
                max_size=2,
            ),
        },
    ),
    max_size=3,
)
prompts = (
    st.text(max_size=20)
    | st.lists(st.text(max_size=5), max_size=3)
    | st.lists(st.integers(-1, 60000), max_size=5)
)


def tiny(**numbers: float) -> dict[str, Any]:
    """A request with numbers that are fine as float64 and not as float32."""
    return {"prompt": "0", "max_tokens": 1, "max_completion_tokens": 2, **numbers}


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly right requests with some fields replaced by anything at all."""
    body: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"messages": messages, "prompt": prompts, "max_tokens": st.integers(0, 4)}, optional=fields
        )
    )
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)):
        body[name] = draw(anything)
    body.setdefault("max_completion_tokens", 2)
    return body


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies(), path=st.sampled_from([CHAT, TEXT]))
@example(body=tiny(repetition_penalty=2.2e-313), path=TEXT)
@example(body=tiny(temperature=1e-40, repetition_penalty=0.01), path=TEXT)
@example(body=tiny(top_p=5e-324, min_p=5e-324), path=TEXT)
def test_no_request_breaks_the_server(http: httpx.Client, body: dict[str, Any], path: str) -> None:
    if not isinstance(body["max_completion_tokens"], int) or body["max_completion_tokens"] > 4:
        body["max_completion_tokens"] = 4
    if isinstance(body["max_tokens"], int) and not isinstance(body["max_tokens"], bool):
        body["max_tokens"] = min(body["max_tokens"], 4)
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = http.post(path, content=content)
    assert answer.status_code in {200, 400, 404}, answer.text
    if answer.status_code != 200:
        check_error(answer)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events = answer.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        assert all("error" not in json.loads(event.removeprefix("data: ")) for event in events[:-2])
    else:
        ends = {choice["finish_reason"] for choice in answer.json()["choices"]}
        assert ends <= {"stop", "length", "tool_calls"}
