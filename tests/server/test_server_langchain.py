"""LangChain's chat model for OpenAI against the server: answers, streams, tools, typed answers."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr
from serving import RunningServer


@tool
def get_time(zone: str) -> str:
    """Tell the time in a zone."""
    return f"12:00 in {zone}"


class Weather(BaseModel):
    """The weather of a place."""

    sunny: bool


@pytest.fixture
def model(native_server: RunningServer) -> ChatOpenAI:
    return ChatOpenAI(
        model="test-model",
        base_url=f"{native_server.url}/v1",
        api_key=SecretStr("none"),
        temperature=0,
        max_completion_tokens=48,
        max_retries=0,
        stream_usage=True,
    )


def test_answers_whole_streamed_and_async_are_the_same(model: ChatOpenAI) -> None:
    whole = model.invoke("Say hello.")
    assert whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    chunks = list(model.stream("Say hello."))
    assert len(chunks) > 2
    streamed = sum(chunks[1:], chunks[0])
    assert isinstance(streamed, AIMessageChunk)
    assert streamed.text == whole.text
    assert streamed.usage_metadata is not None
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert asyncio.run(model.ainvoke("Say hello.")).text == whole.text


def test_a_tool_is_called_and_its_result_taken(model: ChatOpenAI) -> None:
    question = HumanMessage("What time is it in Rome?")
    call = model.bind_tools([get_time], tool_choice="get_time").invoke([question])
    assert [each["name"] for each in call.tool_calls] == ["get_time"]
    result = get_time.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert result.content == f"12:00 in {call.tool_calls[0]['args']['zone']}"
    assert model.bind_tools([get_time], tool_choice="none").invoke([question, call, result]).text


def test_a_typed_answer_fits_its_class(model: ChatOpenAI) -> None:
    for method in ("json_schema", "function_calling"):
        answer = model.with_structured_output(Weather, method=method).invoke("Is it sunny in Rome?")
        assert isinstance(answer, Weather)
