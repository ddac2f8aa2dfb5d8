"""Calls written as tags: `<function=NAME>`, then for each argument `<parameter=NAME>`, or JSON (Llama).

The values of parameters are text; the tool's schema says which of them mean JSON. What comes out is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from outpace.text.tool_calls.json_reader import read_arguments
from outpace.text.tool_calls.sink import SPACE, Reading, Sink, escaped, load, skip_space

FUNCTION = "<function="
_FUNCTION_END = "</function>"
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"
_MAX_NAME = 256
_PYTHON = {"True": True, "False": False, "None": None}


def read_tag_call(sink: Sink) -> Reading[str | None]:
    """The rest of a call of which `<function=` has been read.

    Returns what follows the call where that had to be read, a space where it had not; None where this is no
    call, or the answer ends.
    """
    name = _tidy((yield from _name()))
    if not name or not sink.may_call(name):
        return None
    character = yield from skip_space()
    if character == "{":
        sink.begin(name)
        follows = yield from read_arguments(sink)
        return None if follows is None else (yield from _end(sink, follows))
    num_parameters = 0
    while (tag := (yield from read_word(character, (_PARAMETER, _FUNCTION_END)))) == _PARAMETER:
        written = yield from _name()
        parameter = _tidy(written)
        if not parameter:
            if num_parameters:  # what cannot be taken back is left broken, for the caller to see
                sink.arguments(tag + written)
            return None
        if num_parameters == 0:
            sink.begin(name)
        sink.arguments("{" if num_parameters == 0 else ", ")
        sink.arguments(json.dumps(parameter, ensure_ascii=False) + ": ")
        yield from _value(sink, name, parameter)
        num_parameters += 1
        character = yield from skip_space()
    if not tag or (num_parameters == 0 and tag != _FUNCTION_END):
        return None
    if num_parameters == 0:
        sink.begin(name)
        sink.arguments("{")
    sink.arguments("}")
    follows = "" if tag == _FUNCTION_END else tag
    sink.end(follows)
    return follows or " "


def read_word(begun: str, words: tuple[str, ...]) -> Reading[str]:
    """The one of `words` that comes next, `begun` being its beginning.

    Else what was read to see that none does; "" where the answer ends.
    """
    word = begun
    while word and word not in words and any(each.startswith(word) for each in words):
        character = yield
        word = word + character if character else ""
    return word


def _end(sink: Sink, character: str) -> Reading[str | None]:
    """The end tag after arguments in JSON; they are whole without it."""
    if character in SPACE:
        character = yield from skip_space()
    word = yield from read_word(character, (_FUNCTION_END,))
    if word != _FUNCTION_END:
        return None
    sink.drop()
    return " "


def _name() -> Reading[str]:
    """What stands up to `>`, that included, or up to where it is no name."""
    name = ""
    while len(name) < _MAX_NAME:
        character = yield
        name += character
        if not character or character in ">\n":
            break
    return name


def _tidy(name: str) -> str:
    """The name in what `_name` read; "" where there is none."""
    return name[:-1].strip("\"' ") if name.endswith(">") else ""


def _value(sink: Sink, tool: str, parameter: str) -> Reading[None]:
    """A parameter's value up to its end tag, as JSON."""
    types = _types(sink, tool, parameter)
    if not types or types == {"string"}:
        sink.arguments('"')
        if (yield from _text(lambda text: sink.arguments(escaped(text)))):
            sink.arguments('"')
        return
    texts: list[str] = []
    complete = yield from _text(texts.append)
    text = "".join(texts)
    if complete:
        sink.arguments(json.dumps(_meant(text, types), ensure_ascii=False))
    else:  # as much as came
        sink.arguments('"' + escaped(text))


def _text(emit: Callable[[str], object]) -> Reading[bool]:
    """The text up to the end tag, without a line end at either side; False where the answer ends in it."""
    ends = ("\n" + _PARAMETER_END, _PARAMETER_END)
    held = ""
    character = yield
    if character == "\n":
        character = yield
    while character:
        held += character
        while held and not any(end.startswith(held) for end in ends):
            emit(held[0])
            held = held[1:]
        if held in ends:
            return True
        character = yield
    emit(held)
    return False


def _types(sink: Sink, tool: str, parameter: str) -> set[str]:
    """The JSON types that a parameter may have, by the tool's schema; empty where it does not say."""
    properties = sink.tools.get(tool, {}).get("properties")
    schema: Any = cast("dict[str, Any]", properties).get(parameter) if isinstance(properties, dict) else None
    if not isinstance(schema, dict):
        return set()
    said = cast("dict[str, Any]", schema).get("type")
    if isinstance(said, str):
        return {said}
    if isinstance(said, list):
        return {each for each in cast("list[Any]", said) if isinstance(each, str)}
    return set() if said is None and not {"anyOf", "oneOf", "allOf", "$ref"} & schema.keys() else {"any"}


def _meant(text: str, types: set[str]) -> Any:
    """The value that a text stands for; the text itself where it is of no type that is not a string's."""
    stripped = text.strip()
    try:
        value = load(stripped)
    except ValueError:
        return _PYTHON.get(stripped, text)
    return text if "string" in types and value is not None else value
