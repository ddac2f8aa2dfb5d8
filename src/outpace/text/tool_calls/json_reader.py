"""Calls written as JSON objects, `{"name": ..., "arguments": {...}}`, read character by character.

What models often get wrong inside of strings is put right on the way: line ends that are not escaped, and
backslashes before characters that need none. Apart from that, arguments pass as they are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from outpace.text.tool_calls.sink import SPACE, Reading, Sink, escaped, load, skip_space

_NAME_KEYS = frozenset({"name"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
_OTHER_KEYS = frozenset({"type", "id"})  # that calls may have
_CLOSE = {"{": "}", "[": "]"}
_FOREIGN = frozenset("<`")  # outside of strings no JSON has them: an end mark comes, brackets or not
_HEX = frozenset("0123456789abcdefABCDEF")
Emit = Callable[[str], object]


def read_call(sink: Sink) -> Reading[str | None]:
    """The rest of a call whose first brace has been read.

    Returns the character that follows the call where that had to be read, a space where it had not; None
    where this is no call, or the answer ends.
    """
    character = yield from skip_space()
    if character == "{":  # twice, as the template of some Qwen2.5 files shows it
        character = yield from skip_space()
    name: str | None = None
    arguments = ""
    while character == '"':
        key = yield from _name()
        # An object without marks whose first field is no call's is text, and need not be held back.
        known = key in _NAME_KEYS or key in _ARGUMENT_KEYS or key in _OTHER_KEYS
        if (sink.known_names and not known) or (yield from skip_space()) != ":":
            return None
        character = yield from skip_space()
        if key in _NAME_KEYS and character == '"':
            name = yield from _name()
            if not sink.may_call(name):
                return None
            character = " "
        elif key in _ARGUMENT_KEYS and name is not None and character == "{":
            return (yield from _streamed(sink, name))
        else:
            text: list[str] = []
            character = yield from _value(character, text.append)
            if key in _ARGUMENT_KEYS:
                arguments = "".join(text)
        if character in SPACE:
            character = yield from skip_space()
        if character == "}":
            return _whole(sink, name, arguments)
        if character != ",":
            return None
        character = yield from skip_space()
    return None


def _whole(sink: Sink, name: str | None, arguments: str) -> str | None:
    """A call whose object is complete: its arguments came before the name, as a string, or not at all."""
    if name is None or (sink.known_names and not arguments):
        return None
    try:
        value: Any = load(arguments or "{}")
        if isinstance(value, str):
            value = load(value)
            arguments = json.dumps(value)
    except ValueError:
        return None
    if not isinstance(value, dict | None):
        return None
    sink.begin(name)
    sink.arguments(arguments if value else "{}")
    sink.end()
    return " "


def _streamed(sink: Sink, name: str) -> Reading[str | None]:
    """The arguments, from their first brace on, and what is left of the call."""
    sink.begin(name)
    follows = yield from read_arguments(sink)
    if follows is None:
        return None
    while True:  # further fields of the call say nothing
        if follows in SPACE:
            follows = yield from skip_space()
        if follows == "}":
            sink.drop()
            return " "
        if follows != ",":
            return follows
        if (yield from skip_space()) != '"':
            return None
        yield from _name()
        if (yield from skip_space()) != ":":
            return None
        follows = yield from _value((yield from skip_space()), len)


def read_arguments(sink: Sink) -> Reading[str | None]:
    """An object whose first brace has been read, as a call's arguments, and the end of the call.

    Returns as `read_call`.
    """
    sink.arguments("{")
    follows = yield from _brackets("{", sink.arguments)
    if follows is not None:
        sink.end(follows.strip())
    return follows


def _brackets(opened: str, emit: Emit) -> Reading[str | None]:
    """The rest of a list or an object; returns as `read_call`."""
    stack = [_CLOSE[opened]]
    while stack:
        character = yield
        if not character:
            return None
        if character in _FOREIGN:
            emit("".join(reversed(stack)))
            return character
        emit(character)
        if character == '"':
            if not (yield from _string(emit)):
                return None
        elif character in _CLOSE:
            stack.append(_CLOSE[character])
        elif character in "}]":
            stack.pop()
    return " "


def _value(character: str, emit: Emit) -> Reading[str]:
    """A value whose first character has been read; returns the one after it, or a space."""
    emit(character)
    if character in _CLOSE:
        return (yield from _brackets(character, emit)) or ""
    if character == '"':
        return " " if (yield from _string(emit)) else ""
    while True:
        character = yield
        if not (character.isalnum() or character in {"+", "-", "."}):
            return character
        emit(character)


def _name() -> Reading[str]:
    """The text of a string whose first quote has been read; "" for one that is none."""
    text: list[str] = []
    if not (yield from _string(text.append)):
        return ""
    try:
        return load('"' + "".join(text))
    except ValueError:
        return ""


def _string(emit: Emit) -> Reading[bool]:
    """The rest of a string, made well-formed, its last quote included; False where the answer ends in it."""
    character = yield
    while character:
        if character == "\\":
            character = yield from _escape(emit)
            continue
        emit(escaped(character) if character < " " else character)
        if character == '"':
            return True
        character = yield
    return False


def _escape(emit: Emit) -> Reading[str]:
    """What follows a backslash; returns the character after it."""
    character = yield
    if character == "u":
        digits = ""
        while len(digits) < 4:
            character = yield
            if character not in _HEX:
                emit("\\\\u" + digits)
                return character
            digits += character
        emit("\\u" + digits)
    elif not character:
        emit("\\")
        return ""
    elif character in '"\\/bfnrt':
        emit("\\" + character)
    elif character == "'":
        emit(character)
    else:
        emit("\\\\" + escaped(character))
    return (yield)
