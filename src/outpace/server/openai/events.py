"""Events as text. Per token only the varying middle of a chunk is encoded; the rest is kept ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.server.encoding import to_json


class EventText:
    """Writes `data: {...}` events whose fields other than `choices` and `usage` stay the same."""

    def __init__(self, head: Mapping[str, Any], *, with_usage: bool) -> None:
        self._head = "data: " + to_json(head).removesuffix("}") + ',"choices":['
        self._tail = ',"usage":null}\n\n' if with_usage else "}\n\n"

    def choice(
        self,
        index: int,
        content: str,
        *,
        logprobs: Mapping[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> str:
        """One choice's event; `content` is its own fields as JSON without the braces."""
        said = "null" if logprobs is None else to_json(logprobs)
        reason = "null" if finish_reason is None else f'"{finish_reason}"'
        choice = f'{{"index":{index},{content},"logprobs":{said},"finish_reason":{reason}}}'
        return f"{self._head}{choice}]{self._tail}"

    def usage(self, usage: Mapping[str, Any]) -> str:
        """The event after the last choice: no choices, but the usage."""
        return f'{self._head}],"usage":{to_json(usage)}}}\n\n'
