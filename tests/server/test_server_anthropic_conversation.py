"""From Anthropic's messages to what chat templates read, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from outpace.server.anthropic.conversation import (
    cache_seconds,
    read_conversation,
    shows_thinking,
    wants_cache,
)
from outpace.server.anthropic.schema import CountRequest
from outpace.server.conversation import Conversation
from outpace.server.errors import APIError

WEATHER = {
    "name": "weather",
    "description": "The weather somewhere.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    "cache_control": {"type": "ephemeral"},
}
MARKED = {"cache_control": {"type": "ephemeral"}}


def request(messages: list[Any], **fields: Any) -> CountRequest:
    return CountRequest.model_validate_json(json.dumps({"model": "m", "messages": messages, **fields}))


def read(*messages: tuple[str, Any], **fields: Any) -> Conversation:
    turns = [{"role": role, "content": content} for role, content in messages]
    return read_conversation(request(turns, **fields))


def call(call_id: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": arguments}


def result(call_id: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **fields}


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_tools_and_their_history() -> None:
    conversation = read(
        ("user", "How is it in Rome and in Oslo?"),
        (
            "assistant",
            [
                {"type": "thinking", "thinking": "Two calls.", "signature": "s"},
                text("Let me look."),
                call("t1", city="Rome"),
                call("t2"),
            ],
        ),
        (
            "user",
            [
                result("t1", [text("sunny"), {"type": "image", "source": {"type": "base64", "data": "x"}}]),
                result("t2", "no city", is_error=True),
                text("Well?"),
            ],
        ),
        tools=[WEATHER],
    )
    assert conversation.messages == [
        {"role": "user", "content": "How is it in Rome and in Oslo?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "reasoning_content": "Two calls.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Rome"}},
                },
                {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": {}}},
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "t1",
            "name": "weather",
            "content": "sunny\n[an image, left out: this model reads text only]",
        },
        {"role": "tool", "tool_call_id": "t2", "name": "weather", "content": "Error: no city"},
        {"role": "user", "content": "Well?"},
    ]
    assert conversation.tools == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather somewhere.",
                "parameters": WEATHER["input_schema"],
            },
        }
    ]
    assert conversation.prefill == ""


def test_turns_of_one_role_become_one() -> None:
    conversation = read(
        ("user", "a"),
        ("user", [text("b"), text("c")]),
        ("assistant", "d"),
        ("assistant", [call("t1")]),
        ("user", [text("before"), result("t1", "e"), text("after")]),
        ("system", "Be brief."),
        system=[text("S1"), text("S2")],
    )
    roles = [(message["role"], message["content"]) for message in conversation.messages]
    assert roles == [
        ("system", "S1\nS2"),
        ("user", "a\nb\nc"),
        ("assistant", "d"),
        ("user", "before"),
        ("tool", "e"),
        ("user", "after\n<system-reminder>\nBe brief.\n</system-reminder>"),
    ]
    assert len(conversation.messages[2]["tool_calls"]) == 1


def test_what_stands_for_text() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "data": "D"}}
    found = {
        "type": "search_result",
        "title": "R",
        "source": "http://x",
        "content": [text("one"), text("two")],
    }
    reference = {"type": "tool_reference", "tool_name": "weather"}
    [message] = read(("user", [document, found])).messages
    assert message["content"] == "T\nD\nR\nhttp://x\none\ntwo"
    *_, answer = read(("assistant", [call("t")]), ("user", [result("t", [document, reference])])).messages
    assert answer["content"] == "T\nD\ntool: weather"


def test_what_a_tool_brought_that_is_no_text_is_named() -> None:
    """Refused, it would be refused with every later turn, as it stays in the conversation."""
    file = {"type": "base64", "media_type": "application/pdf", "data": "x"}
    parts = [
        {"type": "image", "source": file},
        {"type": "document", "source": file},
        {"type": "document", "title": "T", "source": {"type": "content", "content": [text("D"), text("E")]}},
        {"type": "document", "source": {"type": "content", "content": "F"}},
        {"type": "hologram"},
    ]
    *_, answer = read(("assistant", [call("t")]), ("user", [result("t", parts)])).messages
    assert answer["content"].splitlines() == [
        "[an image, left out: this model reads text only]",
        "[a document, left out: this model reads text only]",
        *("T", "D", "E", "F"),
        "[a part of type 'hologram', left out: this model reads text only]",
    ]


def test_what_a_services_own_tool_left_in_a_conversation_is_passed_over() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    _, said, _ = read(("user", "Hi"), ("assistant", [search, found, text("a")]), ("user", "b")).messages
    assert said == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("last", "prefill"),
    [
        ("The answer is ", "The answer is "),
        ([text("a"), text("b")], "ab"),
        ([text("a"), call("t")], ""),
        ([{"type": "thinking", "thinking": "Hm"}], ""),
    ],
)
def test_an_answer_that_has_begun(last: Any, prefill: str) -> None:
    conversation = read(("user", "Hi"), ("assistant", last))
    assert conversation.prefill == prefill
    assert len(conversation.messages) == (1 if prefill else 2)


def test_no_tools_are_shown_where_none_may_be_called() -> None:
    assert read(("user", "a"), tools=[WEATHER], tool_choice={"type": "none"}).tools is None
    assert read(("user", "a"), tools=[]).tools is None
    assert read(("user", "a"), tools=[{**WEATHER, "type": "custom"}], tool_choice={"type": "auto"}).tools
    with pytest.raises(APIError, match="bash_20250124"):
        read(("user", "a"), tools=[{"type": "bash_20250124", "name": "bash"}])


@pytest.mark.parametrize(
    ("fields", "content", "seconds"),
    [
        ({}, "a", 0),
        ({}, [text("a")], 0),
        ({}, [{**text("a"), **MARKED}], 300),
        ({"system": [{**text("a"), **MARKED}]}, "a", 300),
        ({"tools": [WEATHER]}, "a", 300),
        (MARKED, "a", 300),
        (MARKED, [{**text("a"), "cache_control": {"type": "ephemeral", "ttl": "1h"}}], 3600),
        ({"cache_control": {"type": "ephemeral", "ttl": "5m"}}, "a", 300),
        ({"cache_control": {"ttl": ["1h"]}}, "a", 300),
        ({"cache_control": "1h"}, "a", 300),
        ({"system": "s", "tools": [{**WEATHER, "cache_control": None}]}, "a", 0),
    ],
)
def test_marks_for_the_cache(fields: dict[str, Any], content: Any, seconds: float) -> None:
    asked = request([{"role": "user", "content": content}], **fields)
    assert cache_seconds(asked) == seconds
    assert wants_cache(asked) is (seconds > 0)


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive"}, True),
        ({"type": "adaptive", "display": "omitted"}, False),
    ],
)
def test_thoughts_are_shown_on_request(thinking: Any, *, shown: bool) -> None:
    assert shows_thinking(request([{"role": "user", "content": "a"}], thinking=thinking)) is shown
