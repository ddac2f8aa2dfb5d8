"""The OpenAPI page against the server: schemathesis makes requests of it and checks the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import RunningServer

OPERATIONS = {
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{response_id}"),
    ("DELETE", "/v1/responses/{response_id}"),
    ("POST", "/v1/responses/input_tokens"),
    ("GET", "/v1/responses/{response_id}/input_items"),
    ("POST", "/v1/responses/{response_id}/cancel"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/api/version"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("POST", "/api/show"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
    ("POST", "/v1/embeddings"),
    ("POST", "/infill"),
}


def page_of(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.fixture(scope="module")
def page(server: RunningServer) -> Any:
    return page_of(server)


def test_the_page_names_every_address(server: RunningServer, http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    named = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert named == OPERATIONS


CANCEL = "/v1/responses/{response_id}/cancel"
"""Always refused: no response is in the background."""
WITH_BODY = sorted(path for method, path in OPERATIONS if method == "POST" and path != CANCEL)
SHORT = dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"), 4)
"""Of what a request leaves open: whole contexts of tokens would take long."""


def check_answers(
    server: RunningServer,
    operation: Any,
    mode: GenerationMode,
    max_examples: int,
    named: Callable[[], dict[str, str]] = dict,
    **fields: Any,
) -> set[int]:
    """Make requests that the page allows, or forbids. Answers must be what it says, and no 5xx.

    `named` gives the path's parameters where they are not made up; `fields` are set in every body.
    Returns the statuses.
    """
    statuses: set[int] = set()

    @settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body = {**SHORT, **case.body, **fields}
        case.path_parameters = {**(case.path_parameters or {}), **named()}
        # Ranges are the engine's business: a right type with a wrong value is refused.
        answer = case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])
        statuses.add(answer.status_code)

    check()
    server.wait_idle()
    return statuses


OLLAMA = {"options": {"num_predict": 4}}
NO_REUSE = {"prompt": None, "conversation": None}
FIELDS: dict[str, dict[str, Any]] = {
    "/api/chat": OLLAMA,
    "/api/generate": OLLAMA,
    "/infill": {"n_predict": 4},
    "/v1/responses": NO_REUSE,
    "/v1/responses/input_tokens": NO_REUSE,
}
"""Of bodies whose answers would be long, or are refused."""
HARD = """
    tools tool_choice functions function_call modalities system temperature top_p top_k min_p
    repetition_penalty presence_penalty frequency_penalty logit_bias n best_of seed stop stop_sequences
    stop_token_ids logprobs
    top_logprobs echo suffix stream_options response_format prediction thinking output_config text background
    previous_response_id
"""
"""Fields that are refused nearly always when they are made up."""
EASY = {
    "messages": [{"role": "user", "content": "Hi"}],
    "prompt": "Hi",
    "input": "Hi",
    "max_tokens": 4,
    **dict.fromkeys(HARD.split()),
}


def new_response(server: RunningServer) -> dict[str, str]:
    body = {"input": "Hi", "max_output_tokens": 1}
    return {"response_id": httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).json()["id"]}


NAMED: dict[str, Callable[[RunningServer], dict[str, str]]] = {
    "/v1/responses/{response_id}": new_response,
    "/v1/responses/{response_id}/input_items": new_response,
    "/v1/models/{model}": lambda server: {"model": server.name},
}
"""What is there: names that are made up are unknown."""


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS - {("POST", CANCEL)}))
def test_answers_are_as_the_page_says(
    request: pytest.FixtureRequest, server: RunningServer, page: Any, method: str, path: str
) -> None:
    if path == "/infill":
        server = request.getfixturevalue("filling")
        page = page_of(server)
    fields = {"model": server.name, **FIELDS.get(path, {})} if method == "POST" else {}
    statuses = check_answers(server, page[path][method], GenerationMode.POSITIVE, 25, **fields)
    if method == "POST":
        statuses |= check_answers(
            server, page[path][method], GenerationMode.POSITIVE, 10, **{**EASY, **fields}
        )
    if path in NAMED:
        assert 200 not in statuses, "there is nothing of that name"
        statuses = check_answers(
            server, page[path][method], GenerationMode.POSITIVE, 5, named=lambda: NAMED[path](server)
        )
        assert statuses == {200}
    assert 200 in statuses


@pytest.mark.parametrize("path", WITH_BODY)
def test_what_the_page_forbids_is_refused(server: RunningServer, page: Any, path: str) -> None:
    statuses = check_answers(server, page[path]["POST"], GenerationMode.NEGATIVE, 25)
    assert statuses
    assert all(400 <= status < 500 for status in statuses)
