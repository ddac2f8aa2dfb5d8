"""The lane of a request, by what the wires call it."""

from __future__ import annotations

from outpace.types import Lane

LANES: dict[str, Lane] = {
    "priority": "priority",
    "fast": "priority",
    "ultrafast": "priority",
    "flex": "flex",
}
"""OpenAI's service tiers; all others, "auto" and "scale" among them, are the default one."""


def lane_of(service_tier: str | None) -> Lane:
    """The lane of a request with OpenAI's `service_tier`."""
    return LANES.get(service_tier or "auto", "default")
