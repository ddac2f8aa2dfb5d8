"""The text for a custom tool, out of the arguments that the model writes."""

from __future__ import annotations

import json
import re
from typing import cast

from outpace.server.openai.responses.tools import CUSTOM_INPUT
from outpace.text.tool_calls.sink import load

_BEGIN = re.compile(rf'\s*\{{\s*"{CUSTOM_INPUT}"\s*:\s*"')
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_READY = re.compile(
    rf'(?:[^"\\]|\\["\\/bfnrt]|{_HIGH}{_LOW}|(?!{_HIGH})\\u[0-9a-fA-F]{{4}}|{_HIGH}(?=.{{6}}))*', re.DOTALL
)
"""Of a JSON string, what nothing later can change: a high surrogate waits for what may be its other half."""


class CustomInput:
    """Reads arguments as they come, and tells the text in them as it comes.

    The model was shown `{"input": TEXT}`. Arguments that do not begin like that are taken as they are once
    they are whole. Attributes: `text`, what was told so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._arguments: list[str] = []
        self._held = ""  # of the arguments
        self._has_begun = False

    def push(self, arguments: str) -> str:
        """More of the arguments; returns what it adds to the text."""
        self._arguments.append(arguments)
        self._held += arguments
        if not self._has_begun:
            begin = _BEGIN.match(self._held)
            if begin is None:
                return ""
            self._has_begun = True
            self._held = self._held[begin.end() :]
        ready = _READY.match(self._held)
        assert ready is not None, "it matches nothing, if need be"
        self._held = self._held[ready.end() :]
        return self._tell(json.loads(f'"{ready.group()}"', strict=False))

    def finish(self) -> str:
        """The arguments have ended; returns the rest of the text."""
        arguments = "".join(self._arguments)
        try:
            value = load(arguments)
        except ValueError:
            value = None
        text = cast("dict[str, object]", value).get(CUSTOM_INPUT) if isinstance(value, dict) else None
        if not self._has_begun:
            return self._tell(text if isinstance(text, str) else arguments)
        # What was told stays, also of an answer that was cut, or says it twice.
        whole = _sound(text) if isinstance(text, str) else ""
        return self._tell(whole[len(self.text) :] if whole.startswith(self.text) else "")

    def _tell(self, text: str) -> str:
        text = _sound(text)
        self.text += text
        return text


def _sound(text: str) -> str:
    """The text with every lone half of a surrogate pair, which no client could read, replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
