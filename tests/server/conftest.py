"""One server for the session, and clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from serving import KV_CACHE_BYTES, MAX_CONTEXT, RunningServer, native_is_built, running
from tool_requests import OPENAI

from outpace.llm import LLM


@pytest.fixture(scope="session")
def served_llm(model_135m: Path) -> Iterator[LLM]:
    """Without weights, so quick; its tokens show any mistake in the KV cache all the same."""
    with LLM(model_135m, backend="null", max_context=MAX_CONTEXT, kv_cache_bytes=KV_CACHE_BYTES) as llm:
        yield llm


@pytest.fixture(scope="session")
def native_server(model_135m: Path) -> Iterator[RunningServer]:
    """The real model on the native core."""
    if not native_is_built():
        pytest.skip("NOT TESTED: the native core is not built")
    with (
        LLM(model_135m, max_context=MAX_CONTEXT, kv_cache_bytes=KV_CACHE_BYTES) as llm,
        running(llm) as state,
    ):
        yield state


@pytest.fixture(scope="session")
def server(served_llm: LLM) -> Iterator[RunningServer]:
    with running(served_llm) as state:
        yield state


@pytest.fixture(scope="session")
def filling(model_05b: Path) -> Iterator[RunningServer]:
    """A model that fills in the middle."""
    with (
        LLM(model_05b, backend="null", max_context=MAX_CONTEXT, kv_cache_bytes=KV_CACHE_BYTES) as llm,
        running(llm) as state,
    ):
        yield state


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def claude(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def chat(client: openai.OpenAI) -> Any:
    """Ask in OpenAI's dialect."""

    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(**{**OPENAI, "model": "test-model", **fields})

    return ask
