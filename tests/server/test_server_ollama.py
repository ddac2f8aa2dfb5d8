"""The Ollama dialect with its own client, and `/infill`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import ollama
import pytest
from scripted import saying
from serving import RunningServer, failing_at, open_raw, running, wait_until_busy
from tool_requests import ASK, SCHEMA

from outpace.llm import LLM
from outpace.server.ollama.conversation import read_chat
from outpace.server.ollama.schema import ChatRequest
from outpace.server.settings import ServerSettings

HELLO = [{"role": "user", "content": "Say hello."}]
SHORT = {"num_predict": 8, "seed": 1}
BROKEN_CALL = {"role": "assistant", "tool_calls": [{}]}


def weather_tool(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "description": "D", "parameters": SCHEMA}}


@contextmanager
def closing_client(server: RunningServer) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url, timeout=60)
    yield client
    client._client.close()  # the package has no other way


@pytest.fixture
def friend(server: RunningServer) -> Iterator[ollama.Client]:
    with closing_client(server) as client:
        yield client


@pytest.fixture
def real_friend(native_server: RunningServer) -> Iterator[ollama.Client]:
    with closing_client(native_server) as client:
        yield client


def test_an_editor_finds_the_model(friend: ollama.Client, http: httpx.Client) -> None:
    assert int(http.get("/api/version").json()["version"].split(".")[1]) >= 6
    [model] = friend.list().models
    assert model.model == "test-model"
    shown = friend.show("test-model")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 1024
    assert friend.show("test-model:latest").modelinfo == shown.modelinfo
    [running] = friend.ps().models
    assert running.context_length == 1024


def test_a_chat_is_the_same_in_one_piece_and_as_lines(friend: ollama.Client) -> None:
    whole = friend.chat("test-model", HELLO, options=SHORT)
    lines = list(friend.chat("test-model", HELLO, options=SHORT, stream=True))
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    assert [line.done for line in lines].count(True) == 1
    last = lines[-1]
    assert last.done_reason == whole.done_reason == "length"
    assert last.eval_count == whole.eval_count == 8
    assert last.prompt_eval_count == whole.prompt_eval_count
    assert (last.total_duration or 0) >= (last.eval_duration or 0)


def test_a_prompt_is_answered_or_completed(friend: ollama.Client, server: RunningServer) -> None:
    answered = friend.generate("test-model", "Say hello.", options=SHORT)
    assert answered.response == friend.chat("test-model", HELLO, options=SHORT).message.content
    completed = friend.generate("test-model", "Say hello.", raw=True, options=SHORT)
    assert completed.prompt_eval_count == len(server.llm.encode_prompt("Say hello."))


def test_a_format_is_kept_to(real_friend: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answer = real_friend.chat("test-model", HELLO, format=schema, options={"seed": 1, "num_predict": 60})
    parsed = json.loads(answer.message.content or "")
    assert parsed["colour"] in {"red", "green"}
    assert list(parsed) == ["colour", "count"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("chat", {"model": "other", "messages": HELLO}, 404, "not served here"),
        ("chat", {"model": "test-model", "messages": HELLO, "format": "xml"}, 400, "format"),
        ("chat", {"model": "test-model", "messages": HELLO, "tools": [{}]}, 400, "tools[0].function"),
        ("chat", {"model": "test-model", "messages": HELLO, "tools": [weather_tool("a b")]}, 400, "tools[0]"),
        (
            "chat",
            {"model": "test-model", "messages": [{"role": "assistant", "tool_calls": [{}]}]},
            400,
            "tool_calls[0]",
        ),
        ("chat", {"model": "test-model", "messages": [{"role": "user", "images": ["x"]}]}, 400, "text only"),
        ("chat", {"model": "test-model", "messages": HELLO, "options": {"top_p": 7}}, 400, "top_p"),
        ("chat", {"model": "test-model", "messages": HELLO, "format": {"type": "thing"}}, 400, "JSON schema"),
        ("generate", {"model": "test-model", "prompt": "x", "suffix": "y"}, 400, "fill in the middle"),
        ("generate", {"prompt": "x"}, 400, "model"),
        ("show", {"model": "other"}, 404, "not served here"),
        ("embed", {"model": "test-model"}, 400, "input"),
        ("embeddings", {"model": "other", "prompt": "x"}, 404, "not served here"),
        ("nothing", {"model": "test-model"}, 404, "no such address"),
    ],
)
def test_errors_have_the_dialects_form(
    http: httpx.Client, path: str, body: dict[str, object], status: int, says: str
) -> None:
    answer = http.post(f"/api/{path}", json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]


def test_a_failing_step_is_the_last_line(
    http: httpx.Client, served_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(served_llm, monkeypatch)[0] = 3
    body = {"model": "test-model", "messages": HELLO, "options": {"num_predict": 50}}
    lines = [json.loads(line) for line in http.post("/api/chat", json=body).text.splitlines()]
    assert lines[-1] == {"error": "the step broke"}
    assert not any(line.get("done") for line in lines)


def test_a_client_that_leaves_is_cancelled(server: RunningServer) -> None:
    body = {"model": "test-model", "prompt": "a b c", "options": {"num_predict": 900}}
    connection = open_raw(server, "/api/generate", body)
    wait_until_busy(server)
    connection.close()
    server.wait_idle(3)


# --- tools and thoughts -----------------------------------------------------------------------------

TWO_CALLS = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome \\"é\\""}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)
TOOLS = [weather_tool("weather"), weather_tool("units")]


def test_calls_come_whole_in_one_piece_and_as_lines(friend: ollama.Client, server: RunningServer) -> None:
    options = {"num_predict": 200}
    with saying(server.llm, TWO_CALLS):
        whole = friend.chat("test-model", ASK, tools=TOOLS, options=options)
        lines = list(friend.chat("test-model", ASK, tools=TOOLS, options=options, stream=True))
    for message in (
        [whole.message],
        [line.message for line in lines],
    ):
        assert "".join(part.content or "" for part in message).strip() == "Let me look."
        calls = [call.function for part in message for call in part.tool_calls or ()]
        assert [(call.name, call.arguments) for call in calls] == [
            ("weather", {"city": 'Rome "é"'}),
            ("weather", {"city": "Oslo"}),
        ]
    assert whole.done_reason == lines[-1].done_reason == "stop"
    assert [line.done for line in lines].count(True) == 1
    assert not lines[-1].message.tool_calls


def test_a_function_of_the_users_is_a_tool(friend: ollama.Client, server: RunningServer) -> None:
    """The client makes a tool of a function, and the next turn tells its result."""

    def weather(city: str) -> str:
        """The weather in a city.

        Args:
            city: Where.
        """
        return f"Rain in {city}."

    messages = list(ASK)
    with saying(server.llm, TWO_CALLS):
        answer = friend.chat("test-model", messages, tools=[weather], options={"num_predict": 200})
    messages.append(answer.message)
    for call in answer.message.tool_calls or ():
        result = weather(**call.function.arguments)
        messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
    with saying(server.llm, "It rains in both."):
        last = friend.chat("test-model", messages, tools=[weather], options={"num_predict": 20})
    assert last.message.content == "It rains in both."
    assert (last.prompt_eval_count or 0) > (answer.prompt_eval_count or 0)


def test_a_call_that_is_cut_is_told_as_far_as_it_came(friend: ollama.Client, server: RunningServer) -> None:
    with saying(server.llm, TWO_CALLS):
        lines = list(friend.chat("test-model", ASK, tools=TOOLS, options={"num_predict": 22}, stream=True))
    assert lines[-1].done_reason == "length"
    assert [line.done for line in lines].count(True) == 1


def test_results_find_their_calls() -> None:
    def call(name: str) -> dict[str, object]:
        return {"function": {"name": name, "arguments": {"a": 1}}}

    request = ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [
                {"role": "assistant", "thinking": "Hm.", "tool_calls": [call("f"), call("g"), call("f")]},
                {"role": "tool", "tool_name": "g", "content": "1"},
                {"role": "tool", "tool_name": "f", "content": "2"},
                {"role": "tool", "content": "3"},
                {"role": "tool", "tool_name": "h", "content": "4"},
            ],
        }
    )
    said, *results = read_chat(request).messages
    assert said["reasoning_content"] == "Hm."
    assert [each["id"] for each in said["tool_calls"]] == ["call_1", "call_2", "call_3"]
    assert [(each["tool_call_id"], each.get("name")) for each in results] == [
        ("call_2", "g"), ("call_1", "f"), ("call_3", "f"), ("call_4", "h"),
    ]  # fmt: skip


def test_results_find_the_calls_that_they_name() -> None:
    calls = [{"id": key, "function": {"name": "f", "arguments": None}} for key in "ab"]
    request = ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "tool_call_id": "b", "content": "1"},
                {"role": "tool", "tool_call_id": "unknown", "content": "2"},
            ],
        }
    )
    said, *results = read_chat(request).messages
    assert said["content"] == ""
    assert said["tool_calls"][0] == {
        "id": "a",
        "type": "function",
        "function": {"name": "f", "arguments": {}},
    }
    assert [(each["tool_call_id"], each["name"]) for each in results] == [("b", "f"), ("a", "f")]


def test_what_the_dialect_lets_pass(http: httpx.Client) -> None:
    """Nulls are as good as nothing, whole numbers may have a point, a schema's odd parts are passed over."""
    body = {
        "model": "test-model",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{**weather_tool("f"), "type": None}],
        "options": {"num_predict": 2.0, "top_k": 40.0, "seed": 1.0},
        "format": {"type": "array", "uniqueItems": True, "items": {"type": "string", "format": "password"}},
        "stream": False,
    }
    assert http.post("/api/chat", json=body).json()["eval_count"] == 2
    for path, empty in (("chat", {"messages": None}), ("generate", {"prompt": None})):
        answer = http.post(f"/api/{path}", json={"model": "test-model", "stream": False, **empty})
        assert answer.json()["done_reason"] == "load"
    wrong = http.post("/api/chat", json={**body, "options": {"num_predict": 2.5}})
    assert "options.num_predict" in wrong.json()["error"]


def test_models_have_a_digest_and_addresses_a_head(friend: ollama.Client, http: httpx.Client) -> None:
    """The program `ollama` cuts the digest for its lists, and asks whether a server is there by a HEAD."""
    digests = {model.digest for model in (*friend.list().models, *friend.ps().models)}
    assert [len(digest or "") for digest in digests] == [64]
    for path in ("tags", "version"):
        assert http.head(f"/api/{path}").status_code == 200


@pytest.mark.parametrize(("think", "expected"), [(True, True), ("high", True), (False, False), (None, None)])
def test_thinking_is_the_templates_business(think: object, expected: bool | None) -> None:
    request = ChatRequest.model_validate({"model": "m", "messages": HELLO, "think": think})
    assert read_chat(request).template.get("enable_thinking") is expected


# --- llama.cpp's /infill ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def code_server(model_05b: object) -> Iterator[httpx.Client]:
    with (
        LLM(str(model_05b), max_context=1024, kv_cache_bytes=1 << 26) as llm,
        running(llm, ServerSettings(port=0, sampling={"temperature": 0.0})) as state,
        httpx.Client(base_url=state.url, timeout=60) as client,
    ):
        yield client


GAP = {
    "input_prefix": "def add(first, second):\n    return ",
    "input_suffix": "\n\nassert add(1, 2) == 3\n",
    "temperature": 0,
    "n_predict": 16,
}


def test_infill_fills_the_gap(code_server: httpx.Client) -> None:
    answer = code_server.post("/infill", json=GAP).json()
    assert answer["content"].startswith("first + second")
    assert answer["stop"] is True
    assert answer["stop_type"] == "limit"
    assert answer["truncated"] is False
    assert answer["timings"]["predicted_n"] == answer["tokens_predicted"]
    events = code_server.post("/infill", json={**GAP, "stream": True}).text.split("\n\n")[:-1]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(piece["content"] for piece in pieces) == answer["content"]
    assert [piece["stop"] for piece in pieces].count(True) == 1


def test_infill_is_as_the_server_says_where_the_editor_does_not(code_server: httpx.Client) -> None:
    silent = {name: value for name, value in GAP.items() if name != "temperature"}
    greedy = code_server.post("/infill", json=GAP).json()["content"]
    assert {code_server.post("/infill", json=silent).json()["content"] for _ in range(4)} == {greedy}
    hot = [code_server.post("/infill", json={**silent, "temperature": 3.0}).json() for _ in range(4)]
    assert len({answer["content"] for answer in hot}) > 1, "what it says wins"


def test_an_editor_warms_the_cache_and_picks_fields(code_server: httpx.Client) -> None:
    extra = [{"filename": "names.py", "text": "first = 1\n" * 30}]
    warm = code_server.post("/infill", json={**GAP, "n_predict": 0, "input_extra": extra}).json()
    assert warm["content"] == ""
    fields = ["content", "timings/prompt_n", "tokens_cached", "no/such/field"]
    answer = code_server.post("/infill", json={**GAP, "input_extra": extra, "response_fields": fields}).json()
    assert list(answer) == ["content", "timings/prompt_n", "tokens_cached"]
    assert answer["tokens_cached"] > 0.7 * warm["tokens_evaluated"]


def test_a_completion_may_have_a_suffix(code_server: httpx.Client, http: httpx.Client) -> None:
    body = {"prompt": GAP["input_prefix"], "suffix": GAP["input_suffix"], "temperature": 0}
    [choice] = code_server.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"].startswith("first + second")
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400, "the default model has no tokens for it"
    assert answer.json()["error"]["code"] == "unsupported_by_model"
