"""`tool_choice` of type `allowed_tools`: all tools are shown, and some may be called."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from tool_requests import CHAT, OPENAI, UNIT, function

RESPONSES = "/v1/responses"
NAMES = ("units", "other", "third")


def in_response(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "description": "D", "parameters": UNIT}


NAMESPACE = {"type": "namespace", "name": "mcp", "description": "d", "tools": [in_response("inner")]}


def of_chat(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def of_response(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "name": name} for name in names]
    return {"type": "allowed_tools", "mode": mode, "tools": tools}


@pytest.mark.parametrize("allowed", [("other",), ("other", "third")])
def test_only_allowed_tools_are_called(chat: Any, client: openai.OpenAI, allowed: tuple[str, ...]) -> None:
    """By a model whose noise picks any of those that its grammar has."""
    called: set[str] = set()
    tools = [function(name, UNIT) for name in NAMES]
    plain = chat(tools=tools, max_tokens=1).usage.prompt_tokens
    for seed in range(8):
        answer = chat(
            tools=tools, tool_choice=of_chat("required", *allowed), parallel_tool_calls=False, seed=seed
        )
        [call] = answer.choices[0].message.tool_calls
        called.add(call.function.name)
        assert json.loads(call.function.arguments)["unit"] in {"celsius", "kelvin"}
        assert answer.usage.prompt_tokens == plain, "the prompt shows all of them"
    assert called == set(allowed)
    choice = of_response("required", *allowed)
    response: Any = client.responses.create(
        model="test-model",
        input="How is it?",
        tools=[in_response(name) for name in NAMES],  # type: ignore[misc]
        tool_choice=choice,  # type: ignore[arg-type]
        max_output_tokens=200,
    )
    assert {item.name for item in response.output} <= set(allowed)
    assert response.output
    assert response.tool_choice.to_dict() == choice


def test_tools_of_namespaces_may_be_allowed(http: httpx.Client) -> None:
    choice = of_response("required", "inner")
    choice["tools"].append({"type": "web_search"})
    body = {"input": "x", "tools": [in_response("units"), NAMESPACE], "tool_choice": choice}
    answer = http.post(RESPONSES, json={**body, "parallel_tool_calls": False}).json()
    [call] = answer["output"]
    assert (call["name"], call["namespace"]) == ("inner", "mcp")
    assert answer["tool_choice"] == choice


def test_text_is_free_where_none_is_required(chat: Any) -> None:
    tools = [function(name, UNIT) for name in NAMES]
    [choice] = chat(tools=tools, tool_choice=of_chat("auto", "units"), max_tokens=5).choices
    assert choice.finish_reason in {"length", "stop"}


@pytest.mark.parametrize(("path", "form"), [(CHAT, of_chat), (RESPONSES, of_response)])
@pytest.mark.parametrize("names", [(), ("gone",), ("units", "gone")])
@pytest.mark.parametrize("mode", ["auto", "required", "perhaps"])
def test_choices_that_cannot_be(
    http: httpx.Client, path: str, form: Any, names: tuple[str, ...], mode: str
) -> None:
    tools = {CHAT: [function("units", UNIT)], RESPONSES: [in_response("units")]}[path]
    body = {**OPENAI, "tools": tools} if path == CHAT else {"input": "x", "tools": tools}
    answer = http.post(path, json={**body, "model": "test-model", "tool_choice": form(mode, *names)})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("tool_choice")
