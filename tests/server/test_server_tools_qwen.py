"""Tools with a model whose own template shows them, and with the real thing from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from scripted import saying
from serving import RunningServer, native_is_built, running

from outpace.llm import LLM
from outpace.server.settings import ServerSettings

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


@pytest.fixture(scope="module")
def qwen(model_05b: Path) -> Iterator[RunningServer]:
    """The 0.5B model's vocabulary and template, without its weights."""
    with (
        LLM(model_05b, backend="null", max_context=2048, kv_cache_bytes=64 << 20) as llm,
        running(llm) as server,
    ):
        yield server


def test_the_models_own_template_is_used(qwen: RunningServer) -> None:
    """What the model has written stands in the next prompt as the same tokens, so the cache has it."""
    arguments = '{"city": "Paris \\"é\\"", "unit": "celsius"}'
    answer = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    body: dict[str, Any] = {"model": "test-model", "messages": ASK, "tools": [TOOL], "max_tokens": 100}
    with saying(qwen.llm, f"I look.\n{answer}"), httpx.Client(base_url=qwen.url) as http:
        message = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
        assert message["content"] == "I look."
        [call] = message["tool_calls"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        usage = http.post("/v1/chat/completions", json={**body, "messages": [*ASK, message, result]}).json()[
            "usage"
        ]
    llm = qwen.llm
    rendered = llm.tokenizer.render_chat(
        [*ASK, {**message, "tool_calls": [{**call, "function": json_arguments(call)}]}, result],
        tools=[TOOL],
    )
    assert f"I look.\n{answer}<|im_end|>" in rendered
    assert "# Tools" in rendered
    assert usage["prompt_tokens"] == len(
        llm.tokenizer.encode(rendered, add_special=False, parse_special=True)
    )


def json_arguments(call: Any) -> Any:
    return {**call["function"], "arguments": json.loads(call["function"]["arguments"])}


def test_required_calls_have_the_models_marks(qwen: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{qwen.url}/v1", api_key="x", max_retries=0) as client:
        unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        schema = {
            "type": "object",
            "properties": {"unit": unit},
            "required": ["unit"],
            "additionalProperties": False,
        }
        tool: Any = {"type": "function", "function": {"name": "get_unit", "parameters": schema}}
        [choice] = client.chat.completions.create(
            model="test-model",
            messages=ASK,
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=80,
        ).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or ()
    assert call.type == "function"
    assert json.loads(call.function.arguments)["unit"] in {"celsius", "fahrenheit"}


@pytest.fixture(scope="module")
def coder(model_15b: Path) -> Iterator[RunningServer]:
    if not native_is_built():
        pytest.skip("NOT TESTED: the native core is not built")
    with LLM(model_15b, max_context=2048, kv_cache_bytes=256 << 20) as llm, running(llm) as server:
        yield server


def test_a_real_model_calls_a_tool_and_reads_its_result(coder: RunningServer) -> None:
    """It leaves its marks out (a fence instead) where it is free to, and writes them where it must call."""
    asked: dict[str, Any] = {"model": "test-model", "tools": [TOOL], "max_tokens": 120, "temperature": 0}
    with openai.OpenAI(base_url=f"{coder.url}/v1", api_key="x", max_retries=0, timeout=300) as client:
        [free] = client.chat.completions.create(messages=ASK, **asked).choices
        [held] = client.chat.completions.create(messages=ASK, tool_choice="required", **asked).choices
        for choice in (free, held):
            assert choice.finish_reason == "tool_calls"
            call = (choice.message.tool_calls or [])[0]
            assert call.type == "function"
            assert call.function.name == "get_weather"
            arguments = json.loads(call.function.arguments)
            assert "Paris" in arguments["city"]
            assert arguments["unit"] == "celsius"
        call = (held.message.tool_calls or [])[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "snow, -17 degrees celsius"}
        told: list[Any] = [*ASK, held.message.to_dict(), result]
        text = (
            client.chat.completions.create(messages=told, **{**asked, "tool_choice": "none"})
            .choices[0]
            .message.content
        )
        assert "17" in (text or "")
    with anthropic.Anthropic(base_url=coder.url, api_key="x", max_retries=0, timeout=300) as claude:
        function = TOOL["function"]
        tool: Any = {"name": function["name"], "input_schema": function["parameters"]}
        with claude.messages.stream(
            model="claude-x",
            max_tokens=120,
            messages=ASK,
            tools=[tool],
            tool_choice={"type": "tool", "name": "get_weather"},
            extra_body={"temperature": 0.0},
        ) as stream:
            message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    [block] = message.content
    assert isinstance(block, anthropic.types.ToolUseBlock)
    assert "Paris" in str(block.input["city"])


NOTE: Any = {
    "type": "function",
    "function": {
        "name": "note",
        "description": "Notes the size of a thing.",
        "parameters": {
            "type": "object",
            # Two fields that no model would think of by itself.
            "properties": {"size": {"enum": [-7, -8]}, "code": {"enum": ["xq7"]}},
            "required": ["size", "code"],
            "additionalProperties": False,
        },
    },
}


def test_calls_are_held_to_their_schemas_unasked(coder: RunningServer) -> None:
    settings = ServerSettings(port=0, constrain_tools=True)
    body: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "Call the tool note: the size is twelve, the code is four."}
        ],
        "tools": [NOTE],
        "max_tokens": 60,
    }
    free, held = [], []
    with running(coder.llm, settings) as strict:
        for url, calls in ((coder.url, free), (strict.url, held)):
            with httpx.Client(base_url=url, timeout=120) as http:
                for seed in range(3):
                    answer = http.post("/v1/chat/completions", json=body | {"seed": seed}).json()
                    message = answer["choices"][0]["message"]
                    calls += [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
    sound = {'{"size": -7, "code": "xq7"}', '{"size": -8, "code": "xq7"}'}
    assert held
    assert set(held) <= sound
    assert not set(free) <= sound, "else this shows nothing"
