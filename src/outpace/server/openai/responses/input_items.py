"""A request's input as items that later requests may refer to, and the items that it refers to itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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


def page_of(items: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """The list object of stored items that a query asks for: `limit` (20), `order` (desc), `after` an id.

    Raises `APIError` for a query that is none.
    """
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not re.fullmatch("[1-9][0-9]?|100", limit):
        raise APIError(400, "'limit' must be 1 to 100", param="limit", code="invalid_value")
    if order not in {"asc", "desc"}:
        raise APIError(400, "'order' must be asc or desc", param="order", code="invalid_value")
    rest = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        ids = [item["id"] for item in rest]
        if after not in ids:
            message = f"'after': no item {after[:80]!r} is in this list"
            raise APIError(400, message, param="after", code="item_not_found")
        rest = rest[ids.index(after) + 1 :]
    page = rest[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(page) < len(rest),
    }


def _listed(item: Item) -> dict[str, Any]:
    kind = item.kind
    said = item.model_dump(exclude_none=True)
    if kind == "message" and isinstance(item.content, str):
        part = "output_text" if item.role == "assistant" else "input_text"
        said["content"] = [{"type": part, "text": item.content}]
    item_id = new_call_id(_ID_PREFIXES.get(kind, "item_"), short=False)
    return {"id": item_id, "type": kind, "status": "completed", **said}
