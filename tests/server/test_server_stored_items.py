"""Items of `/v1/responses` that are stored: referred to by later requests, and listed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from scripted import saying
from serving import RunningServer
from test_server_responses_socket import ask as ask_on
from test_server_responses_socket import connected

from outpace.llm import LLM
from outpace.server.openai.responses.store import ResponseStore

WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    request = {"model": "test-model", "input": "How is it?", "max_output_tokens": 60, **fields}
    return client.responses.create(**request)


@pytest.mark.parametrize("reference", [{"type": "item_reference"}, {"type": None}, {}])
def test_references_are_the_items_themselves(
    client: openai.OpenAI, served_llm: LLM, reference: dict[str, Any]
) -> None:
    asked = {"type": "message", "role": "user", "content": "How is it?", "id": "msg_mine"}
    with saying(served_llm, f"Let me look.\n{CALL}"):
        first = ask(client, tools=[WEATHER], input=[asked])
    said, call = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    referred = [{**reference, "id": item_id} for item_id in ("msg_mine", said.id, call.id)]
    with saying(served_llm, "It rains."):
        second = ask(client, tools=[WEATHER], input=[*referred, result])
        third = ask(client, tools=[WEATHER], input=[result], previous_response_id=first.id)
        client.responses.delete(first.id)
        fourth = ask(client, tools=[WEATHER], input=[*referred, result])
    assert second.usage.input_tokens == third.usage.input_tokens == fourth.usage.input_tokens


def test_unknown_references_are_refused(client: openai.OpenAI, http: httpx.Client) -> None:
    kept, dropped = ask(client), ask(client, store=False)
    for item_id in (dropped.output[0].id, "msg_nothing"):
        with pytest.raises(openai.BadRequestError, match=item_id) as caught:
            ask(client, input=[{"role": "user", "content": "x"}, {"type": "item_reference", "id": item_id}])
        assert (caught.value.param, caught.value.code) == ("input[1].id", "item_not_found")
    body = {"input": [{"id": kept.output[0].id}], "max_output_tokens": 1}
    assert http.post("/v1/responses", json=body).status_code == 400, "another client's"
    client.responses.delete(kept.id)
    with pytest.raises(openai.BadRequestError, match=kept.output[0].id):
        ask(client, input=[{"type": "item_reference", "id": kept.output[0].id}])


def test_a_websocket_knows_its_own_items(server: RunningServer) -> None:
    with connected(server) as socket:
        first = ask_on(socket, store=False)
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        second = ask_on(socket, input=[{"role": "user", "content": "How is it?"}, reference], store=False)
        third = ask_on(socket, input=[], previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] == third["usage"]["input_tokens"]


def test_items_are_forgotten_with_their_last_response() -> None:
    store = ResponseStore(max_responses=2)
    for number in range(2):
        store.put({"id": f"r{number}", "output": [{"id": f"o{number}"}]}, [], "me", [{"id": "i"}])
    assert store.item("i", "me") == {"id": "i"}
    assert store.item("i", "you") is None
    store.remove("r0", "me")
    assert (store.item("o0", "me"), store.item("i", "me")) == (None, {"id": "i"})
    store.remove("r1", "me")
    assert (store.item("o1", "me"), store.item("i", "me")) == (None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": [{"role": "user", "content": "x", "odd": 1e999}]},
        {"metadata": {"odd": 1e999}},
        {"tools": [{**WEATHER, "parameters": {"odd": 1e999}}]},
    ],
)
def test_what_cannot_be_written_again_is_refused(http: httpx.Client, fields: dict[str, Any]) -> None:
    content = json.dumps({"input": "x", "max_output_tokens": 1, **fields}).replace("Infinity", "1e999")
    answer = http.post("/v1/responses", content=content)
    assert answer.status_code == 400, answer.text
    assert "is no number" in answer.json()["error"]["message"]


def test_the_input_of_a_response_is_listed(client: openai.OpenAI) -> None:
    said = [{"role": role, "content": f"{role} says"} for role in ("user", "assistant", "user")]
    thoughts = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    items = [*said[:2], {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}]
    items += [{"type": "function_call_output", "call_id": "c", "output": "rain"}, thoughts, said[2]]
    response = ask(client, input=items)
    first, *_, last = client.responses.input_items.list(response.id, order="asc").data
    assert (first.type, first.role, first.content[0].to_dict()) == (
        "message",
        "user",
        {"type": "input_text", "text": "user says"},
    )
    everything = list(client.responses.input_items.list(response.id, limit=2))
    assert [item.type for item in everything] == [
        "message",
        "reasoning",
        "function_call_output",
        "function_call",
        "message",
        "message",
    ]
    assert everything[0].id == last.id
    again = [{"type": "item_reference", "id": item.id} for item in reversed(everything)]
    assert ask(client, input=again).usage.input_tokens == response.usage.input_tokens
    [only] = client.responses.input_items.list(ask(client).id).data
    assert only.content[0].text == "How is it?"


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")],
)
def test_lists_that_cannot_be(http: httpx.Client, query: str, param: str) -> None:
    response = http.post("/v1/responses", json={"input": "x", "max_output_tokens": 1}).json()
    answer = http.get(f"/v1/responses/{response['id']}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert http.get("/v1/responses/resp_nothing/input_items").status_code == 404


def test_nothing_can_be_cancelled(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(ask(client).id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_nothing")
