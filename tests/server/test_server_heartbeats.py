"""Signs of life: no stream is silent for long, and the clients of each dialect read past them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from scripted import saying
from serving import KV_CACHE_BYTES, MAX_CONTEXT, RunningServer, open_raw, running, wait_until_busy

from outpace.llm import LLM
from outpace.server.settings import ServerSettings
from outpace.types import StepBatch, StepOutput

HEARTBEAT = 0.05
STALL = 0.5
PATIENCE = 0.35
"""Seconds that a client waits for the next bytes: fewer than a stall, many more than a heartbeat."""
TEXT = "Rome Oslo Paris Lima Cairo Quito Delhi Accra Tunis Sofia"
HELLO: list[Any] = [{"role": "user", "content": "Name towns."}]


class Stalling:
    """The backend, whose steps of some numbers take long. Attributes: `num_steps` so far."""

    def __init__(self, backend: Any, stalls: set[int]) -> None:
        self._backend = backend
        self._stalls = stalls
        self.num_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(self, batch: StepBatch) -> StepOutput:
        number, self.num_steps = self.num_steps, self.num_steps + 1
        if number in self._stalls:
            time.sleep(STALL)
        return self._backend.step(batch)


@contextmanager
def stalling(llm: LLM, *stalls: int, text: str = TEXT) -> Iterator[Stalling]:
    """Within, answers are `text`, and steps of these numbers take long; 0 reads the first prompt."""
    engine = llm.loop.engine
    with saying(llm, text):
        before = engine.backend
        backend = engine.backend = Stalling(before, set(stalls))
        try:
            yield backend
        finally:
            engine.backend = before


@contextmanager
def beating(model: Path) -> Iterator[RunningServer]:
    with (
        LLM(
            model, backend="null", max_context=MAX_CONTEXT, kv_cache_bytes=KV_CACHE_BYTES, draft="off"
        ) as llm,
        running(llm, ServerSettings(port=0, shutdown_grace=0.2, heartbeat=HEARTBEAT)) as state,
    ):
        yield state


@pytest.fixture(scope="module")
def plain(model_135m: Path) -> Iterator[RunningServer]:
    with beating(model_135m) as state:
        yield state


@pytest.fixture(scope="module")
def filling(model_05b: Path) -> Iterator[RunningServer]:
    """A model that fills in the middle."""
    with beating(model_05b) as state:
        yield state


@dataclass(frozen=True)
class Dialect:
    """How a dialect's stream is asked for, and what stands in the parts of it."""

    path: str
    body: dict[str, Any]
    is_sign: Callable[[str], bool]
    is_end: Callable[[str], bool]
    apart: str = "\n\n"  # what stands between its parts


def is_comment(part: str) -> bool:
    return part.startswith(": ")


def is_done(part: str) -> bool:
    return part == "data: [DONE]"


def ollama_line(part: str) -> dict[str, Any]:
    line = json.loads(part)
    return {"text": line["response"] if "response" in line else line["message"]["content"], **line}


def is_empty_line(part: str) -> bool:
    line = ollama_line(part)
    return not line["text"] and not line["done"]


DIALECTS = {
    "chat": Dialect("/v1/chat/completions", {"messages": HELLO, "stream": True}, is_comment, is_done),
    "completions": Dialect("/v1/completions", {"prompt": "Name towns", "stream": True}, is_comment, is_done),
    "responses": Dialect(
        "/v1/responses",
        {"input": "Name towns", "stream": True},
        is_comment,
        lambda part: part.startswith(("event: response.completed", "event: response.failed")),
    ),
    "messages": Dialect(
        "/v1/messages",
        {"model": "claude-x", "messages": HELLO, "max_tokens": 60, "stream": True},
        lambda part: part == 'event: ping\ndata: {"type":"ping"}',
        lambda part: part.startswith(("event: message_stop", "event: error")),
    ),
    "infill": Dialect(
        "/infill",
        {"input_prefix": "def count():", "input_suffix": "return", "stream": True},
        is_comment,
        lambda part: json.loads(part.removeprefix("data: ")).get("stop") is not False,
    ),
    "ollama chat": Dialect(
        "/api/chat",
        {"model": "test-model", "messages": HELLO},
        is_empty_line,
        lambda part: ollama_line(part)["done"],
        "\n",
    ),
    "ollama generate": Dialect(
        "/api/generate",
        {"model": "test-model", "prompt": "Name towns"},
        is_empty_line,
        lambda part: ollama_line(part)["done"],
        "\n",
    ),
}


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return DIALECTS[request.param]


@pytest.fixture
def server(request: pytest.FixtureRequest, dialect: Dialect) -> RunningServer:
    return request.getfixturevalue("filling" if dialect.path == "/infill" else "plain")


def test_silence_is_broken_wherever_it_is(server: RunningServer, dialect: Dialect) -> None:
    """While the prompt is read, and in the midst of the text."""
    with stalling(server.llm, 0, 4):
        answer = httpx.post(server.url + dialect.path, json=dialect.body, timeout=30)
    assert answer.status_code == 200, answer.text
    *parts, rest = answer.text.split(dialect.apart)
    assert rest == ""
    signs = [i for i, part in enumerate(parts) if dialect.is_sign(part)]
    said = [
        i for i, part in enumerate(parts) if i not in signs and any(word in part for word in TEXT.split())
    ]
    before = [i for i in signs if i < said[0]]
    amid = [i for i in signs if i > said[0]]
    assert 3 <= len(before) <= STALL / HEARTBEAT + 2
    assert 3 <= len(amid) <= STALL / HEARTBEAT + 2
    assert [i for i, part in enumerate(parts) if i not in signs and dialect.is_end(part)] == [len(parts) - 1]
    server.wait_idle()


@pytest.mark.parametrize("stall", [0, 4])
def test_a_client_that_leaves_amid_heartbeats_is_cancelled(
    server: RunningServer, dialect: Dialect, stall: int
) -> None:
    with stalling(server.llm, stall, stall + 1, text="word " * 300) as backend:
        connection = open_raw(server, dialect.path, dialect.body)
        wait_until_busy(server)
        seen = connection.recv(1 << 16)
        while backend.num_steps <= stall:
            seen += connection.recv(1 << 16)
        time.sleep(4 * HEARTBEAT)
        assert len(connection.recv(1 << 16)) > 0, "signs of life"
        connection.close()
        server.wait_idle(3)
        assert backend.num_steps <= stall + 2


# --- real clients, which wait less than a stall takes -------------------------------------------------


@pytest.fixture
def client(plain: RunningServer) -> Iterator[openai.OpenAI]:
    url = f"{plain.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def test_openais_client_reads_a_chat(plain: RunningServer, client: openai.OpenAI) -> None:
    with stalling(plain.llm, 0, 4):
        chunks = list(client.chat.completions.create(model="test-model", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


def test_openais_client_reads_a_completion(plain: RunningServer, client: openai.OpenAI) -> None:
    with stalling(plain.llm, 0, 4):
        chunks = list(client.completions.create(model="test-model", prompt="Name towns", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT


def test_openais_client_reads_a_response(plain: RunningServer, client: openai.OpenAI) -> None:
    with (
        stalling(plain.llm, 0, 4),
        client.responses.stream(model="test-model", input="Name towns") as stream,
    ):
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == TEXT


def test_anthropics_client_reads_a_message(plain: RunningServer) -> None:
    with (
        anthropic.Anthropic(base_url=plain.url, api_key="none", max_retries=0, timeout=PATIENCE) as claude,
        stalling(plain.llm, 0, 4),
        claude.messages.stream(model="claude-x", messages=HELLO, max_tokens=60) as stream,
    ):
        assert stream.get_final_text() == TEXT


def test_ollamas_client_reads_both(plain: RunningServer) -> None:
    friend = ollama.Client(host=plain.url, timeout=PATIENCE)
    with stalling(plain.llm, 0, 4):
        lines = list(friend.chat("test-model", HELLO, stream=True))
    assert "".join(line.message.content or "" for line in lines) == TEXT
    assert [line.done for line in lines].index(True) == len(lines) - 1
    with stalling(plain.llm, 0, 4):
        pieces = list(friend.generate("test-model", "Name towns", stream=True))
    assert "".join(piece.response or "" for piece in pieces) == TEXT
    friend._client.close()  # the package has no other way
