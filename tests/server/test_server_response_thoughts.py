"""Thoughts in `/v1/responses`, with a model that has some: shown, kept by the client and sent back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from scripted import saying
from serving import running

from outpace.llm import LLM
from outpace.server.openai.responses.conversation import read_items
from outpace.server.openai.responses.reasoning import unwrapped, wrapped
from outpace.server.openai.responses.schema import ResponseRequest
from outpace.server.openai.responses.tools import ShownTools
from outpace.text.chat_template import ChatTemplate

TEXT = "<think>\nI must look: é.\n</think>\n\nIt is fine."
WITH_THOUGHTS: Any = {"include": ["reasoning.encrypted_content"]}


@pytest.fixture
def thinking(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    template = served_llm.tokenizer.chat_template
    assert template is not None
    shown = template.source.replace(
        "message['content']", "(message.reasoning_content or '') + message.content"
    )
    assert shown != template.source
    source = shown + "{# </think> #}"
    monkeypatch.setattr(served_llm.tokenizer, "chat_template", ChatTemplate(source, "", "<|im_end|>"))
    with (
        running(served_llm) as server,
        saying(served_llm, TEXT),
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=30) as client,
    ):
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    request = {
        "model": "test-model",
        "input": "How is it?",
        "max_output_tokens": 60,
        "store": False,
        **fields,
    }
    return client.responses.create(**request)


def test_they_come_back_in_any_field(thinking: openai.OpenAI) -> None:
    first = ask(thinking, **WITH_THOUGHTS, store=True)
    thoughts, message = first.output
    assert (thoughts.type, thoughts.content[0].text) == ("reasoning", "I must look: é.")
    assert unwrapped(thoughts.encrypted_content) == "I must look: é."
    plain = {"type": "reasoning", "id": thoughts.id}
    forms: list[dict[str, Any]] = [
        thoughts.to_dict(),
        {**plain, "summary": [], "encrypted_content": thoughts.encrypted_content},
        {
            **plain,
            "summary": [{"type": "summary_text", "text": "I must look: é."}],
            "encrypted_content": "gA==",
        },
    ]
    asked = {"role": "user", "content": "How is it?"}
    again = {"role": "user", "content": "So?"}
    counts = {
        ask(thinking, input=[asked, form, message.to_dict(), again]).usage.input_tokens for form in forms
    }
    counts.add(ask(thinking, input=[again], previous_response_id=first.id).usage.input_tokens)
    assert len(counts) == 1, "one and the same prompt"
    without = ask(thinking, input=[asked, {**plain, "summary": []}, message.to_dict(), again])
    assert without.usage.input_tokens < min(counts)


def test_they_are_wrapped_where_the_client_asks(thinking: openai.OpenAI) -> None:
    assert ask(thinking).output[0].encrypted_content is None
    events: list[Any] = list(ask(thinking, **WITH_THOUGHTS, stream=True))
    done = next(event.item for event in events if event.type == "response.output_item.done")
    assert unwrapped(done.encrypted_content) == "I must look: é."
    assert events[-1].response.output[0].encrypted_content == done.encrypted_content


@pytest.mark.parametrize(
    "content", [None, "", "outpace1:", "outpace1:!", "outpace1:/w==", "gAAAAB", wrapped("")]
)
def test_what_is_not_ours_is_ignored(content: str | None) -> None:
    assert unwrapped(content) == ""


def test_content_is_read_first() -> None:
    item = {
        "type": "reasoning",
        "content": [{"type": "reasoning_text", "text": "content"}],
        "encrypted_content": wrapped("wrapped"),
        "summary": [{"type": "summary_text", "text": "summary"}],
    }
    for text in ("content", "wrapped", "summary"):
        [message] = read_items(ResponseRequest.model_validate({"input": [item]}), [], ShownTools(()))
        assert message["reasoning_content"] == text
        del item[{"content": "content", "wrapped": "encrypted_content", "summary": "summary"}[text]]
