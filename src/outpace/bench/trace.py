"""Traces: what a client asked a server over a while, a JSON line for each exchange.

`{"start": S, "end": S, "method": M, "path": P, "headers": {...}, "body": {...}, "status": N, "first_byte": S,
"first_piece": S, "prompt_tokens": N, "cached_tokens": N, "completion_tokens": N, "cut": false}`

`start` and `end` are seconds since the recording began, `first_byte` and `first_piece` since `start`; what
is not known is null. `cut`: the client left before the end, or the server broke off. Of the headers only
those are kept that say what kind of client asked, and never a key or a cookie. Lines are ordered by ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from outpace.errors import UsageError

__all__ = [
    "KEPT_HEADERS",
    "SHIPPED",
    "Exchange",
    "earlier",
    "last_end",
    "read_trace",
    "shipped_traces",
    "to_line",
]

SHIPPED = Path(__file__).parent / "traces"
KEPT_HEADERS = frozenset({"user-agent", "anthropic-version", "anthropic-beta"})
_LIMITS = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/messages": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}
"""What limits an answer's length in each dialect; the last name is always understood."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its answer; the fields are those of a trace's lines."""

    start: float
    end: float = 0.0
    method: str = "POST"
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: Any = None  # JSON; None where there was none or it is no JSON
    status: int = 0  # 0: no answer came
    first_byte: float | None = None
    first_piece: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cut: bool = False

    @property
    def generates(self) -> bool:
        """Whether it can be asked again: a whole answer under /v1, to all that it goes on from."""
        if self.method != "POST" or self.status != 200 or self.cut or self.path not in _LIMITS:
            return False
        return isinstance(self.body, dict) and not self._said.get("previous_response_id")

    @property
    def _said(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.body)

    def asked(self, model: str, max_tokens: int | None = None) -> dict[str, Any]:
        """The body for another server, of its `model`; an answer as long as the recorded one at most."""
        body = {**self._said, "model": model}
        names = _LIMITS[self.path]
        said = [body.pop(name) for name in names if body.get(name) is not None]
        if limits := [limit for limit in (self.completion_tokens, max_tokens, *said) if limit]:
            body[names[-1]] = min(limits)
        if self.path.startswith("/v1/chat") and body.get("stream"):
            body["stream_options"] = {"include_usage": True}
        return body


def to_line(exchange: Exchange) -> str:
    """A trace's line, without its end."""
    return json.dumps(asdict(exchange), ensure_ascii=False)


def last_end(path: Path) -> float:
    """When the last exchange of a file ended; 0 where there is none, or no file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0.0
    return max((exchange.end for line in lines if (exchange := _parse(line)) is not None), default=0.0)


def shipped_traces() -> list[str]:
    """The traces that come with Outpace."""
    return sorted(path.stem for path in SHIPPED.glob("*.jsonl"))


def read_trace(name: str) -> list[Exchange]:
    """The exchanges of a shipped trace or a file, in the order of their starts; broken lines are left out.

    A recorder that was killed leaves half a line at most. Raises `UsageError` where nothing can be asked.
    """
    path = Path(name) if Path(name).is_file() else SHIPPED / f"{name}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        shipped = ", ".join(shipped_traces())
        raise UsageError(f"no trace {name!r}: it is neither a file nor one of {shipped}") from None
    found = [exchange for line in lines if (exchange := _parse(line)) is not None]
    if not any(exchange.generates for exchange in found):
        raise UsageError(f"{path}: no answered requests in it that can be asked again")
    return sorted(found, key=lambda exchange: exchange.start)


def earlier(exchanges: Sequence[Exchange]) -> list[list[int]]:
    """For each exchange, in the order of starts, those that had ended when it began."""
    return [
        [before for before in range(number) if exchanges[before].end <= exchange.start]
        for number, exchange in enumerate(exchanges)
    ]


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "start": (int, float), "end": (int, float), "method": str, "path": str, "headers": dict, "status": int,
}  # fmt: skip


def _parse(line: str) -> Exchange | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    said = cast("dict[str, Any]", record)
    names = {each.name for each in fields(Exchange)}
    if said.keys() - names or not all(isinstance(said.get(name), kind) for name, kind in _TYPES.items()):
        return None
    return Exchange(**said)
