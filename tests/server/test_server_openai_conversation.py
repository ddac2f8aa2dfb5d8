"""What OpenAI's chats and responses give the chat template to read."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from outpace.server.openai.conversation import read_conversation
from outpace.server.openai.responses.conversation import read_items
from outpace.server.openai.responses.schema import ResponseRequest
from outpace.server.openai.responses.tools import ShownTools
from outpace.server.openai.schema import ChatRequest

USER = {"role": "user", "content": "Hi"}


def of_chat(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    request = ChatRequest.model_validate_json(json.dumps({"messages": messages}))
    return read_conversation(request).messages


def of_response(*items: dict[str, Any]) -> list[dict[str, Any]]:
    request = ResponseRequest.model_validate_json(json.dumps({"input": items}))
    return read_items(request, [], ShownTools(()))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "image_url", "image_url": {"url": "data:x"}}, "an image"),
        ({"type": "input_image", "image_url": "data:x"}, "an image"),
        ({"type": "input_file", "file_data": "x"}, "a file"),
        ({"type": "input_audio", "input_audio": {}}, "audio"),
        ({"type": "hologram"}, "a part of type 'hologram'"),
    ],
)
def test_tools_results_are_read_without_images(http: httpx.Client, part: dict[str, Any], name: str) -> None:
    told = f"A file:\n[{name}, left out: this model reads text only]"
    chat_result = {
        "role": "tool",
        "tool_call_id": "a",
        "content": [{"type": "text", "text": "A file:"}, part],
    }
    assert of_chat(USER, chat_result)[-1]["content"] == told
    for kind in ("function_call_output", "custom_tool_call_output"):
        output = [{"type": "input_text", "text": "A file:"}, part]
        result = {"type": kind, "call_id": "a", "output": output}
        assert of_response(USER, result)[-1]["content"] == told
        response = http.post("/v1/responses", json={"input": [USER, result], "max_output_tokens": 1})
        assert response.status_code == 200, response.text
    chat = {"messages": [USER, chat_result], "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=chat).status_code == 200


@pytest.mark.parametrize("fields", [{"content": None}, {}, {"content": None, "tool_calls": []}])
def test_an_answer_without_content_is_an_empty_one(fields: dict[str, Any]) -> None:
    assert of_chat(USER, {"role": "assistant", **fields}, USER)[1] == {"role": "assistant", "content": ""}
