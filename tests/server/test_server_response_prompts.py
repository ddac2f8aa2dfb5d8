"""The prompts of `/v1/responses`: counted, read ahead, and longer than the context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving import MAX_CONTEXT, RunningServer, running
from test_server_responses_socket import ask, connected, hear, say

from outpace.llm import LLM
from outpace.text.chat_template import ChatTemplate

LONG = "word " * (2 * MAX_CONTEXT)
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def strict_server(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """Its template refuses a conversation in which no user has spoken."""
    template = served_llm.tokenizer.chat_template
    assert template is not None
    guard = "{% if messages[-1].role == 'system' %}{{ raise_exception('no user') }}{% endif %}"
    monkeypatch.setattr(
        served_llm.tokenizer, "chat_template", ChatTemplate(guard + template.source, "", "<|im_end|>")
    )
    with running(served_llm) as state:
        yield state


def check_overflow(events: list[dict[str, Any]]) -> None:
    assert [event["type"] for event in events] == ["response.created", "response.failed"]
    assert [event["sequence_number"] for event in events] == [0, 1]
    created, failed = (event["response"] for event in events)
    assert (created["status"], failed["status"]) == ("in_progress", "failed")
    assert created["id"] == failed["id"]
    assert failed["error"]["code"] == "context_length_exceeded"
    assert str(MAX_CONTEXT) in failed["error"]["message"]


def test_a_stream_tells_that_the_context_is_exceeded(http: httpx.Client, server: RunningServer) -> None:
    answer = http.post("/v1/responses", json={"input": LONG, "stream": True})
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    check_overflow([json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")])
    whole = http.post("/v1/responses", json={"input": LONG})
    assert (whole.status_code, whole.json()["error"]["code"]) == (400, "context_length_exceeded")
    with connected(server) as socket:
        for fields in ({}, {"generate": False}):
            say(socket, input=LONG, **fields)
            check_overflow(hear(socket))
        assert ask(socket, max_output_tokens=1)["status"] == "incomplete"
    server.wait_idle()


def test_instructions_are_read_ahead(server: RunningServer) -> None:
    rules = "Be brief. " * 60
    with connected(server) as socket:
        warm = ask(socket, input=[], instructions=rules, generate=False)
        assert (warm["status"], warm["output"]) == ("completed", [])
        said = {"instructions": rules, "max_output_tokens": 1, "input": "So?"}
        last = ask(socket, **said, previous_response_id=warm["id"])
        alone = ask(socket, **said)
    assert last["usage"]["input_tokens_details"]["cached_tokens"] >= 64
    assert last["usage"]["input_tokens"] == alone["usage"]["input_tokens"]


def test_what_a_template_refuses_is_not_read_ahead(strict_server: RunningServer) -> None:
    with connected(strict_server) as socket:
        for fields in ({"instructions": "Be brief."}, {}):
            warm = ask(socket, input=[], generate=False, **fields)
            assert (warm["status"], warm["usage"]["total_tokens"]) == ("completed", 0)
        last = ask(socket, max_output_tokens=1, previous_response_id=warm["id"])
        say(socket, input=[], instructions="Be brief.")
        assert hear(socket)[-1]["error"]["param"] == "input"
    assert last["usage"]["input_tokens"] > 0


def test_prompts_are_counted(client: openai.OpenAI, http: httpx.Client) -> None:
    fields: dict[str, Any] = {"model": "test-model", "input": "How is it?", "instructions": "Be brief."}
    response = client.responses.create(**fields, tools=[WEATHER], max_output_tokens=1)
    counted = client.responses.input_tokens.count(**fields, tools=[WEATHER])
    assert counted.object == "response.input_tokens"
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens
    more = client.responses.input_tokens.count(**fields, tools=[WEATHER], previous_response_id=response.id)
    assert more.input_tokens > counted.input_tokens
    assert client.responses.input_tokens.count(model="test-model", input=LONG).input_tokens > MAX_CONTEXT
    unknown = http.post("/v1/responses/input_tokens", json={"input": "x", "previous_response_id": "resp_no"})
    assert unknown.status_code == 400
    assert http.post("/v1/responses/input_tokens", json={"instructions": "x"}).json()["input_tokens"] > 0
