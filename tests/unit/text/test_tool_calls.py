"""Reading calls and thoughts: recorded answers, cut at every place, and anything at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outpace.text.tool_calls.families import FAMILIES, HERMES, PLAIN_JSON, THOUGHTS, Family
from outpace.text.tool_calls.parser import AnswerParser
from outpace.text.tool_calls.pieces import (
    CallArguments,
    CallBegin,
    CallEnd,
    Piece,
    Text,
    Thinking,
    merged,
)

TEXT = {"type": "string"}
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": TEXT, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
    },
    "read_file": {"type": "object", "properties": {"path": TEXT}, "required": ["path"]},
    "write_file": {
        "type": "object",
        "properties": {"path": TEXT, "content": TEXT},
        "required": ["path", "content"],
    },
    "bash": {
        "type": "object",
        "properties": {"command": TEXT, "timeout": {"type": "integer"}},
        "required": ["command"],
    },
}
FAMILY: dict[str, Family] = {family.name: family for family in reversed((*FAMILIES, PLAIN_JSON))}
ANSWERS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "data/answers.jsonl").read_text().splitlines()
]


def parser(answer: dict[str, Any]) -> AnswerParser:
    tools = {name: TOOLS[name] for name in answer["tools"]}
    thoughts = THOUGHTS[0] if answer.get("thoughts") else None
    return AnswerParser(FAMILY[answer["family"]], tools, thoughts, thinking=answer.get("thinking", False))


def read(reader: AnswerParser, pieces: Sequence[str]) -> list[Piece]:
    read = [piece for text in pieces for piece in reader.push(text)]
    return list(merged([*read, *reader.finish()]))


def plain(piece: Piece) -> list[str]:
    match piece:
        case Text(text):
            return ["text", text]
        case Thinking(text):
            return ["thinking", text]
        case CallBegin(name):
            return ["begin", name]
        case CallArguments(text):
            return ["arguments", text]
        case CallEnd():
            return ["end"]


def hermes(text: str, *cuts: int, tools: Any = TOOLS) -> list[Piece]:
    places = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    return read(AnswerParser(HERMES, tools, THOUGHTS[0]), pieces)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["name"])
def test_answers_cut_anywhere(answer: dict[str, Any]) -> None:
    text = answer["text"]
    whole = read(parser(answer), [text])
    assert [plain(piece) for piece in whole] == answer["pieces"]
    assert read(parser(answer), list(text)) == whole, "character by character"
    for cut in range(1, len(text)):
        assert read(parser(answer), [text[:cut], text[cut:]]) == whole, cut
    arguments = [piece.text for piece in whole if isinstance(piece, CallArguments)]
    for each in arguments[: whole.count(CallEnd())]:
        if "not quite" not in answer["name"]:
            assert isinstance(json.loads(each), dict)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["name"])
def test_without_tools_all_is_text(answer: dict[str, Any]) -> None:
    text = answer["text"]
    assert read(AnswerParser(FAMILY[answer["family"]], None), list(text)) == [Text(text)]


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    reader = AnswerParser(HERMES, TOOLS)
    steps: list[tuple[str, list[Piece]]] = [
        ("I will", [Text("I will")]),
        (" look", [Text(" look")]),
        (".\n", [Text(".")]),
        ("<tool", []),
        ("_call>\n", []),
        ('{"name": "ba', []),
        ('sh", "arg', []),
        ('uments": ', []),
        ('{"com', [CallBegin("bash"), CallArguments('{"com')]),
        ('mand": "ls', [CallArguments('mand": "ls')]),
        (' -l"', [CallArguments(' -l"')]),
        ("}", [CallArguments("}"), CallEnd()]),
        ("}\n</tool_", []),
        ("call>\n\n", []),
        ("Done <b", [Text("Done <b")]),
        (" <tool_cal", [Text("")][:0]),
        ("endar>", [Text(" <tool_calendar>")]),
    ]
    for text, pieces in steps:
        assert reader.push(text) == pieces, text
    assert reader.finish() == []
    assert (reader.num_begun, reader.num_calls) == (1, 1)


def test_an_object_that_can_be_no_call_is_not_held_back() -> None:
    reader = AnswerParser(PLAIN_JSON, TOOLS)
    assert reader.push('{"city": ') == [Text('{"city":')]
    assert reader.push('"Paris"') == [Text(' "Paris"')]


def test_thoughts_come_at_once_and_only_at_the_beginning() -> None:
    reader = AnswerParser(HERMES, TOOLS, THOUGHTS[0])
    assert reader.push("\n<thi") == []
    assert reader.push("nk>\nI see") == [Thinking("I see")]
    assert reader.push(" it</th") == [Thinking(" it")]
    assert reader.push("ink> Yes") == [Text("Yes")]
    assert reader.push(" <think>no</think>") == [Text(" <think>no</think>")]


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "<", "<think", "<tool_call>", "{", "```", "[", '{"name', "\\"]
)
def test_short_answers_are_themselves(text: str) -> None:
    assert hermes(text) == ([Text(text)] if text else [])


def test_strings_are_made_well_formed() -> None:
    said = '{"name": "bash", "arguments": {"command": "a\t\\x\\u12\\u00e9\\uD83D\\"\\/é\\\n"}}'
    [_, arguments, _] = hermes(f"<tool_call>{said}</tool_call>")
    assert isinstance(arguments, CallArguments)
    assert json.loads(arguments.text) == {"command": 'a\t\\x\\u12é\ud83d"/é\\\n'}


def test_names_that_no_client_could_be_sent_are_text() -> None:
    text = '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'
    assert hermes(text) == [Text(text)]


def test_nesting_without_end() -> None:
    deep = '{"a":' * 50_000
    assert hermes(f'<tool_call>{{"name": "f", "arguments": {deep}')[1] == CallArguments(deep)
    for text in (
        f'<tool_call>{{"arguments": {deep}',
        "[" * 50_000,
        f'{{"name": "bash", "arguments": [{deep}',
    ):
        assert hermes(text) == [Text(text)]
    closed = '{"arguments": ' + deep + "1" + "}" * 50_000 + ', "name": "f"}'
    assert hermes(f"<tool_call>{closed}</tool_call>") == [Text(f"<tool_call>{closed}</tool_call>")]


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<tools>", "</tools>", "<think>", "</think>", "```", "```json\n"),
    *(
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "<function=",
        "<function=bash>",
        "</function>",
    ),
    *("<parameter=", "<parameter=timeout>", "</parameter>", '{"name": "bash"', ', "arguments": ', "{", "}"),
    *("[", "]", '"', "\\", ",", ";", ":", "\n", " ", "bash", "null", "1e5", "é", "\x00", '"name"', '"id": 1'),
    *('{"command": "ls"}', '{"name": "bash", "arguments": {"command": "ls"}}', "<", ">", "text", "\\u00"),
]
some_text = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=14).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    text=some_text,
    cuts=st.lists(st.integers(0, 200), max_size=8),
    family=st.sampled_from([*FAMILIES, PLAIN_JSON]),
    thinking=st.booleans(),
)
@example(
    text="<function=bash><parameter=timeout>1</parameter><parameter=\n",
    cuts=[],
    family=FAMILIES[1],
    thinking=False,
)
def test_anything_at_all(text: str, cuts: list[int], family: Family, *, thinking: bool) -> None:
    """Whatever comes, and however it is cut: the same pieces, well-formed, and nothing lost."""

    def reader() -> AnswerParser:
        return AnswerParser(family, TOOLS, THOUGHTS[0] if thinking else None, thinking=thinking)

    whole = read(reader(), [text])
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert read(reader(), [text[a:b] for a, b in pairwise(places)]) == whole
    assert read(reader(), list(text)) == whole
    is_open = False
    for piece in whole:
        assert not isinstance(piece, Text | Thinking | CallArguments) or piece.text
        assert not isinstance(piece, CallArguments | CallEnd) or is_open
        is_open = isinstance(piece, CallBegin) or (is_open and isinstance(piece, CallArguments))
    if not thinking and not any(isinstance(piece, CallBegin) for piece in whole):
        assert "".join(piece.text for piece in whole if isinstance(piece, Text)) == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), st.dictionaries(st.text(), values)), min_size=1),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    marks=st.booleans(),
)
def test_what_is_well_formed_comes_out_as_it_went_in(
    calls: list[tuple[str, Any]], indent: int | None, *, ascii_only: bool, marks: bool
) -> None:
    written = [
        json.dumps({"name": name, "arguments": arguments}, indent=indent, ensure_ascii=ascii_only)
        for name, arguments in calls
    ]
    text = "\n".join(f"<tool_call>\n{each}\n</tool_call>" if marks else each for each in written)
    pieces = hermes(text, *range(1, len(text), 7))
    arguments = [json.loads(piece.text) for piece in pieces if isinstance(piece, CallArguments)]
    names = [piece.name for piece in pieces if isinstance(piece, CallBegin)]
    assert list(zip(names, arguments, strict=True)) == calls
    assert len(pieces) == 3 * len(calls)


@settings(max_examples=200, deadline=None)
@given(arguments=st.dictionaries(st.text("abc-_é", min_size=1), st.text() | st.just("<b>\n</b>\n")))
def test_tags_become_json(arguments: dict[str, str]) -> None:
    if any("</parameter>" in value for value in arguments.values()):
        return
    tags = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in arguments.items())
    text = f"<tool_call>\n<function=read_file>\n{tags}</function>\n</tool_call>"
    begin, said, end = hermes(text, *range(1, len(text), 5))
    assert (begin, end) == (CallBegin("read_file"), CallEnd())
    assert isinstance(said, CallArguments)
    assert json.loads(said.text) == arguments


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, "5", 5),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "true", True),
        ({"type": "array"}, '["a"]', ["a"]),
        ({"type": "object"}, "{'a'}", "{'a'}"),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "integer"}]}, " 5 ", 5),
        ({"type": "number"}, "NaN", "NaN"),
        ({}, "5", "5"),
        ({"type": "string"}, "5", "5"),
        ({"type": 7}, "5", 5),
        (True, "5", "5"),
    ],
)
def test_schemas_say_what_tags_mean(schema: Any, text: str, value: Any) -> None:
    tools = {"f": {"properties": {"a": schema}}}
    [_, said, _] = hermes(f"<function=f><parameter=a>{text}</parameter></function>", tools=tools)
    assert isinstance(said, CallArguments)
    assert json.loads(said.text) == {"a": value}


@pytest.mark.parametrize("schema", [{}, {"properties": []}, {"properties": {"a": 5}}])
def test_schemas_may_be_anything(schema: Any) -> None:
    [_, said, _] = hermes("<function=f><parameter=a>5</parameter></function>", tools={"f": schema})
    assert said == CallArguments('{"a": "5"}')
