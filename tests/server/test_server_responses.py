"""`/v1/responses` with its own client: items whole and streamed, calls, freeform tools, what is stored."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from scripted import saying
from serving import RunningServer, failing_at, open_raw, running, wait_until_busy

from outpace.llm import LLM
from outpace.server.openai.responses.store import ResponseStore

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Changes files."}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
PATCH_CALL = (
    '<tool_call>\n{"name": "apply_patch", "arguments": {"input": "*** Begin\\n+ \\"x\\""}}\n</tool_call>'
)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    request = {"model": "test-model", "input": "How is it?", "max_output_tokens": 120, **fields}
    return client.responses.create(**request)


def shape(item: Any) -> dict[str, Any]:
    """An item without what is drawn anew each time."""
    return {name: value for name, value in item.model_dump().items() if name not in {"id", "call_id"}}


def check_stream(events: list[Any]) -> None:
    """Numbered without gaps, one end, and the deltas add up to what is done."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    ends = [event for event in events if event.type in {"response.completed", "response.incomplete"}]
    assert ends == events[-1:]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [item.id for item in added] == [item.id for item in done]
    assert [item.model_dump() for item in done] == [item.model_dump() for item in ends[0].response.output]
    for item in done:
        pieces = [
            event.delta
            for event in events
            if event.type.endswith(".delta") and getattr(event, "item_id", "") == item.id
        ]
        whole = getattr(item, "arguments", None) or getattr(item, "input", None) or item.content[0].text
        assert "".join(pieces) == whole


@pytest.mark.parametrize("text", ["It is fine.", f"Let me look.\n{CALL}\n{CALL}", PATCH_CALL])
def test_streamed_and_whole_are_the_same(client: openai.OpenAI, served_llm: LLM, text: str) -> None:
    with saying(served_llm, text):
        whole = ask(client, tools=[WEATHER, PATCH])
        events = list(ask(client, tools=[WEATHER, PATCH], stream=True))
    check_stream(events)
    streamed = events[-1].response
    assert [shape(item) for item in streamed.output] == [shape(item) for item in whole.output]
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 0
    assert whole.status == "completed"


def test_a_call_and_its_result(client: openai.OpenAI, served_llm: LLM) -> None:
    with saying(served_llm, CALL):
        first = ask(client, tools=[WEATHER])
    [call] = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "weather",
        {"city": "Oslo"},
    )
    history = [
        {"role": "user", "content": "How is it?"},
        {"type": "function_call", "call_id": call.call_id, "name": "weather", "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    with saying(served_llm, "It rains."):
        second = ask(client, tools=[WEATHER], input=history)
        third = ask(client, tools=[WEATHER], input=history[2:], previous_response_id=first.id)
    assert second.output_text == third.output_text == "It rains."
    assert second.usage.input_tokens == third.usage.input_tokens, "the same conversation"


def test_a_freeform_tool_gets_text(client: openai.OpenAI, served_llm: LLM) -> None:
    with saying(served_llm, PATCH_CALL):
        [call] = ask(client, tools=[PATCH]).output
    assert (call.type, call.input) == ("custom_tool_call", '*** Begin\n+ "x"')
    history = [
        {"role": "user", "content": "Change it."},
        {"type": "custom_tool_call", "call_id": call.call_id, "name": "apply_patch", "input": call.input},
        {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"},
    ]
    with saying(served_llm, "Changed."):
        assert ask(client, tools=[PATCH], input=history).output_text == "Changed."


def test_a_cut_answer_is_incomplete(client: openai.OpenAI) -> None:
    response = ask(client, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    events = list(ask(client, max_output_tokens=3, stream=True))
    check_stream(events)
    assert events[-1].type == "response.incomplete"


def test_instructions_are_of_one_response(client: openai.OpenAI, served_llm: LLM) -> None:
    rules = "Answer in one word, whatever it is about, and never in two. " * 3
    with saying(served_llm, "Fine."):
        told, plain = ask(client, instructions=rules), ask(client)
        goes_on = [ask(client, input="And now?", previous_response_id=each.id) for each in (told, plain)]
        again = ask(client, input="And now?", previous_response_id=told.id, instructions=rules)
    assert told.usage.input_tokens > plain.usage.input_tokens + 20
    assert goes_on[0].usage.input_tokens == goes_on[1].usage.input_tokens
    assert again.usage.input_tokens > goes_on[0].usage.input_tokens + 20


def test_stored_responses_can_be_read_and_dropped(client: openai.OpenAI, http: httpx.Client) -> None:
    kept, dropped = ask(client), ask(client, store=False)
    assert client.responses.retrieve(kept.id).output_text == kept.output_text
    client.responses.delete(kept.id)
    for response_id in (kept.id, dropped.id, "resp_nothing"):
        with pytest.raises(openai.NotFoundError, match="no response"):
            client.responses.retrieve(response_id)
    with pytest.raises(openai.BadRequestError, match="no response"):
        ask(client, previous_response_id=dropped.id)
    other = http.get(f"/v1/responses/{ask(client).id}", headers={"authorization": "Bearer another"})
    assert other.status_code == 404, "another client's"


def test_the_store_is_bounded() -> None:
    store = ResponseStore(max_responses=3, max_bytes=2000)
    for number in range(5):
        store.put({"id": f"r{number}"}, [{"role": "user", "content": "x" * 100}], "me")
    assert [number for number in range(5) if store.get(f"r{number}", "me")] == [2, 3, 4]
    store.put({"id": "large"}, [{"role": "user", "content": "x" * 1800}], "me")
    assert store.get("r3", "me") is None
    assert store.get("large", "me") is not None
    assert store.get("large", "you") is None
    store.put({"id": "too large"}, [{"role": "user", "content": "x" * 3000}], "me")
    assert store.get("too large", "me") is None
    assert store.remove("large", "me")
    assert not store.remove("large", "me")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "robot"}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "gone"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"type": "thing"}, "strict": True}}},
            "text.format.schema",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 999}, "temperature"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": 7}, "input"),
    ],
)
def test_bad_requests_name_the_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/responses", json={"input": "x", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_tools_of_the_api_itself_are_left_out(client: openai.OpenAI) -> None:
    plain = ask(client).usage.input_tokens
    assert ask(client, tools=[{"type": "web_search"}]).usage.input_tokens == plain


def test_the_answer_shows_the_request_as_it_was_sent(http: httpx.Client) -> None:
    grammar = {"type": "grammar", "syntax": "regex", "definition": "x"}
    sent: dict[str, Any] = {
        "truncation": "auto",
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
        },
        "tools": [
            {**WEATHER, "strict": None, "defer_loading": False, "allowed_callers": ["direct"]},
            {**PATCH, "format": grammar},
            {"type": "web_search", "filters": {"allowed_domains": ["a.example"], "odd": None}},
            {"type": "mcp", "server_label": "files", "require_approval": "never"},
        ],
        "tool_choice": "none",
    }
    answer = http.post("/v1/responses", json={"input": "x", "max_output_tokens": 1, **sent}).json()
    assert {name: answer[name] for name in sent} == sent
    plain = http.post("/v1/responses", json={"input": "x", "max_output_tokens": 1}).json()
    assert (plain["truncation"], plain["reasoning"]) == ("disabled", {"effort": None, "summary": None})


def test_a_failing_step_is_the_last_event(
    http: httpx.Client, served_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(served_llm, monkeypatch)[0] = 3
    text = http.post("/v1/responses", json={"input": "x", "stream": True, "max_output_tokens": 50}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["message"] == "the step broke"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_a_client_that_leaves_is_cancelled(server: RunningServer) -> None:
    connection = open_raw(
        server, "/v1/responses", {"input": "a b c", "stream": True, "max_output_tokens": 900}
    )
    wait_until_busy(server)
    connection.close()
    server.wait_idle(3)


@pytest.mark.model15b
def test_a_real_model_calls_and_answers(model_15b: object) -> None:
    with (
        LLM(str(model_15b), max_context=2048, kv_cache_bytes=1 << 27) as llm,
        running(llm) as state,
        openai.OpenAI(base_url=f"{state.url}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        asked = ask(
            client, input="What is the weather in Oslo? Use the tool.", tools=[WEATHER], temperature=0
        )
        [call] = [item for item in asked.output if item.type == "function_call"]
        assert json.loads(call.arguments)["city"].startswith("Oslo")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain, 7 degrees"}
        told = ask(client, input=[result], previous_response_id=asked.id, temperature=0)
        assert "rain" in told.output_text.lower()
        must = ask(client, input="Hi", tools=[WEATHER], tool_choice="required", temperature=0)
        assert [item.type for item in must.output] == ["function_call"]
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
        number = ask(client, input="How many legs has a spider?", text={"format": form}, temperature=0)
        assert json.loads(number.output_text)["n"] == 8
