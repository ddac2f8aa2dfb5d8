"""Namespaces of `/v1/responses`: tools that the model sees under one name, and the client under two."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from scripted import saying

from outpace.llm import LLM
from outpace.server.openai.responses.schema import Tool
from outpace.server.openai.responses.tools import ShownTools

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

ODD = {"type": "object", "properties": {"a": {"type": "thing"}}}


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "description": "D", "parameters": SCHEMA, **fields}


def namespace(name: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": "d", "tools": list(tools)}


MEMORY = namespace("mcp__memory", function("store_note"), {"type": "custom", "name": "write"})
STORE = '<tool_call>\n{"name": "mcp__memory__store_note", "arguments": {"text": "x"}}\n</tool_call>'
WRITE = '<tool_call>\n{"name": "mcp__memory__write", "arguments": {"input": "x"}}\n</tool_call>'


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    request = {
        "model": "test-model",
        "input": "Note it.",
        "max_output_tokens": 120,
        "tools": [MEMORY],
        **fields,
    }
    return client.responses.create(**request)


def shown_names(*tools: dict[str, Any]) -> list[str]:
    return [tool.shown_name for tool in ShownTools([Tool.model_validate(tool) for tool in tools]).all]


@pytest.mark.parametrize(
    ("text", "kind", "name"), [(STORE, "function_call", "store_note"), (WRITE, "custom_tool_call", "write")]
)
def test_calls_have_both_names(
    client: openai.OpenAI, served_llm: LLM, text: str, kind: str, name: str
) -> None:
    with saying(served_llm, text):
        [call] = ask(client).output
        events: list[Any] = list(ask(client, stream=True))
    items = [event.item for event in events if event.type.startswith("response.output_item.")]
    assert [item.status for item in items] == ["in_progress", "completed"]
    for item in (call, *items, *events[-1].response.output):
        assert (item.type, item.name, item.namespace) == (kind, name, "mcp__memory")
    assert events[-1].response.tools[0].to_dict() == MEMORY


def test_a_name_without_its_namespace_is_the_tool_that_alone_has_it(
    client: openai.OpenAI, served_llm: LLM
) -> None:
    other = namespace("mcp__other", function("store_note"))
    with saying(served_llm, STORE.replace("mcp__memory__", "")):
        [alone] = ask(client).output
        [one_of_two] = ask(client, tools=[MEMORY, other]).output
    assert (alone.name, alone.namespace) == ("store_note", "mcp__memory")
    assert (one_of_two.name, one_of_two.namespace) == ("store_note", None)


def test_the_history_is_what_the_model_wrote(client: openai.OpenAI, served_llm: LLM) -> None:
    with saying(served_llm, STORE):
        first = ask(client)
    [call] = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "noted"}
    history = [{"role": "user", "content": "Note it."}, call.to_dict(), result]
    flat = {**call.to_dict(), "name": "mcp__memory__store_note"}
    del flat["namespace"]
    tools = [function("mcp__memory__store_note"), {"type": "custom", "name": "mcp__memory__write"}]
    with saying(served_llm, "Noted."):
        counts = {
            ask(client, **fields).usage.input_tokens
            for fields in (
                {"input": history},
                {"input": [result], "previous_response_id": first.id},
                {"input": [history[0], flat, result], "tools": [tools[0], {**tools[1], "description": "d"}]},
            )
        }
    assert len(counts) == 1, "one and the same prompt"


@pytest.mark.parametrize("name", ["store_note", "mcp__memory__store_note"])
@pytest.mark.parametrize("fields", [{}, {"namespace": "mcp__memory"}])
def test_a_choice_names_one(client: openai.OpenAI, name: str, fields: dict[str, str]) -> None:
    strict = namespace(
        "mcp__memory", function("store_note", parameters={"type": "object", "maxProperties": 0})
    )
    choice = {"type": "function", "name": name, **fields}
    [call] = ask(client, tools=[function("other"), strict], tool_choice=choice).output
    assert (call.type, call.name, call.namespace) == ("function_call", "store_note", "mcp__memory")
    assert json.loads(call.arguments) == {}


def test_shown_names_are_unique_and_short() -> None:
    names = shown_names(
        namespace("a", function("b__c"), function("x" * 127)),
        namespace("a__b", function("c")),
        namespace("mcp__files__", function("read")),
        function("a__b__c"),
    )
    assert len(set(names)) == len(names) == 5
    assert all(len(name) <= 128 for name in names)
    assert names[3:] == ["mcp__files__read", "a__b__c"]
    assert names[0].startswith("b__c_")


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "namespace", "tools": [function("f")]}], "tools[0].name"),
        ([{"type": "web_search"}, namespace("a", {"type": "function"})], "tools[1].tools[0].name"),
        ([namespace("a", function("f"), function("f"))], "tools[0].tools[1].name"),
        ([namespace("a", function("f g"))], "tools[0].tools[0].name"),
        ([namespace("a b", function("f"))], "tools[0].name"),
        ([{"type": "web_search"}, function("f"), function("f")], "tools[2].name"),
        (
            [{"type": "web_search"}, function("f", parameters=ODD, strict=True)],
            "tools[1].parameters",
        ),
        (
            [function("f"), namespace("a", function("f", parameters=ODD, strict=True))],
            "tools[1].tools[0].parameters",
        ),
        (
            [{"type": "web_search"}, {"type": "custom", "name": "p", "format": {"type": "grammar"}}],
            "tools[1].format.syntax",
        ),
    ],
)
def test_errors_name_the_tool(http: httpx.Client, tools: list[dict[str, Any]], param: str) -> None:
    answer = http.post("/v1/responses", json={"input": "x", "tools": tools})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
