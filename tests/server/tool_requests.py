"""What the tests of tools ask for, in both dialects."""

from __future__ import annotations

from typing import Any

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
UNIT = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
    "required": ["unit"],
    "additionalProperties": False,
}


def function(name: str, parameters: Any, **fields: Any) -> Any:
    return {
        "type": "function",
        "function": {"name": name, "description": "D", "parameters": parameters, **fields},
    }


def tool(name: str, schema: Any, **fields: Any) -> Any:
    return {"name": name, "description": "D", "input_schema": schema, **fields}


ASK: list[Any] = [{"role": "user", "content": "How is it in Rome and Oslo?"}]
OPENAI: dict[str, Any] = {
    "model": "m",
    "messages": ASK,
    "max_tokens": 200,
    "tools": [function("weather", SCHEMA), function("units", UNIT)],
}
ANTHROPIC: dict[str, Any] = {
    "model": "claude-x",
    "messages": ASK,
    "max_tokens": 200,
    "tools": [tool("weather", SCHEMA), tool("units", UNIT)],
}


def streamed(chunks: Any) -> tuple[dict[str, Any], str]:
    """The message that the chunks of one choice make, and how it ended."""
    text, calls, ends = "", [], []
    for chunk in chunks:
        [choice] = chunk.choices
        text += choice.delta.content or ""
        for part in choice.delta.tool_calls or ():
            if part.index == len(calls):
                assert part.id
                assert part.type == "function"
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            else:
                assert part.index == len(calls) - 1
                assert (part.id, part.function.name) == (None, None)
            calls[-1]["arguments"] += part.function.arguments
        ends += [choice.finish_reason] if choice.finish_reason else []
    [end] = ends
    return {"content": text, "calls": calls}, end
