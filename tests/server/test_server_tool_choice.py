"""Calls that must come, strict schemas and answers in JSON: what grammars are for, through both clients."""

from __future__ import annotations

import json
import time
from typing import Any

import anthropic
import httpx
import openai
import pytest
from serving import RunningServer
from tool_requests import ANTHROPIC, ASK, CHAT, MESSAGES, OPENAI, SCHEMA, UNIT, function, streamed, tool


def test_required_calls_are_made(chat: Any, claude: anthropic.Anthropic) -> None:
    """By a model that would not make them: the null backend's noise, held to the grammar."""
    units = [function("units", UNIT), function("other", UNIT, strict=True)]
    named = {"type": "function", "function": {"name": "other"}}
    for choice, names in (("required", {"units", "other"}), (named, {"other"})):
        for seed in range(3):
            asked = {"tools": units, "tool_choice": choice, "parallel_tool_calls": False, "seed": seed}
            [answer] = chat(**asked).choices
            message, end = streamed(chat(**asked, stream=True))
            assert answer.finish_reason == end == "tool_calls"
            assert answer.message.content is None
            assert message["content"] == ""
            for call in (answer.message.tool_calls[0].function.to_dict(), message["calls"][0]):
                assert call["name"] in names
                assert json.loads(call["arguments"])["unit"] in {"celsius", "kelvin"}
    tools = [tool("units", UNIT), tool("other", UNIT)]
    for wanted in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "other"}):
        answered = claude.messages.create(**{**ANTHROPIC, "tools": tools}, tool_choice=wanted)  # type: ignore[call-overload]
        assert answered.stop_reason == "tool_use"
        assert [block.type for block in answered.content] == ["tool_use"]
        if wanted["type"] == "tool":
            assert answered.content[0].name == "other"


def test_strict_tools_constrain_only_calls(chat: Any) -> None:
    tools = [function("units", UNIT, strict=True)]
    [choice] = chat(tools=tools, max_tokens=5, extra_body={"ignore_eos": True}).choices
    assert choice.finish_reason == "length", "text may be anything"


def test_answers_in_json(chat: Any, claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    strict = {"type": "json_schema", "json_schema": {"name": "u", "schema": UNIT, "strict": True}}
    text = chat(tools=None, response_format=strict).choices[0].message.content
    assert json.loads(text)["unit"] in {"celsius", "kelvin"}
    completed = client.completions.create(
        model="test-model", prompt="Unit:", max_tokens=60, extra_body={"response_format": strict}
    )
    assert json.loads(completed.choices[0].text)["unit"] in {"celsius", "kelvin"}
    [any_object] = chat(tools=None, response_format={"type": "json_object"}, max_tokens=4).choices
    assert any_object.message.content.startswith("{")
    tools = [function("units", UNIT, strict=True)]
    for seed in range(4):  # either a call or the answer
        [either] = chat(
            tools=tools, response_format=strict, seed=seed, temperature=5, parallel_tool_calls=False
        ).choices
        if either.finish_reason == "tool_calls":
            assert json.loads(either.message.tool_calls[0].function.arguments)["unit"]
        else:
            assert json.loads(either.message.content)["unit"]
    said = claude.messages.create(
        model="claude-x",
        max_tokens=60,
        messages=ASK,
        extra_body={"output_config": {"format": {"type": "json_schema", "schema": UNIT}}},
    )
    assert json.loads(said.content[0].text)["unit"] in {"celsius", "kelvin"}  # type: ignore[union-attr]


LOOKAHEAD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}
REMOTE = {"type": "object", "properties": {"a": {"$ref": "https://example.com/schema"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [function("f", LOOKAHEAD, strict=True)]}, "tools[0].function.parameters"),
        (
            {"tools": [function("g", UNIT), function("f", REMOTE)], "tool_choice": "required"},
            "tools[1].function.parameters",
        ),
        (
            {
                "tools": [function("g", REMOTE), function("f", REMOTE)],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
            "tools[1].function.parameters",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": REMOTE}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_schemas_that_cannot_be_used(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        answer = http.post(CHAT, json={**OPENAI, "model": "test-model", "stream": stream, **fields})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param
        assert param in error["message"]
        assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [tool("f", LOOKAHEAD, strict=True)]}, "tools[0].input_schema"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": REMOTE}}},
            "output_config.format.schema",
        ),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
    ],
)
def test_the_anthropic_dialect_says_so_too(http: httpx.Client, fields: dict[str, Any], says: str) -> None:
    answer = http.post(MESSAGES, json={**ANTHROPIC, **fields})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


def test_many_tools_and_deep_schemas(http: httpx.Client, server: RunningServer) -> None:
    begin = time.monotonic()
    tools = [function(f"tool_{i}", SCHEMA) for i in range(1000)]
    body = {**OPENAI, "model": "test-model", "tools": tools, "tool_choice": "required"}
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(90):
        deep = {"type": "object", "properties": {"a": deep}}
    answer = http.post(CHAT, json={**OPENAI, "model": "test-model", "tools": [function("f", deep)]})
    assert answer.status_code == 400, answer.text
    answer = http.post(
        CHAT, json={**OPENAI, "model": "test-model", "tools": [function("f", {"a": "x" * 10**6})]}
    )
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert time.monotonic() - begin < 20
    server.wait_idle(2)
