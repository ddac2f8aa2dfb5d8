"""What a request tells the drafter: its client's scope and a prediction; and what the usage says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import KV_CACHE_BYTES, MAX_CONTEXT, RunningServer, running
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from outpace.llm import LLM
from outpace.server.client import client_scope, presented_keys, scope_of_key
from outpace.types import Draft, DraftHints, DraftRequest

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Write."}]


class FromPrediction:
    """Drafts what the prediction has next, and remembers whom it served."""

    def __init__(self) -> None:
        self.hints: list[DraftHints] = []

    def propose(
        self, requests: Sequence[DraftRequest], rooms: Sequence[int], num_rows: int, num_tree_tokens: int
    ) -> Sequence[Draft | None]:
        drafts: list[Draft | None] = []
        for request, room in zip(requests, rooms, strict=True):
            start = request.num_tokens - request.num_prompt_tokens
            drafts.append(Draft(request.hints.prediction[start:][:room], None, "prediction"))
        return drafts

    def observe(self, requests: Sequence[DraftRequest], num_rows: int, seconds: float) -> None:
        pass

    def finish(self, request: DraftRequest) -> None:
        self.hints.append(request.hints)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def drafter() -> FromPrediction:
    return FromPrediction()


@pytest.fixture(scope="module")
def drafting(model_135m: Path, drafter: FromPrediction) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outpace.draft.create", lambda *_, **__: drafter)
        llm = LLM(model_135m, backend="null", max_context=MAX_CONTEXT, kv_cache_bytes=KV_CACHE_BYTES)
    with llm, running(llm) as server:
        yield server


def post(server: RunningServer, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(server.url + path, json=body, headers=names, timeout=30)


def scope_of(headers: dict[str, str]) -> str:
    return client_scope(HTTPConnection({"type": "http", "headers": Headers(headers).raw}))


def test_a_key_names_a_scope() -> None:
    mine = scope_of({"authorization": "Bearer sk-mine"})
    assert mine == scope_of({"x-api-key": "sk-mine"})
    assert mine == scope_of({"authorization": "bearer  sk-mine ", "x-api-key": "other"})
    assert mine != scope_of({"x-api-key": "sk-other"})
    assert len(mine) == 32
    assert "mine" not in mine
    for headers in ({}, {"authorization": "Basic abc"}, {"authorization": "Bearer"}, {"x-api-key": " "}):
        assert scope_of(headers) == ""
    both = Headers({"authorization": "Bearer a", "x-api-key": "b"})
    assert presented_keys(both) == ["a", "b"]
    assert client_scope(HTTPConnection({"type": "http", "headers": [(b"x-api-key", b"\xff\xe9")]}))


def test_the_scope_reaches_the_drafter(drafting: RunningServer, drafter: FromPrediction) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": USER, "max_tokens": 2}),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 2}),
        ("/v1/messages", {"model": "claude-x", "messages": USER, "max_tokens": 2}),
    ]
    for path, body in asked:
        for header, scope in (
            ({"x_api_key": "k"}, scope_of_key("k")),
            ({"authorization": "Bearer k"}, scope_of_key("k")),
            ({}, ""),
        ):
            drafter.hints.clear()
            assert post(drafting, path, body, **header).status_code == 200
            drafting.wait_idle()
            assert {hints.scope for hints in drafter.hints} == {scope}
            assert all(not hints.prediction for hints in drafter.hints)


def answer_to(server: RunningServer, **fields: Any) -> dict[str, Any]:
    body = {"messages": USER, "max_tokens": 40, "temperature": 0, "ignore_eos": True, **fields}
    answer = post(server, CHAT, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_prediction_is_counted_and_changes_nothing(
    drafting: RunningServer, drafter: FromPrediction
) -> None:
    plain = answer_to(drafting)
    assert plain["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    text = plain["choices"][0]["message"]["content"]
    tokenizer = drafting.llm.tokenizer
    for right in (text, text[: len(text) // 2] + " and something else", "nothing of the kind", "x"):
        parts = [{"type": "text", "text": right}]
        for content in (right, parts):
            drafter.hints.clear()
            answer = answer_to(drafting, prediction={"type": "content", "content": content})
            assert answer["choices"] == plain["choices"]
            drafting.wait_idle()
            [hints] = drafter.hints
            assert list(hints.prediction) == tokenizer.encode(right, add_special=False)
            details = answer["usage"]["completion_tokens_details"]
            accepted, rejected = (
                details["accepted_prediction_tokens"],
                details["rejected_prediction_tokens"],
            )
            assert accepted + rejected == len(hints.prediction)
            assert rejected >= 0
            assert accepted <= answer["usage"]["completion_tokens"]
    half = answer_to(drafting, prediction={"type": "content", "content": text[: len(text) // 2]})
    assert half["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0


def test_a_prediction_in_a_stream_and_for_several_choices(drafting: RunningServer) -> None:
    text = answer_to(drafting)["choices"][0]["message"]["content"]
    prediction = {"type": "content", "content": text}
    length = len(drafting.llm.tokenizer.encode(text, add_special=False))
    whole = answer_to(drafting, prediction=prediction, n=3)["usage"]
    details = whole["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] == 3 * length
    body = {
        "messages": USER,
        "max_tokens": 40,
        "temperature": 0,
        "ignore_eos": True,
        "n": 3,
        "prediction": prediction,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    lines = post(drafting, CHAT, body).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    assert httpx.Response(200, text=lines[-3].removeprefix("data: ")).json()["usage"] == whole


@pytest.mark.parametrize(
    ("prediction", "param", "code"),
    [
        ({"type": "content"}, "prediction.content", "missing_required_parameter"),
        ({"type": "diff", "content": "a"}, "prediction.type", "invalid_value"),
        ({"type": "content", "content": 5}, "prediction.content", "invalid_type"),
        ("text", "prediction", "invalid_type"),
        (
            {"type": "content", "content": [{"type": "image"}]},
            "prediction.content[0]",
            "unsupported_parameter",
        ),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content[0]", "missing"),
        ({"type": "content", "content": "a b " * MAX_CONTEXT}, "prediction", "invalid_value"),
    ],
)
def test_wrong_predictions(drafting: RunningServer, prediction: Any, param: str, code: str) -> None:
    answer = post(drafting, CHAT, {"messages": USER, "prediction": prediction, "max_tokens": 1})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith(param)
    assert error["code"].startswith(code)
    assert "prediction" in error["message"]


def test_no_prediction_is_none(drafting: RunningServer) -> None:
    for prediction in (None, {"type": "content", "content": ""}, {"type": "content", "content": []}):
        usage = answer_to(drafting, prediction=prediction)["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


@pytest.mark.parametrize(
    ("path", "fields", "lane"),
    [
        (CHAT, {"messages": USER}, "default"),
        (CHAT, {"messages": USER, "service_tier": "auto"}, "default"),
        (CHAT, {"messages": USER, "service_tier": "priority"}, "priority"),
        (CHAT, {"messages": USER, "service_tier": "scale"}, "default"),
        (CHAT, {"messages": USER, "service_tier": "tomorrow's"}, "default"),
        ("/v1/completions", {"prompt": "a", "service_tier": "flex"}, "flex"),
        ("/v1/completions", {"prompt": "a", "service_tier": "ultrafast"}, "priority"),
        ("/v1/responses", {"input": "a", "service_tier": "fast"}, "priority"),
        ("/v1/responses", {"input": "a", "service_tier": "flex"}, "flex"),
        ("/v1/messages", {"model": "claude-x", "messages": USER, "speed": "fast"}, "priority"),
        ("/v1/messages", {"model": "claude-x", "messages": USER, "speed": "standard"}, "default"),
    ],
)
def test_lanes_reach_the_engine_and_are_told(
    drafting: RunningServer, drafter: FromPrediction, path: str, fields: dict[str, Any], lane: str
) -> None:
    length = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    answer = httpx.post(drafting.url + path, json={**fields, length: 2}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert drafter.hints[-1].lane == lane
    if path != "/v1/messages":
        assert answer.json()["service_tier"] == lane
    else:
        assert answer.json()["usage"]["speed"] == fields["speed"]


def test_a_lane_that_is_no_text_is_refused(drafting: RunningServer) -> None:
    body = {"messages": USER, "service_tier": 5}
    answer = httpx.post(drafting.url + CHAT, json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "service_tier"
