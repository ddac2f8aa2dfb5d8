"""The asynchronous SDK clients with tools: calls, their results and the answer, several sessions at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
from scripted import saying
from serving import RunningServer
from tool_requests import ANTHROPIC, OPENAI, streamed

CITIES = ("Rome", "Oslo")
CALLS = "\n".join(
    f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>' for city in CITIES
)
NUM_SESSIONS = 2


async def read(stream: Any) -> list[Any]:
    return [event async for event in stream]


def test_openais_client(server: RunningServer) -> None:
    async def call(client: openai.AsyncOpenAI) -> list[dict[str, Any]]:
        request = {**OPENAI, "model": server.name}
        whole = await client.chat.completions.create(**request)
        message, end = streamed(await read(await client.chat.completions.create(**request, stream=True)))
        assert end == whole.choices[0].finish_reason == "tool_calls"
        said = whole.choices[0].message.tool_calls
        assert said is not None
        calls = [each.function.arguments for each in said if each.type == "function"]
        assert [each["arguments"] for each in message["calls"]] == calls
        assert [json.loads(each)["city"] for each in calls] == list(CITIES)
        return message["calls"]

    async def answer(client: openai.AsyncOpenAI, calls: list[dict[str, Any]]) -> str | None:
        made = [
            {
                "id": each["id"],
                "type": "function",
                "function": {"name": each["name"], "arguments": each["arguments"]},
            }
            for each in calls
        ]
        results = [{"role": "tool", "tool_call_id": each["id"], "content": "Rain."} for each in calls]
        messages = [*OPENAI["messages"], {"role": "assistant", "tool_calls": made}, *results]
        whole = await client.chat.completions.create(**{**OPENAI, "model": server.name, "messages": messages})
        return whole.choices[0].message.content

    async def sessions() -> list[str | None]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
        ) as client:
            with saying(server.llm, CALLS):
                calls = await asyncio.gather(*(call(client) for _ in range(NUM_SESSIONS)))
            assert len({each["id"] for made in calls for each in made}) == 2 * NUM_SESSIONS
            with saying(server.llm, "It rains."):
                return list(await asyncio.gather(*(answer(client, made) for made in calls)))

    assert asyncio.run(sessions()) == ["It rains."] * NUM_SESSIONS
    server.wait_idle()


def test_anthropics_client(server: RunningServer) -> None:
    async def call(client: anthropic.AsyncAnthropic) -> list[Any]:
        whole = await client.messages.create(**ANTHROPIC)
        async with client.messages.stream(**ANTHROPIC) as stream:
            message = await stream.get_final_message()
        assert message.stop_reason == whole.stop_reason == "tool_use"
        for each in (whole, message):
            calls = [block for block in each.content if block.type == "tool_use"]
            assert [block.input for block in calls] == [{"city": city} for city in CITIES]
        return list(message.content)

    async def answer(client: anthropic.AsyncAnthropic, said: list[Any]) -> str:
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "Rain."}
            for block in said
            if block.type == "tool_use"
        ]
        turns = [{"role": "assistant", "content": said}, {"role": "user", "content": results}]
        request = {**ANTHROPIC, "messages": [*ANTHROPIC["messages"], *turns]}
        async with client.messages.stream(**request) as stream:
            return await stream.get_final_text()

    async def sessions() -> list[str]:
        async with anthropic.AsyncAnthropic(
            base_url=server.url, api_key="none", max_retries=0, timeout=60
        ) as client:
            with saying(server.llm, CALLS):
                said = await asyncio.gather(*(call(client) for _ in range(NUM_SESSIONS)))
            with saying(server.llm, "It rains."):
                return list(await asyncio.gather(*(answer(client, each) for each in said)))

    assert asyncio.run(sessions()) == ["It rains."] * NUM_SESSIONS
    server.wait_idle()
