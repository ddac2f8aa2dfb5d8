"""The real model behind the real server, asked by the real client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serving import RunningServer, check_outcomes, probe, run_random_clients

from outpace.types import SamplingParams

MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(native_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{native_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_it_knows_what_the_model_knows(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="test-model", prompt="The capital of France is", temperature=0, max_tokens=4
    )
    assert answer.choices[0].text.startswith(" Paris")


def test_it_says_what_the_engine_says(native_server: RunningServer, client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "test-model", "messages": MESSAGES, "seed": 4, "max_tokens": 16}
    [expected] = native_server.llm.chat(MESSAGES, SamplingParams(seed=4, max_tokens=16))
    [choice] = client.chat.completions.create(**request).choices
    assert choice.message.content == expected.outputs[0].text
    assert choice.finish_reason == expected.outputs[0].finish_reason
    chunks = list(client.chat.completions.create(stream=True, **request))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content


def test_32_streams_with_random_disconnects(native_server: RunningServer) -> None:
    with httpx.Client(base_url=native_server.url, timeout=60) as http:
        before = probe(http)
        check_outcomes(run_random_clients(native_server, 32, seed=9))
        native_server.wait_idle()
        assert probe(http) == before
