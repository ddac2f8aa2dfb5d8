"""A request's input as items that later requests may refer to, and the items that it refers to itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outpace.server.answer import new_call_id
from outpace.server.errors import APIError, given
from outpace.server.openai.responses.schema import Item, ResponseRequest

REFERENCE = "item_reference"
_ID_PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "custom_tool_call": "ctc_",
    "custom_tool_call_output": "ctco_",
}


def with_items_found(
    request: ResponseRequest, find: Callable[[str], dict[str, Any] | None]
) -> ResponseRequest:
    """The request with the items themselves where its input refers to stored ones by their ids.

    Raises `APIError` for an id that `find` does not know.
    """
    if isinstance(request.input, str) or all(item.kind != REFERENCE for item in request.input):
        return request
    items: list[Item] = []
    for index, item in enumerate(request.input):
        if item.kind == REFERENCE:
            item_id = given(item.id, f"input[{index}]", "id")
            found = find(item_id)
            if found is None:
                message = (
                    f"no item {item_id[:80]!r} is stored here; it may have been dropped, or 'store' was"
                    " false: send the item itself"
                )
                raise APIError(400, message, param=f"input[{index}].id", code="item_not_found")
            items.append(Item.model_validate(found))
        else:
            items.append(item)
    return request.model_copy(update={"input": items})


def listed_items(request: ResponseRequest) -> list[dict[str, Any]]:
    """The input's items in the form that the API lists them in, each with an id."""
    if isinstance(request.input, str):
        return [_listed(Item(role="user", content=request.input))]
    return [_listed(item) for item in request.input]


def _listed(item: Item) -> dict[str, Any]:
    kind = item.kind
    said = item.model_dump(exclude_none=True)
    if kind == "message" and isinstance(item.content, str):
        part = "output_text" if item.role == "assistant" else "input_text"
        said["content"] = [{"type": part, "text": item.content}]
    item_id = new_call_id(_ID_PREFIXES.get(kind, "item_"), short=False)
    return {"id": item_id, "type": kind, "status": "completed", **said}
