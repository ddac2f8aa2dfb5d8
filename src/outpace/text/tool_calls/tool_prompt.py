"""Tools for models whose chat template knows none: told in the system prompt, in the Hermes form.

The conversation's calls and results become text of the same form, so that the template sees plain messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from outpace.text.chat_template import plain_json

_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_AFTER = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> \
XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def told_in_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """The messages with `tools` in the system prompt, and calls and results as text.

    Raises `InvalidParameterError` for what a template could not be given either.
    """
    plain_json(list(messages), "messages")
    plain_json(tools, "tools")
    told: list[dict[str, Any]] = []
    for message in messages:
        text = str(message.get("content") or "")
        role = message["role"]
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        calls = "\n".join(_call(call["function"]) for call in message.get("tool_calls") or ())
        text = "\n".join(filter(None, (text, calls)))
        if told and told[-1]["role"] == role:  # turns of one role in a row, which templates often refuse
            told[-1]["content"] += "\n" + text
        else:
            told.append({"role": role, "content": text})
    if tools:
        listed = _BEFORE + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _AFTER
        if told and told[0]["role"] == "system":
            told[0]["content"] += "\n\n" + listed
        else:
            told.insert(0, {"role": "system", "content": listed})
    return told


def _call(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
