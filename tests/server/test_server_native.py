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


def test_a_prediction_is_accepted_and_changes_nothing(native_server: RunningServer) -> None:
    """By the proposer that the product has; each client's scope is new, so no earlier answer helps."""
    names = iter(["first", "second", "third"])
    request: dict[str, Any] = {
        "model": "test-model",
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": 60,
    }

    def ask(**given: Any) -> Any:
        base_url = f"{native_server.url}/v1"
        with openai.OpenAI(base_url=base_url, api_key=next(names), max_retries=0) as client:
            return client.chat.completions.create(**{**request, **given})

    plain = ask()
    text = plain.choices[0].message.content
    predicted = ask(prediction={"type": "content", "content": text})
    wrong = ask(prediction={"type": "content", "content": "def main():\n    return 5\n" * 5})
    for answer in (predicted, wrong):
        assert answer.choices[0].message.content == text
        assert answer.usage.completion_tokens == plain.usage.completion_tokens
    length = len(native_server.llm.tokenizer.encode(text, add_special=False))
    details = predicted.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 0
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens == length
    assert wrong.usage.completion_tokens_details.rejected_prediction_tokens > 0
