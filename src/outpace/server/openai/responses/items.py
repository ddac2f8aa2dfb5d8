"""An answer's items in the making: each piece becomes events, and what they add up to."""

from __future__ import annotations

from typing import Any

from outpace.server.answer import new_call_id
from outpace.server.conversation import call_arguments
from outpace.server.encoding import to_json
from outpace.server.openai.responses.custom_input import CustomInput
from outpace.server.openai.responses.reasoning import wrapped
from outpace.server.openai.responses.tools import CUSTOM_INPUT, ShownTools
from outpace.text.tool_calls.pieces import CallArguments, CallBegin, CallEnd, Piece, Text, Thinking


class ItemWriter:
    """Writes the events of one answer's items. At any time at most one item is open.

    `items` are those that are whole. Custom `tools` take text, which the model writes as an object.
    `wraps_thoughts`: reasoning items have `encrypted_content`.
    """

    def __init__(self, tools: ShownTools, *, short_ids: bool, wraps_thoughts: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self._tools = tools
        self._short_ids = short_ids
        self._wraps_thoughts = wraps_thoughts
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []  # of the open item
        self._input = CustomInput()  # of the open item, for a custom tool
        self._number = 0

    def event(self, kind: str, **fields: Any) -> str:
        """One event."""
        number, self._number = self._number, self._number + 1
        return f"event: {kind}\ndata: {to_json({'type': kind, 'sequence_number': number, **fields})}\n\n"

    def piece(self, piece: Piece) -> str:
        """The events of a piece."""
        match piece:
            case Text(text):
                return self._more("message", text, "response.output_text.delta", content_index=0, logprobs=[])
            case Thinking(text):
                return self._more("reasoning", text, "response.reasoning_text.delta", content_index=0)
            case CallBegin(name):
                return self.close() + self._begin_call(name)
            case CallArguments(text):
                assert self._open is not None
                if self._open["type"] == "custom_tool_call":
                    return self._input_delta(self._input.push(text))
                self._text.append(text)
                return self._delta("response.function_call_arguments.delta", text)
            case CallEnd():
                return self.close()

    def close(self, *, whole: bool = True) -> str:
        """End the open item, if there is one; not `whole`: the answer was cut."""
        item, text = self._open, "".join(self._text)
        if item is None:
            return ""
        at = {"item_id": item["id"], "output_index": len(self.items)}
        events = ""
        match item["type"]:
            case "message":
                part = _text_part(text)
                events += self.event(
                    "response.output_text.done", **at, content_index=0, text=text, logprobs=[]
                )
                events += self.event("response.content_part.done", **at, content_index=0, part=part)
                item["content"] = [part]
            case "reasoning":
                events += self.event("response.reasoning_text.done", **at, content_index=0, text=text)
                item["content"] = [{"type": "reasoning_text", "text": text}]
                if self._wraps_thoughts:
                    item["encrypted_content"] = wrapped(text)
            case "function_call":
                item["arguments"] = text
                events += self.event(
                    "response.function_call_arguments.done", **at, name=item["name"], arguments=text
                )
            case _:
                events += self._input_delta(self._input.finish())
                item["input"] = self._input.text
                events += self.event("response.custom_tool_call_input.done", **at, input=item["input"])
        item["status"] = "completed" if whole else "incomplete"
        events += self.event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._open, self._text = None, []
        return events

    def _more(self, kind: str, text: str, delta: str, **fields: Any) -> str:
        events = ""
        if self._open is None or self._open["type"] != kind:
            events = self.close() + self._begin_text(kind)
        self._text.append(text)
        return events + self._delta(delta, text, **fields)

    def _delta(self, kind: str, text: str, **fields: Any) -> str:
        assert self._open is not None
        return self.event(kind, item_id=self._open["id"], output_index=len(self.items), delta=text, **fields)

    def _input_delta(self, text: str) -> str:
        return self._delta("response.custom_tool_call_input.delta", text) if text else ""

    def _begin_text(self, kind: str) -> str:
        if kind == "reasoning":
            return self._begin(
                {"id": new_call_id("rs_", short=False), "type": kind, "summary": [], "content": []}
            )
        item: dict[str, Any] = {"id": new_call_id("msg_", short=False), "type": kind, "role": "assistant"}
        item["content"] = []
        events = self._begin(item)
        at = {"item_id": item["id"], "output_index": len(self.items), "content_index": 0}
        return events + self.event("response.content_part.added", **at, part=_text_part(""))

    def _begin_call(self, shown_name: str) -> str:
        tool = self._tools.get(shown_name)
        call = {
            "call_id": new_call_id("call_", short=self._short_ids),
            "name": shown_name if tool is None else tool.name,
        }
        if tool is not None and tool.namespace:
            call["namespace"] = tool.namespace
        if tool is not None and tool.is_custom:
            self._input = CustomInput()
            return self._begin(
                {"id": new_call_id("ctc_", short=False), "type": "custom_tool_call", **call, "input": ""}
            )
        return self._begin(
            {"id": new_call_id("fc_", short=False), "type": "function_call", **call, "arguments": ""}
        )

    def _begin(self, item: dict[str, Any]) -> str:
        self._open = {**item, "status": "in_progress"}
        return self.event("response.output_item.added", output_index=len(self.items), item=self._open)


def as_message(items: list[dict[str, Any]], tools: ShownTools) -> dict[str, Any]:
    """An answer's items as the message that chat templates read, for the response that goes on from it."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for item in items:
        match item["type"]:
            case "message":
                message["content"] += item["content"][0]["text"]
            case "reasoning":
                message["reasoning_content"] = item["content"][0]["text"]
            case kind:
                arguments: Any = {CUSTOM_INPUT: item.get("input", "")}
                if kind == "function_call":
                    arguments = call_arguments(item["arguments"])
                name = tools.shown_name(item.get("namespace"), item["name"])
                call = {"name": name, "arguments": arguments}
                calls = message.setdefault("tool_calls", [])
                calls.append({"id": item["call_id"], "type": "function", "function": call})
    return message


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
