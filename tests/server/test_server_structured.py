"""Answers of a form: vLLM's `structured_outputs`, and custom tools whose text is in a grammar."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import running

from outpace.llm import LLM

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GBNF = 'root ::= "a" num+\nnum ::= [0-9] ","'


def ask(http: httpx.Client, path: str, outputs: Any, **fields: Any) -> httpx.Response:
    asked = {"prompt": "Say"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Say"}]}
    body = {"model": "test-model", "max_tokens": 60, "structured_outputs": outputs, **asked, **fields}
    return http.post(path, json=body)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"choice": ["yes", "no/\n"]}, r"yes|no/\n"),
        ({"regex": r"\d{2}/[a-c]{3}"}, r"\d{2}/[a-c]{3}"),
        ({"grammar": 'start: "x" /[0-9]{2,4}/'}, r"x[0-9]{2,4}"),
        ({"grammar": GBNF}, r"a([0-9],)+"),
        ({"json": {"type": "integer", "minimum": 1, "maximum": 3}}, "[123]"),
        ({"json": '{"enum": ["a"]}'}, '"a"'),
        ({"json": {"type": "boolean"}, "regex": None}, "true|false"),
        ({"json_object": True}, r"(?s:\{.*)+"),
        ({"regex": ""}, ""),
    ],
)
def test_an_answer_is_of_the_form(http: httpx.Client, path: str, outputs: Any, pattern: str) -> None:
    for seed in range(3):
        answer = ask(http, path, outputs, seed=seed)
        assert answer.status_code == 200, answer.text
        [choice] = answer.json()["choices"]
        text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
        if choice["finish_reason"] == "stop":
            assert re.fullmatch(pattern, text), text
        else:
            assert pattern.endswith("+"), "only what may go on is cut"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("outputs", "param"),
    [
        ({"regex": "("}, "structured_outputs.regex"),
        ({"regex": "(?=a)b"}, "structured_outputs.regex"),
        ({"grammar": "start: other"}, "structured_outputs.grammar"),
        ({"grammar": "root ::= ("}, "structured_outputs.grammar"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"json": {"type": "wrong"}}, "structured_outputs.json"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": ["a"], "regex": "a"}, "structured_outputs"),
        ("json", "structured_outputs"),
    ],
)
def test_forms_that_cannot_be(http: httpx.Client, path: str, outputs: Any, param: str) -> None:
    answer = ask(http, path, outputs)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]


def test_two_wishes_are_one_too_many(http: httpx.Client) -> None:
    answer = ask(http, CHAT, {"regex": "a"}, response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert "response_format" in answer.json()["error"]["message"]
    assert ask(http, CHAT, {"regex": "a"}, response_format={"type": "text"}).status_code == 200
    assert ask(http, CHAT, {}).status_code == 200


def test_the_first_grammar_finds_the_vocabulary_prepared(
    model_135m: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM(model_135m, backend="null", kv_cache_bytes=64 << 20) as llm, running(llm) as server:
        monkeypatch.setattr("llguidance.LLTokenizer", None)
        with httpx.Client(base_url=server.url, timeout=60) as fresh:
            assert ask(fresh, CHAT, {"regex": "a"}).status_code == 200


def custom(syntax: str, definition: str) -> Any:
    said = {"type": "grammar", "syntax": syntax, "definition": definition}
    return {"type": "custom", "name": "note", "description": "Notes.", "format": said}


@pytest.mark.parametrize(
    ("syntax", "definition", "pattern"),
    [
        ("regex", r'"[a-c]{2,3}"\n/', r'"[a-c]{2,3}"\n/'),
        ("lark", 'start: line+\nline: "+ " /[a-z]{1,9}/ LF\nLF: /\\n/\n', r"(\+ [a-z]{1,9}\n)+"),
    ],
)
def test_a_custom_tools_text_is_in_its_grammar(
    client: openai.OpenAI, syntax: str, definition: str, pattern: str
) -> None:
    tools = [custom(syntax, definition), {"type": "function", "name": "other", "parameters": {}}]
    choice: Any = {"type": "custom", "name": "note"}
    request: dict[str, Any] = {"model": "test-model", "input": "Note it.", "max_output_tokens": 400}
    response = client.responses.create(**request, tools=tools, tool_choice=choice)
    [call] = response.output
    assert call.type == "custom_tool_call"
    if response.status == "completed":
        assert re.fullmatch(pattern, call.input), call.input
    else:
        assert pattern.endswith("+"), "only what may go on is cut"


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"syntax": "lark", "definition": "start: other"}, "tools[0].format.definition"),
        ({"syntax": "regex", "definition": "("}, "tools[0].format.definition"),
        ({"syntax": "ebnf", "definition": "a"}, "tools[0].format.syntax"),
        ({"definition": "a"}, "tools[0].format.syntax"),
        ({"syntax": "lark"}, "tools[0].format.definition"),
    ],
)
def test_grammars_of_custom_tools_that_cannot_be(http: httpx.Client, said: Any, param: str) -> None:
    tool = {"type": "custom", "name": "note", "format": {"type": "grammar", **said}}
    answer = http.post("/v1/responses", json={"model": "test-model", "input": "a", "tools": [tool]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
