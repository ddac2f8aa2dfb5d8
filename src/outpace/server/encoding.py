"""JSON as every dialect writes it."""

from __future__ import annotations

import json

from starlette.responses import Response


def to_json(value: object) -> str:
    """Compact JSON. Raises `ValueError` for what JSON cannot say (NaN, infinities)."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_response(value: object) -> Response:
    """A 200 with `value` as its body."""
    return Response(to_json(value), media_type="application/json")
