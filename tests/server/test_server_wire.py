"""What goes over the wire, without a server: chunks, log probabilities, parameters, explanations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from outpace.errors import (
    BackendError,
    ContextLengthError,
    InvalidParameterError,
    OutOfMemoryError,
    OverloadedError,
    UsageError,
)
from outpace.server.errors import from_exception
from outpace.server.openai.events import EventText
from outpace.server.openai.logprobs import LOWEST, CompletionLogprobs, chat_logprobs
from outpace.server.openai.params import chat_params
from outpace.server.openai.schema import ChatRequest
from outpace.types import TokenLogprob


class ByteTokens:
    """A tokenizer of which only the bytes matter; token i is piece i."""

    def __init__(self, *pieces: bytes) -> None:
        self.token_bytes = pieces.__getitem__


@pytest.mark.parametrize("with_usage", [True, False])
def test_events_are_json(*, with_usage: bool) -> None:
    head = {"id": 'a"}b', "model": "mödel\n", "created": 5}
    event = EventText(head, with_usage=with_usage)
    text = event.choice(3, '"delta":' + json.dumps({"content": "\n\u2028é"}), logprobs={"content": []})
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    assert "\n" not in text[:-2]
    choice = {
        "index": 3,
        "delta": {"content": "\n\u2028é"},
        "logprobs": {"content": []},
        "finish_reason": None,
    }
    expected: dict[str, Any] = {**head, "choices": [choice]}
    if with_usage:
        expected["usage"] = None
    assert json.loads(text[6:]) == expected
    end = json.loads(event.choice(0, '"delta":{}', finish_reason="stop")[6:])
    assert end["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert json.loads(event.usage({"total_tokens": 1})[6:]) == {
        **head,
        "choices": [],
        "usage": {"total_tokens": 1},
    }


def test_chat_logprobs_show_parts_of_characters_as_bytes() -> None:
    tokenizer: Any = ByteTokens(b"a", b"\xc3", b"\xa9")
    said = chat_logprobs(tokenizer, [TokenLogprob(1, -0.5, ((1, -0.5), (0, float("-inf"))))])
    [token] = said["content"]
    assert token["bytes"] == [0xC3]
    assert token["token"] == "\ufffd"
    assert token["top_logprobs"][1] == {"token": "a", "logprob": LOWEST, "bytes": [97]}
    json.dumps(said, allow_nan=False)


def test_completion_logprobs_count_characters() -> None:
    tokenizer: Any = ByteTokens(b"ab", b"\xc3", b"\xa9", b"c")
    entries = [TokenLogprob(i, -1.0, ((i, -1.0), (1, -2.0))) for i in (0, 1, 2, 3)]
    whole = CompletionLogprobs(tokenizer).push(entries)
    assert whole["tokens"] == ["ab", "bytes:\\xc3", "bytes:\\xa9", "c"]
    assert whole["text_offset"] == [0, 2, 2, 3]  # of "abéc"
    assert whole["top_logprobs"][0] == {"ab": -1.0, "bytes:\\xc3": -2.0}
    broken = CompletionLogprobs(tokenizer).push([entries[1], entries[0], entries[3]])
    assert broken["text_offset"] == [0, 1, 3]  # of "\ufffdabc"
    pieces = CompletionLogprobs(tokenizer)
    assert [pieces.push([entry])["text_offset"][0] for entry in entries] == whole["text_offset"]


def test_null_means_the_default() -> None:
    fields = {name: None for name in ChatRequest.model_fields if name != "messages"}
    body = {**fields, "messages": [{"role": "user", "content": "Hi"}]}
    given = chat_params(ChatRequest.model_validate_json(json.dumps(body)), {})
    plain = chat_params(ChatRequest.model_validate_json(json.dumps({"messages": body["messages"]})), {})
    assert given == plain
    assert given.params.max_tokens is None
    assert given.params.temperature == 1


def test_top_k_of_minus_one_is_off() -> None:
    body = '{"messages": [{"role": "user", "content": "Hi"}], "top_k": -1}'
    assert chat_params(ChatRequest.model_validate_json(body), {}).params.top_k == 0


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (InvalidParameterError("n must be", "n"), 400, "invalid_value", "n"),
        (ContextLengthError(9, 5, model_context=5), 400, "context_length_exceeded", "prompt"),
        (OutOfMemoryError("no room"), 400, "context_length_exceeded", None),
        (UsageError("no chat template"), 400, "invalid_request", None),
        (OverloadedError("later"), 429, "overloaded", None),
        (BackendError("broke"), 500, "engine_error", None),
        (ZeroDivisionError("secret"), 500, "internal_error", None),
    ],
)
def test_engine_errors_on_the_wire(error: Exception, status: int, code: str, param: str | None) -> None:
    wire = from_exception(error, {"messages": "prompt"})
    assert (wire.status, wire.code, wire.param) == (status, code, param)
    assert "secret" not in wire.body()
    assert json.loads(wire.body())["error"]["code"] == code
