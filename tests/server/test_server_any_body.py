"""Bodies of every shape: whatever comes, there is one answer, or one error that says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import RunningServer

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
text = st.text(st.characters(codec="utf-8") | st.just("\ud800"), max_size=12)
name = st.sampled_from(["f", "note"]) | st.text(max_size=3)
small = st.integers(-1, 3)
numbers = st.floats(-1, 3) | small
parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "text", "input_image"])},
        optional={"text": text},
    ),
    max_size=2,
)


def shaped(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with these fields or some of them, now and then with another value in one."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> dict[str, Any]:
        drawn = draw(st.fixed_dictionaries(fields))
        fault = draw(st.sampled_from([None] * 8 + ["left out", "anything"]))
        if fault is not None:
            changed = draw(st.sampled_from(sorted(drawn)))
            drawn.pop(changed)
            if fault == "anything":
                drawn[changed] = draw(anything)
        return drawn

    return draw_one()


def typed(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return shaped(type=st.just(kind), **fields)


call_ids = st.sampled_from(["call_1", "call_2", ""])
roles = st.sampled_from(["user", "assistant", "system", "developer", "tool"])
items = st.one_of(
    typed("message", role=roles, content=text | parts),
    shaped(role=st.just("user"), content=text | parts),
    typed("function_call", call_id=call_ids, name=name, arguments=st.sampled_from(['{"a": 1}', "{}", "no"])),
    typed("custom_tool_call", call_id=call_ids, name=name, input=text),
    typed("function_call_output", call_id=call_ids, output=text | parts),
    typed("custom_tool_call_output", call_id=call_ids, output=text | parts),
    typed("reasoning", summary=st.just([]), content=parts | st.none()),
    typed("item_reference", id=text),
)
functions = typed("function", name=name, parameters=st.just({"type": "object"}), strict=st.booleans())
customs = typed("custom", name=name, description=text)
common = {
    "stream": st.booleans() | st.none(),
    "options": shaped(temperature=numbers, top_k=small, seed=small),
}
ollama_messages = st.lists(
    shaped(
        role=roles,
        content=text,
        tool_calls=st.lists(shaped(function=shaped(name=name, arguments=st.just({}))), max_size=2),
    ),
    max_size=3,
)
inputs = text | st.lists(text, max_size=3)
BODIES = {
    "/v1/responses": shaped(
        input=text | st.lists(items, max_size=4),
        instructions=text | st.none(),
        tools=st.lists(functions | customs, max_size=2) | st.none(),
        stream=st.booleans(),
    ),
    "/api/chat": shaped(messages=ollama_messages, think=st.booleans() | st.none(), **common),
    "/api/generate": shaped(prompt=text, raw=st.booleans() | st.none(), system=text | st.none(), **common),
    "/api/embed": shaped(input=inputs, truncate=st.booleans() | st.none(), dimensions=small | st.none()),
    "/api/embeddings": shaped(prompt=text),
    "/v1/embeddings": shaped(
        input=inputs | st.lists(st.integers(-1, 60000), max_size=4),
        encoding_format=st.sampled_from(["float", "base64"]) | st.none(),
        dimensions=small | st.none(),
    ),
    "/infill": shaped(
        input_prefix=text,
        input_suffix=text,
        input_extra=st.lists(shaped(text=text, filename=text), max_size=2) | st.none(),
        prompt=text | st.none(),
        stream=st.booleans(),
        stop=st.lists(st.text(max_size=2), max_size=2),
        response_fields=st.lists(st.sampled_from(["content", "timings/prompt_n", "/", ""])) | st.none(),
        top_k=small,
        seed=small,
    ),
}
SHORT: dict[str, dict[str, Any]] = {
    "/v1/responses": {"max_output_tokens": 3},
    "/api/chat": {"options": {"num_predict": 3}},
    "/api/generate": {"options": {"num_predict": 3}},
    "/infill": {"n_predict": 3},
}


@pytest.mark.parametrize("path", BODIES)
def test_no_body_breaks_the_server(request: pytest.FixtureRequest, path: str) -> None:
    server: RunningServer = request.getfixturevalue("filling" if path == "/infill" else "server")
    statuses: set[int] = set()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=BODIES[path])
    def check(body: dict[str, Any]) -> None:
        short = {**SHORT.get(path, {}), "model": server.name}
        if isinstance(given_options := body.get("options"), dict):
            short["options"] = {**given_options, **short["options"]}
        content = json.dumps({**body, **short}).encode("utf-8", "surrogatepass")
        answer = http.post(path, content=content)
        statuses.add(answer.status_code)
        assert answer.status_code in {200, 400, 404}, answer.text
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error if path.startswith("/api/") else error["message"]
        else:
            check_ends_once(path, answer)

    with httpx.Client(base_url=server.url, timeout=60) as http:
        check()
    assert statuses >= {200, 400}
    server.wait_idle()


def check_ends_once(path: str, answer: httpx.Response) -> None:
    """Streams have one end, and no error in them."""
    kind = answer.headers["content-type"]
    if "ndjson" in kind:
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    elif "event-stream" in kind:
        events = [json.loads(each.rsplit("data: ", 1)[1]) for each in answer.text.split("\n\n")[:-1]]
        if path == "/infill":
            assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
        else:
            ends = [each for each in events if each["type"] in {"response.completed", "response.incomplete"}]
            assert ends == events[-1:]
            assert not any(each["type"] in {"error", "response.failed"} for each in events)
