"""Custom tools of `/v1/responses`: text that comes as the model writes it, whatever it writes."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import saying
from serving import slowed

from outpace.llm import LLM
from outpace.server.openai.responses.custom_input import CustomInput

PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Changes files."}
TEXT = "*** Begin\n" + "".join(f'+ line {i} says "é\\n"\n' for i in range(8)) + "*** End\n"
CALL = f'<tool_call>\n{{"name": "apply_patch", "arguments": {json.dumps({"input": TEXT})}}}\n</tool_call>'

texts = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\/\n\t\u2028😀'))
halves = st.text(st.characters(categories=["Cs"]) | st.sampled_from("a😀"))
"""With lone halves of surrogate pairs."""


def read_in_pieces(arguments: str, data: st.DataObject) -> tuple[list[str], CustomInput]:
    """What was told, piece by piece."""
    reader = CustomInput()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arguments)), max_size=12)))
    pieces = [arguments[i:j] for i, j in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
    return [reader.push(piece) for piece in pieces], reader


@given(text=texts, plain=st.booleans(), indent=st.sampled_from([None, 2]), data=st.data())
def test_text_comes_as_it_is_written(
    text: str, *, plain: bool, indent: int | None, data: st.DataObject
) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=plain, indent=indent)
    told, reader = read_in_pieces(arguments, data)
    assert "".join(told) == text, "all of it before the end"
    assert (reader.finish(), reader.text) == ("", text)


@given(text=texts, plain=st.booleans(), data=st.data())
def test_what_was_told_of_a_cut_answer_stays(text: str, *, plain: bool, data: st.DataObject) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=plain)
    cut = data.draw(st.integers(len('{"input": "'), len(arguments)))
    told, reader = read_in_pieces(arguments[:cut], data)
    rest = reader.finish()
    assert "".join(told) + rest == reader.text
    assert text.startswith(reader.text)


@given(text=halves, data=st.data())
def test_every_text_can_be_sent(text: str, data: st.DataObject) -> None:
    told, reader = read_in_pieces(json.dumps({"input": text}), data)
    rest = reader.finish()
    assert "".join(told) + rest == reader.text
    assert len(reader.text.encode()) > 0 or not text
    assert reader.text.replace("\ufffd", "") == "".join(
        c for c in _paired(text) if not "\ud800" <= c <= "\udfff"
    )


def _paired(text: str) -> str:
    """The text as JSON readers have it: halves that follow each other are one character."""
    return json.loads(json.dumps(text))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"other": 1, "input": "x"}', "x"),
        ('{"other": 1, "input": "\\ud800"}', "\ufffd"),
        ('{"input": "x", "other": 1}', "x"),
        ('{"input": "x", "input": "xyz"}', "xyz"),
        ('{"input": "x", "input": "a"}', "x"),
        ('{"input": 5}', '{"input": 5}'),
        ('{"other": 1}', '{"other": 1}'),
        ("{}", "{}"),
        ('{"inp', '{"inp'),
        ('{"input": "\\q', ""),
        ("", ""),
    ],
)
def test_other_arguments(arguments: str, text: str) -> None:
    reader = CustomInput()
    told = "".join(reader.push(character) for character in arguments) + reader.finish()
    assert told == reader.text == text


def test_a_patch_streams(client: openai.OpenAI, served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client sees how far it is, and no proxy takes the stream for dead."""
    slowed(served_llm, monkeypatch, 0.02)
    with saying(served_llm, CALL):
        events: list[Any] = list(
            client.responses.create(model="test-model", input="Change it.", tools=[PATCH], stream=True)
        )
    deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    [done] = [event.input for event in events if event.type == "response.custom_tool_call_input.done"]
    assert len(deltas) > 10
    assert "".join(deltas) == done == TEXT
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[0].input == TEXT


def test_a_patch_that_is_cut_is_what_came(client: openai.OpenAI, served_llm: LLM) -> None:
    fields: dict[str, Any] = {"model": "test-model", "input": "Change it.", "tools": [PATCH]}
    with saying(served_llm, CALL):
        response = client.responses.create(**fields, max_output_tokens=40)
        events: list[Any] = list(client.responses.create(**fields, max_output_tokens=40, stream=True))
    [call] = response.output
    assert (call.type, call.status) == ("custom_tool_call", "incomplete")
    assert len(call.input) > 10
    assert TEXT.startswith(call.input)
    deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == call.input
