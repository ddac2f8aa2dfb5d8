"""Which family a model speaks, which of its marks are special tokens, and tools told in the system prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outpace.errors import InvalidParameterError
from outpace.models.checkpoint import open_checkpoint
from outpace.text.chat_template import ChatTemplate
from outpace.text.detokenizer import Detokenizer
from outpace.text.tokenizer import Tokenizer
from outpace.text.tool_calls.families import (
    HERMES,
    PLAIN_JSON,
    THOUGHTS,
    family_of,
    opens_thoughts,
    reads_tools,
    thoughts_of,
)
from outpace.text.tool_calls.form import AnswerForm
from outpace.text.tool_calls.pieces import CallBegin
from outpace.text.tool_calls.tool_prompt import told_in_text

# The telling parts of templates as their makers publish them.
TEMPLATES = {
    "mistral": "[AVAILABLE_TOOLS] {{ tools }}[/AVAILABLE_TOOLS]{{ '[TOOL_CALLS] [' }}",
    "qwen-tags": "{% if tools %}<tool_call>\n<function=example>\n<parameter=a>\n</parameter>\n</function>",
    "hermes": '{% if tools %}<tool_call>\n{"name": <function-name>, "arguments": <args>}\n</tool_call>',
    "llama3": '{% if tools %}{"name": name, "parameters": dictionary}{{ "<|python_tag|>" }}<|eot_id|>',
    "json": "{% if tools %}Answer with a JSON object.",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_tell_the_family(name: str) -> None:
    assert family_of(TEMPLATES[name]).name == name
    assert reads_tools(TEMPLATES[name])


def test_a_template_without_tools_gets_the_hermes_form() -> None:
    assert family_of("{{ messages }}<|eot_id|>") is HERMES
    assert not reads_tools("{{ messages }} mytools_")
    assert family_of("{{ tools }}") is PLAIN_JSON


def test_thoughts() -> None:
    assert thoughts_of("{{ messages }}") is None
    assert thoughts_of("...{{ '<think>\\n\\n</think>\\n\\n' }}") is THOUGHTS[0]
    assert thoughts_of("...[/THINK]") is THOUGHTS[1]
    assert opens_thoughts("<|assistant|>\n<think>\n", THOUGHTS[0])
    assert not opens_thoughts("<|assistant|>\n<think>\n\n</think>\n\n", THOUGHTS[0])
    assert not opens_thoughts("<think>", None)


@pytest.fixture(scope="module")
def smollm(model_135m: Path) -> Tokenizer:
    return Tokenizer.from_checkpoint(open_checkpoint(model_135m))


def test_real_models(smollm: Tokenizer, model_05b: Path) -> None:
    qwen = AnswerForm.of(Tokenizer.from_checkpoint(open_checkpoint(model_05b)))
    assert (qwen.family, qwen.thoughts, qwen.reads_tools) == (HERMES, None, True)
    assert qwen.shown_token_ids(calls=True) == (), "<tool_call> is text in this vocabulary"
    form = AnswerForm.of(smollm)
    assert (form.family, form.thoughts, form.reads_tools) == (HERMES, None, False)
    assert form.parser(None) is None
    assert form.parser({}) is not None


def test_marks_that_are_special_tokens_are_shown_on_request(
    smollm: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `[TOOL_CALLS]` in Mistral's vocabularies: here another special token stands in for it."""
    from outpace.text.tool_calls import families

    special = "<repo_name>"
    number = smollm.token_id(special)
    assert number in smollm.special_ids
    marks = families.Marks(special)
    mistral = families.Family("mistral", ("[TOOL_CALLS]",), (marks,), "list", written=marks)
    monkeypatch.setattr(families, "FAMILIES", (mistral,))
    monkeypatch.setattr(smollm, "chat_template", ChatTemplate("{{ tools }}[TOOL_CALLS]", "", ""))
    form = AnswerForm.of(smollm)
    assert form.special_marks == {special: number}
    assert form.shown_token_ids(calls=True) == (number,)
    assert form.shown_token_ids(calls=False) == ()
    text = f'{special}[{{"name": "f", "arguments": {{}}}}]'
    token_ids = smollm.encode(text, add_special=False, parse_special=True)
    assert token_ids[0] == number
    hidden = Detokenizer(smollm).push([*token_ids, 1])
    shown = Detokenizer(smollm, shown=form.shown_token_ids(calls=True)).push([*token_ids, 1])
    assert (hidden, shown) == (text.removeprefix(special), text)
    parser = form.parser({"f": {}})
    assert parser is not None
    assert parser.push(shown)[0] == CallBegin("f")


def test_shown_tokens_must_exist(smollm: Tokenizer) -> None:
    with pytest.raises(InvalidParameterError, match="out of range"):
        Detokenizer(smollm, shown=[smollm.vocab_size])


def test_a_second_template_is_the_one_that_counts(smollm: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages }}", "", "", tool_source=TEMPLATES["mistral"])
    monkeypatch.setattr(smollm, "chat_template", template)
    assert AnswerForm.of(smollm).family.name == "mistral"
    monkeypatch.setattr(smollm, "chat_template", None)
    assert AnswerForm.of(smollm).family is HERMES


TOOLS: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_tools_are_told_in_the_system_prompt() -> None:
    user = {"role": "user", "content": "Hi"}
    first, second = told_in_text([user], TOOLS)
    assert first["role"] == "system"
    assert first["content"].startswith("# Tools\n")
    assert json.dumps(TOOLS[0]) in first["content"].splitlines()
    assert second == user
    [system, *rest] = told_in_text([{"role": "system", "content": "Be terse."}, user], TOOLS)
    assert system["content"] == "Be terse.\n\n" + first["content"]
    assert rest == [user]


def test_calls_and_results_become_text() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
    told = told_in_text(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "tool_call_id": "a", "content": ""},
            {"role": "user", "content": "Well?"},
        ],
        None,
    )
    said = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'
    results = "<tool_response>\n1\n</tool_response>\n<tool_response>\n\n</tool_response>\nWell?"
    assert told == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": f"{said}\n{said}"},
        {"role": "user", "content": results},
    ]
