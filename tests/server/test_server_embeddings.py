"""`/v1/embeddings` and Ollama's `/api/embed` with their own clients, and against the oracle."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import openai
import pytest
from serving import RunningServer, open_raw, wait_until_busy

from outpace.llm import LLM

CAT, DOG, LAW = (
    "The cat sleeps on the sofa.",
    "A dog rests on the couch.",
    "Section 4 of the tax code applies.",
)
LONG = "One more sentence about the sea. " * 40  # several steps' worth beside others, many blocks


@pytest.fixture
def native(native_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{native_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors(client: openai.OpenAI, given: Any, **fields: Any) -> list[list[float]]:
    answer = client.embeddings.create(model="test-model", input=given, **fields)
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return [each.embedding for each in answer.data]


def test_near_texts_have_near_vectors(native: openai.OpenAI) -> None:
    cat, dog, law = map(np.array, vectors(native, [CAT, DOG, LAW]))
    for vector in (cat, dog, law):
        assert len(vector) == 576
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert cat @ dog > cat @ law


def test_all_forms_of_input_give_the_same(native: openai.OpenAI, native_server: RunningServer) -> None:
    """The client asks for base64 and decodes it by itself unless it is told a format."""
    tokens = native_server.llm.encode_prompt(CAT)
    [alone] = vectors(native, CAT)
    assert vectors(native, [CAT], encoding_format="float") == [alone]
    assert vectors(native, tokens) == [alone]
    assert vectors(native, [tokens, tokens]) == [alone, alone]
    raw = native.embeddings.create(model="test-model", input=CAT, encoding_format="base64")
    text: Any = raw.data[0].embedding
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == alone
    assert raw.usage.prompt_tokens == raw.usage.total_tokens == len(tokens)


def test_the_same_bits_whatever_runs_beside(native: openai.OpenAI, native_server: RunningServer) -> None:
    """Alone, in a batch beside a stream, and where the prefix cache knows the text."""
    [alone] = vectors(native, LONG)
    stream = native.completions.create(model="test-model", prompt=LONG, max_tokens=60, stream=True)
    first = next(iter(stream))
    assert first.choices
    beside = vectors(native, [CAT, LONG, LONG[: len(LONG) // 2], LAW])
    stream.close()
    assert beside[1] == alone
    native_server.wait_idle()


def test_dimensions(native: openai.OpenAI) -> None:
    [whole], [cut] = vectors(native, CAT), vectors(native, CAT, dimensions=64)
    expected = np.array(whole[:64]) / np.linalg.norm(whole[:64])
    assert len(cut) == 64
    np.testing.assert_allclose(cut, expected, atol=1e-6)


def test_the_oracle_gives_the_same(native: openai.OpenAI, model_135m: Path) -> None:
    """Plain float32 over the same dequantized weights; the core rounds activations to bytes."""
    from outpace.types import SamplingParams

    found = vectors(native, [CAT, LAW])
    params = SamplingParams(max_tokens=1, temperature=0, embed=True)
    with LLM(model_135m, backend="torch", max_context=256, kv_cache_bytes=64 << 20) as oracle:
        for text, vector in zip((CAT, LAW), found, strict=True):
            [delta] = oracle.stream(text, params)
            assert delta.embedding is not None
            expected = np.array(delta.embedding) / np.linalg.norm(delta.embedding)
            assert expected @ np.array(vector) > 0.99


def test_ollamas_client(server: RunningServer, client: openai.OpenAI) -> None:
    friend = ollama.Client(host=server.url, timeout=60)
    answer = friend.embed("test-model", [CAT, LAW])
    old = friend.embeddings("test-model", LAW)
    cut = friend.embed("test-model", "sea " * 5000, dimensions=8)
    assert friend.embed("test-model", "").embeddings == friend.embed("test-model", []).embeddings == []
    with pytest.raises(ollama.ResponseError, match="tokens"):
        friend.embed("test-model", "sea " * 5000, truncate=False)
    friend._client.close()  # the package has no other way
    assert [list(each) for each in answer.embeddings] == vectors(client, [CAT, LAW])
    assert list(old.embedding) == list(answer.embeddings[1])
    assert len(cut.embeddings[0]) == 8
    assert cut.prompt_eval_count == 1023


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "empty"),
        ({"input": [[]]}, "empty"),
        ({"input": [1 << 30]}, "token ids"),
        ({"input": ["x"] * 600}, "1 to 512"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": 577}, "576"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "sea " * 5000}, "tokens"),
    ],
)
def test_what_cannot_be(http: httpx.Client, fields: dict[str, Any], says: str) -> None:
    answer = http.post("/v1/embeddings", json={"model": "test-model", **fields})
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_client_that_leaves_is_cancelled(native_server: RunningServer) -> None:
    connection = open_raw(native_server, "/v1/embeddings", {"input": [LONG] * 100})
    wait_until_busy(native_server)
    connection.close()
    native_server.wait_idle(30)


def test_others_go_on_while_much_is_embedded(native: openai.OpenAI, native_server: RunningServer) -> None:
    """What another client asks after a long list of inputs is answered before it ends."""
    done = threading.Event()
    texts = [f"{number}. {LONG[:600]}" for number in range(40)]

    def embed_all() -> None:
        vectors(native, texts)
        done.set()

    thread = threading.Thread(target=embed_all)
    thread.start()
    wait_until_busy(native_server)
    with openai.OpenAI(base_url=native.base_url, api_key="another", max_retries=0) as other:
        answer = other.completions.create(model="test-model", prompt="The sea", max_tokens=4)
    was_done = done.is_set()
    thread.join()
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 4
    assert not was_done
