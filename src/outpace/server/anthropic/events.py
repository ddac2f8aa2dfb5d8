"""A message on its way out: as events, or collected into one piece."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from outpace.server.encoding import to_json

SIGNATURE = "unsigned"
"""Stands for the API's signature of thoughts, which clients send back with them and some insist on."""
PING = 'event: ping\ndata: {"type":"ping"}\n\n'


def event(kind: str, fields: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {to_json({'type': kind, **fields})}\n\n"


class MessageEvents:
    """Writes a message's events. At any time at most one content block is open."""

    def __init__(self) -> None:
        self._num_blocks = 0
        self._open = ""  # the open block's type
        self._delta = ("", "")  # what is around a delta's text in the open block

    def start(self, message: Mapping[str, Any]) -> str:
        """The first event; `message` is without its content."""
        return event("message_start", {"message": message})

    def text(self, text: str) -> str:
        """More of the answer's text."""
        return self._more("text", {"text": ""}, "text_delta", "text", text)

    def thinking(self, text: str) -> str:
        """More of the model's thoughts."""
        fields = {"thinking": "", "signature": ""}
        return self._more("thinking", fields, "thinking_delta", "thinking", text)

    def tool_use(self, call_id: str, name: str) -> str:
        """A call of a tool begins; its input follows."""
        fields: dict[str, Any] = {"id": call_id, "name": name, "input": {}}
        return self._begin("tool_use", fields, "input_json_delta", "partial_json")

    def tool_input(self, text: str) -> str:
        """More of the JSON that is the call's input."""
        before, after = self._delta
        return before + json.dumps(text, ensure_ascii=False) + after if text else ""

    def end(self, stop_reason: str, stop_sequence: str | None, usage: Mapping[str, Any]) -> str:
        """The last events."""
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        return (
            self._close()
            + event("message_delta", {"delta": delta, "usage": usage})
            + event("message_stop", {})
        )

    def _more(self, block: str, fields: Mapping[str, Any], delta: str, name: str, text: str) -> str:
        if not text:
            return ""
        begin = self._begin(block, fields, delta, name) if self._open != block else ""
        before, after = self._delta
        return begin + before + json.dumps(text, ensure_ascii=False) + after

    def _begin(self, block: str, fields: Mapping[str, Any], delta: str, name: str) -> str:
        close = self._close()
        index, self._open = self._num_blocks, block
        self._num_blocks += 1
        # Per token only the text between these is encoded.
        head = f'{{"type":"content_block_delta","index":{index},"delta":{{"type":"{delta}","{name}":'
        self._delta = (f"event: content_block_delta\ndata: {head}", "}}\n\n")
        start = {"index": index, "content_block": {"type": block, **fields}}
        return close + event("content_block_start", start)

    def _close(self) -> str:
        if not self._open:
            return ""
        index = self._num_blocks - 1
        text = ""
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            text = event("content_block_delta", {"index": index, "delta": delta})
        self._open = ""
        return text + event("content_block_stop", {"index": index})
