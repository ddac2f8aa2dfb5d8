"""System messages where a chat template takes one alone, at the beginning, and turns that alternate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from serving import RunningServer, running

from outpace.llm import LLM
from outpace.server.system_turns import with_one_system
from outpace.text.chat_template import ChatTemplate

FIRST_ONLY = """
{%- for message in messages %}
  {%- if message.role == 'system' and not loop.first %}
    {{- raise_exception('System message must be at the beginning.') }}
  {%- endif %}
{%- endfor %}"""
ALTERNATING = (
    FIRST_ONLY
    + """
{%- set turns = namespace(count=0) %}
{%- for message in messages if message.role in ['user', 'assistant'] and not message.tool_calls %}
  {%- if (message.role == 'user') != (turns.count % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {%- endif %}
  {%- set turns.count = turns.count + 1 %}
{%- endfor %}"""
)
REMINDER = "<system-reminder>\nBe brief.\n</system-reminder>"


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


STRAY = [
    said("system", "You help."),
    said("system", "Use tabs."),
    said("user", "Hi"),
    said("assistant", "Hello."),
    said("system", "Be brief."),
    said("user", "So?"),
]
TIDY = [said("system", "You help.\n\nUse tabs."), *STRAY[2:4], said("user", f"{REMINDER}\nSo?")]


@pytest.fixture
def with_guard(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A server whose template has a guard in front."""
    template = served_llm.tokenizer.chat_template
    assert template is not None

    @contextmanager
    def serve(guard: str) -> Iterator[httpx.Client]:
        guarded = ChatTemplate(guard + template.source, "", "<|im_end|>")
        monkeypatch.setattr(served_llm.tokenizer, "chat_template", guarded)
        with running(served_llm) as state, httpx.Client(base_url=state.url, timeout=30) as http:
            yield http

    return serve


def num_prompt_tokens(http: httpx.Client, path: str, messages: list[dict[str, Any]]) -> int:
    """Of a conversation in the dialect of the path."""
    body = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 1},
        "/v1/responses": {"input": messages, "max_output_tokens": 16},
        "/api/chat": {
            "messages": messages,
            "stream": False,
            "options": {"num_predict": 1},
            "model": "test-model",
        },
    }[path]
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    if path == "/api/chat":
        return told["prompt_eval_count"]
    return told["usage"]["prompt_tokens" if "chat" in path else "input_tokens"]


@pytest.mark.parametrize("guard", [FIRST_ONLY, ALTERNATING], ids=["first only", "alternating"])
def test_strict_templates_get_one_system_message(
    with_guard: Callable[[str], AbstractContextManager[httpx.Client]], guard: str
) -> None:
    developer = [{**each, "role": each["role"].replace("system", "developer")} for each in STRAY]
    with with_guard(guard) as http:
        expected = num_prompt_tokens(http, "/v1/chat/completions", TIDY)
        for path in ("/v1/chat/completions", "/api/chat"):
            assert num_prompt_tokens(http, path, STRAY) == expected
        assert num_prompt_tokens(http, "/v1/chat/completions", developer) == expected
        late = num_prompt_tokens(http, "/v1/responses", [*TIDY[:3], *developer[4:]])
        assert late == expected
        if guard == ALTERNATING:
            body = {"messages": [*TIDY, said("assistant", "Well."), said("assistant", "Yes.")]}
            refused = http.post("/v1/chat/completions", json=body)
            assert refused.status_code == 400
            assert "must alternate" in refused.json()["error"]["message"]


def test_other_templates_get_the_messages_as_they_are(server: RunningServer, http: httpx.Client) -> None:
    tokenizer = server.llm.tokenizer
    text = tokenizer.render_chat(STRAY)
    assert text.count("<|im_start|>system") == 3
    expected = len(tokenizer.encode(text, add_special=False, parse_special=True))
    assert num_prompt_tokens(http, "/v1/chat/completions", STRAY) == expected


def test_what_moves() -> None:
    before = [dict(message) for message in STRAY]
    assert with_one_system(STRAY) == TIDY
    assert before == STRAY, "nothing is changed in place"
    assert with_one_system(TIDY) == TIDY
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}
    result = {"role": "tool", "tool_call_id": "a", "content": "rain"}
    history = [said("user", "Hi"), call, result, said("system", "Be brief.")]
    assert with_one_system(history) == [*history[:3], said("user", REMINDER)]
