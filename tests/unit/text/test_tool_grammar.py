"""Grammars of calls: each family's form is admitted, read back as those calls, and nothing else is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from outpace.text.tool_calls.families import FAMILIES, HERMES, PLAIN_JSON, THOUGHTS, Family
from outpace.text.tool_calls.form import AnswerForm
from outpace.text.tool_calls.grammar import (
    MAX_SCHEMAS,
    CallSpec,
    TextArgument,
    answer_grammar,
    choice_grammar,
    json_grammar,
)
from outpace.text.tool_calls.parser import AnswerParser
from outpace.text.tool_calls.pieces import CallArguments, CallBegin, Text, merged
from outpace.types import Grammar

BYTES = LLTokenizer("byte")
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
CALLS = [CallSpec("weather", WEATHER, strict=True), CallSpec("bash", {})]
INTEGER = json_grammar({"type": "integer"}, strict=True)
FAMILY = {family.name: family for family in reversed((*FAMILIES, PLAIN_JSON))}
ROME: dict[str, Any] = {"city": "Rome", "days": 3, "unit": "kelvin"}


def form(family: Family, *, thinks: bool = False) -> AnswerForm:
    return AnswerForm(family, THOUGHTS[0] if thinks else None, reads_tools=True, special_marks={})


def grammar(family: Family = HERMES, **fields: Any) -> Grammar:
    thinks = fields.pop("thinks", False)
    asked: dict[str, Any] = {"required": True, "parallel": True, "opened": False, **fields}
    return answer_grammar(form(family, thinks=thinks), asked.pop("calls", CALLS), **asked)


def admits(grammar: Grammar, text: str) -> bool:
    """Whether the text as a whole is in the grammar."""
    assert grammar.kind == "lark"
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar.source), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = list(text.encode())
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def written(family: str, *calls: tuple[str, dict[str, Any]]) -> str:
    key = FAMILY[family].arguments_key
    objects = [json.dumps({"name": name, key: arguments}) for name, arguments in calls]
    match family:
        case "mistral":
            return f"[TOOL_CALLS][{', '.join(objects)}]"
        case "qwen-tags":
            tags = [
                "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
                for _, arguments in calls
            ]
            objects = [f"<function={calls[i][0]}>\n{tags[i]}</function>" for i in range(len(calls))]
            return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)
        case "hermes":
            return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)
        case _:
            return "\n".join(objects)


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_admitted_is_read_as_calls(name: str) -> None:
    calls = [("weather", ROME), ("bash", {}), ("weather", {"city": 'a "b"\n'})]
    text = written(name, *calls)
    assert admits(grammar(FAMILY[name]), text)
    assert admits(grammar(FAMILY[name]), written(name, calls[0]))
    reader = AnswerParser(FAMILY[name], {call.name: call.schema for call in CALLS})
    pieces = list(merged([*reader.push(text), *reader.finish()]))
    assert [piece.name for piece in pieces if isinstance(piece, CallBegin)] == [call[0] for call in calls]
    arguments = [json.loads(piece.text) for piece in pieces if isinstance(piece, CallArguments)]
    assert arguments == [call[1] for call in calls]
    assert not any(isinstance(piece, Text) for piece in pieces)


@pytest.mark.parametrize("name", FAMILY)
def test_required_calls_are_calls_and_nothing_else(name: str) -> None:
    required = grammar(FAMILY[name])
    good = written(name, ("weather", ROME))
    for wrong in (
        "",
        "Rome",
        f"So. {good}",
        f"{good} Done.",
        good[:-1],
        written(name, ("whether", ROME)),
        written(name, ("weather", {**ROME, "days": "three"})),
        written(name, ("weather", {**ROME, "unit": "K"})),
        written(name, ("weather", {})),
    ):
        assert not admits(required, wrong), wrong
    two = written(name, ("weather", ROME), ("weather", ROME))
    assert admits(required, two)
    assert not admits(grammar(FAMILY[name], parallel=False), two)
    assert admits(grammar(FAMILY[name], parallel=False), good)
    assert not admits(grammar(FAMILY[name], calls=CALLS[1:]), good), "the named tool alone"


@pytest.mark.parametrize("name", FAMILY)
def test_text_is_free_up_to_a_call(name: str) -> None:
    free = grammar(FAMILY[name], required=False)
    good = written(name, ("weather", ROME))
    fence = "```python\nprint({})\n```"
    for text in ("", "Hello.", "a < b <tool [TOOL", fence, "```json", "So: {", good):
        assert admits(free, text), text
    assert not admits(free, written(name, ("weather", {**ROME, "days": "three"})))
    if FAMILY[name].written is not None:
        assert admits(free, f"So.\n{good}")
        assert admits(free, f"So.\n{good}\nAnd: {good} Done.")


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "qwen-tags"])
def test_calls_without_marks_are_held_to_the_schema_too(name: str) -> None:
    """What the reader takes for a call must fit, whatever the model leaves out."""
    free = grammar(FAMILY[name], required=False)
    key = FAMILY[name].arguments_key
    good = json.dumps({"name": "weather", key: ROME})
    wrong = json.dumps({"name": "weather", key: {"city": 5}})
    for around in ("{}", "```json\n{}\n```", "```\n{}\n```"):
        assert admits(free, around.replace("{}", good)), around
        assert not admits(free, around.replace("{}", wrong)), around
    marked = f"{written(name, ('weather', ROME))}\n" if FAMILY[name].written else ""
    for text in (f"\n{wrong}", f"{marked}{wrong}", f"{marked}\n ```json {wrong}", f"[{wrong}]", "{" + good):
        assert not admits(free, text), text


@pytest.mark.parametrize("name", FAMILY)
def test_thoughts_come_first(name: str) -> None:
    good = written(name, ("weather", ROME))
    closed = grammar(FAMILY[name], thinks=True)
    for text in (good, f"<think>\nHm <tool_call>\n</think>\n\n{good}", f"<think></think>{good}"):
        assert admits(closed, text), text
    opened = grammar(FAMILY[name], thinks=True, opened=True)
    assert admits(opened, f"Hm.\n</think>\n\n{good}")
    for text in (good, "</think>", f"</think>\n\n{good}</think>"):
        assert not admits(opened, text), text


def test_an_answer_of_a_schema_beside_calls() -> None:
    either = grammar(required=False, answer=INTEGER)
    assert admits(either, "5")
    assert admits(either, written("hermes", ("weather", ROME)))
    assert not admits(either, "five")
    alone = grammar(calls=[], required=False, answer=INTEGER, thinks=True)
    assert admits(alone, "<think>a</think>5")
    assert admits(alone, "5")


PATCH = r"""start: "*** Begin Patch" LF add+ "*** End Patch" LF?
add: "*** Add File: " /(.+)/ LF line+   // a file
line: "+" /(.*)/ LF -> line
%import common.LF
"""
PATCHED = '*** Begin Patch\n*** Add File: a "b"\\c.py\n+print("{}", \'\\n\')\n+\n*** End Patch'


def text_tool(kind: Any, source: str) -> CallSpec:
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    return CallSpec("patch", schema, text=TextArgument("input", Grammar(kind, source)))


def in_tags(text: str, family: str = "hermes") -> str:
    call = f"<function=patch>\n<parameter=input>\n{text}\n</parameter>\n</function>"
    return {
        "mistral": f"[TOOL_CALLS]{call}",
        "llama3": call,
        "json": call,
    }.get(family, f"<tool_call>\n{call}\n</tool_call>")


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("lark", PATCH, PATCHED, PATCHED.replace("+", "-")),
        ("lark", 'start: "a" %json {"type": "integer"} "}"', "a5}", "a5"),
        ("regex", r"\d+/[^/]+", '12/a "b"\nc', "12a"),
        ("regex", r"[\s\S]*", "any\n<b>\n", None),
        ("regex", "", "", "a"),
    ],
)
def test_texts_of_a_grammar_are_written_as_they_are(
    name: str, kind: Any, source: str, good: str, bad: str | None
) -> None:
    calls = [text_tool(kind, source), *CALLS]
    held = grammar(FAMILY[name], calls=calls)
    text, other = in_tags(good, name), written(name, ("weather", ROME))
    assert admits(held, text)
    assert admits(held, other)
    assert name == "mistral" or admits(held, f"{text}\n{other}\n{text}")
    assert admits(grammar(FAMILY[name], calls=calls[:1]), text)
    free = grammar(FAMILY[name], calls=calls, required=False)
    assert admits(free, f"So:\n{text}")
    assert bad is None or not admits(held, in_tags(bad, name))
    assert bad is None or not admits(free, f"So:\n{in_tags(bad, name)}")
    assert name == "qwen-tags" or not admits(held, written(name, ("patch", {"input": good})))
    reader = form(FAMILY[name]).parser({call.name: call.schema for call in calls}, own_marks=True)
    assert reader is not None
    pieces = list(merged([*reader.push(f"So:\n{text}"), *reader.finish()]))
    assert [json.loads(piece.text) for piece in pieces if isinstance(piece, CallArguments)] == [
        {"input": good}
    ]
    assert [piece for piece in pieces if isinstance(piece, Text)] == [Text("So:")]


@pytest.mark.parametrize("name", ["llama3", "json"])
def test_tags_are_the_marks_of_families_without_marks(name: str) -> None:
    """Llama writes `<function=NAME>{...}</function>` too, which the reader takes in the midst of text."""
    good = f"<function=weather>{json.dumps(ROME)}</function>"
    wrong = good.replace('"days": 3', '"days": "three"')
    free = grammar(FAMILY[name], required=False)
    for text in (good, f"So: {good}", f"So: {good} And {good} Done."):
        assert admits(free, text)
        assert not admits(free, text.replace(good, wrong))
    assert admits(grammar(FAMILY[name]), good)
    reader = form(FAMILY[name]).parser({call.name: call.schema for call in CALLS}, own_marks=True)
    assert reader is not None
    pieces = list(merged([*reader.push(f"So: {good}"), *reader.finish()]))
    assert [json.loads(piece.text) for piece in pieces if isinstance(piece, CallArguments)] == [ROME]


def test_an_answer_of_a_grammar_beside_calls() -> None:
    for kind, source in (("regex", "a/b|"), ("lark", 'start: "a/b" | ""')):
        either = grammar(required=False, answer=Grammar(kind, source))
        for text in ("a/b", "", written("hermes", ("weather", ROME))):
            assert admits(either, text)
        assert not admits(either, "a")


def test_a_choice_of_texts() -> None:
    held = choice_grammar(["yes", 'a "b"\n/', ""])
    assert all(admits(held, text) for text in ("yes", 'a "b"\n/', ""))
    assert not admits(held, "no")


def test_marks_that_are_special_tokens() -> None:
    special = AnswerForm(FAMILY["mistral"], None, reads_tools=True, special_marks={"[TOOL_CALLS]": 5})
    source = answer_grammar(special, CALLS, required=False, parallel=True, opened=False).source
    assert "up_to_call: FREE <[5]>" in source
    assert '"[TOOL_CALLS]"' not in source
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(source), BYTES) == ""


def test_strict_schemas_are_refused_where_others_are_read_loosely() -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "format": "no-such-format"}}}
    for strict in (False, True):
        for made in (grammar(calls=[CallSpec("f", odd, strict)]), json_grammar(odd, strict=strict)):
            source = made.source
            if made.kind == "json_schema":
                source = LLMatcher.grammar_from_json_schema(json.loads(source))
            else:
                source = LLMatcher.grammar_from_lark(source)
            assert bool(LLMatcher.validate_grammar(source, BYTES)) is strict


@pytest.mark.parametrize("schema", [{}, {"type": "string"}, {"properties": {}}, {"$defs": {"a": {}}}])
def test_arguments_are_an_object_whatever_the_schema_says(schema: Any) -> None:
    made = grammar(calls=[CallSpec("f", schema)])
    assert admits(made, written("hermes", ("f", {})))
    assert not admits(made, '<tool_call>\n{"name": "f", "arguments": "a"}\n</tool_call>')


def test_tags_share_definitions() -> None:
    schema = {
        "$defs": {"size": {"type": "integer"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/size"}, "b": True, "c": {"type": ["string", "null"]}},
    }
    made = grammar(FAMILY["qwen-tags"], calls=[CallSpec("f", schema)])
    assert admits(made, written("qwen-tags", ("f", {"a": 5, "b": "x <b>"})))
    assert not admits(made, written("qwen-tags", ("f", {"a": "x"})))


def test_a_thousand_tools_compile_quickly() -> None:
    properties = {f"p{i}": {"type": "string", "description": "x" * 40} for i in range(6)}
    calls = [CallSpec(f"tool_{i}", {"type": "object", "properties": properties}) for i in range(1000)]
    begin = time.process_time()
    made = grammar(calls=calls)
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(made.source))
    seconds = time.process_time() - begin
    assert not matcher.is_error()
    assert seconds < 0.5, seconds
    assert admits(made, written("hermes", ("tool_999", {"p0": "a"})))
    assert not admits(made, written("hermes", ("tool_1000", {})))
    assert len(calls) > MAX_SCHEMAS
