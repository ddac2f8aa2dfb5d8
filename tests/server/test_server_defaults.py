"""What the server makes of requests that do not say: sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import running

from outpace.llm import LLM
from outpace.server.settings import ServerSettings

USER = [{"role": "user", "content": "Tell me of the sea."}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER, "max_tokens": 12},
    "/v1/completions": {"prompt": "The sea", "max_tokens": 12},
    "/v1/responses": {"input": "Tell me of the sea.", "max_output_tokens": 12},
    "/v1/messages": {"messages": USER, "max_tokens": 12},
    "/api/chat": {"messages": USER, "stream": False, "options": {"num_predict": 12}},
    "/api/generate": {"prompt": "The sea", "stream": False, "options": {"num_predict": 12}},
}


@pytest.fixture(scope="module")
def greedy(served_llm: LLM) -> Iterator[httpx.Client]:
    settings = ServerSettings(port=0, sampling={"temperature": 0.0})
    with running(served_llm, settings) as state, httpx.Client(base_url=state.url, timeout=60) as client:
        yield client


def said(client: httpx.Client, path: str, **more: Any) -> str:
    """What of an answer does not change from request to request by itself."""
    answer = client.post(path, json={"model": "test-model"} | ASKED[path] | more)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    match path.rsplit("/", 1)[-1]:
        case "completions":
            return json.dumps([choice.get("message") or choice["text"] for choice in body["choices"]])
        case "responses":
            return str(body["output"][0]["content"][0]["text"])
        case "messages":
            return json.dumps(body["content"])
        case _:
            return json.dumps(body.get("message") or body["response"])


@pytest.mark.parametrize("path", ASKED)
def test_a_request_that_names_no_temperature_is_greedy(greedy: httpx.Client, path: str) -> None:
    assert len({said(greedy, path) for _ in range(4)}) == 1
    hot = (
        {"options": {"num_predict": 12, "temperature": 1.5}}
        if path.startswith("/api")
        else {"temperature": 1.0}
    )
    assert len({said(greedy, path, **hot) for _ in range(6)}) > 1, "what it names wins"


def test_without_a_default_it_is_not(http: httpx.Client) -> None:
    assert len({said(http, "/v1/chat/completions") for _ in range(6)}) > 1


def test_a_response_shows_what_held(greedy: httpx.Client, http: httpx.Client) -> None:
    for client, temperature in ((greedy, 0.0), (http, 1.0)):
        assert client.post("/v1/responses", json=ASKED["/v1/responses"]).json()["temperature"] == temperature
