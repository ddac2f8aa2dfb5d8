"""Workloads: JSON lines of requests.

`{"messages": [...], "max_tokens": N, "temperature"?: T, "prediction"?: TEXT, "json_schema"?: {...},
"tools"?: [...]}`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from outpace.errors import UsageError
from outpace.types import Grammar, SamplingParams

SHIPPED = Path(__file__).parent / "workloads"
KEYS = {"messages", "max_tokens", "temperature", "prediction", "json_schema", "tools"}
SEED = 0  # a workload with a temperature must still give the same tokens every time


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request of a workload."""

    messages: tuple[dict[str, Any], ...]  # OpenAI chat messages
    max_tokens: int
    temperature: float = 0.0
    prediction: str = ""  # what the answer is expected to resemble
    json_schema: str = ""  # of the answer, as JSON text; "": none
    tools: tuple[dict[str, Any], ...] = ()  # in OpenAI's form; only servers read them

    @property
    def extra(self) -> dict[str, Any]:
        """What a request over HTTP says beyond messages, tokens and temperature, in OpenAI's form."""
        said: dict[str, Any] = {}
        if self.prediction:
            said["prediction"] = {"type": "content", "content": self.prediction}
        if self.json_schema:
            schema = {"name": "answer", "schema": json.loads(self.json_schema), "strict": True}
            said["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.tools:
            said["tools"] = list(self.tools)
        return said

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        grammar = Grammar("json_schema", self.json_schema) if self.json_schema else None
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, seed=SEED, grammar=grammar
        )


def shipped_names() -> list[str]:
    """The workloads that come with Outpace."""
    return sorted(path.stem for path in SHIPPED.glob("*.jsonl"))


def load(workload: str) -> list[WorkloadRequest]:
    """Read a workload: a file, or the name of a shipped one. Raises UsageError naming line and field."""
    path = Path(workload)
    if not path.is_file():
        path = SHIPPED / f"{workload}.jsonl"
        if workload not in shipped_names():
            raise UsageError(
                f"no workload {workload!r}: it is neither a file nor one of {', '.join(shipped_names())}"
            )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    requests = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise UsageError(f"{path}: no requests in it")
    return requests


def _parse(line: str, where: str) -> WorkloadRequest:
    try:
        parsed: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise UsageError(f"{where}: not an object")
    record = cast("dict[str, Any]", parsed)
    if unknown := sorted(record.keys() - KEYS):
        raise UsageError(f"{where}: unknown field {unknown[0]!r}; there are: {', '.join(sorted(KEYS))}")
    return WorkloadRequest(
        _messages(record.get("messages"), where),
        _max_tokens(record.get("max_tokens"), where),
        _temperature(record.get("temperature", 0.0), where),
        _prediction(record.get("prediction", ""), where),
        _json_schema(record.get("json_schema"), where),
        _tools(record.get("tools", []), where),
    )


def _messages(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: messages: must be a list of at least one message")
    for message in cast("list[Any]", value):
        if not isinstance(message, dict) or not isinstance(cast("dict[str, Any]", message).get("role"), str):
            raise UsageError(f"{where}: messages: each must be an object with a role")
    return tuple(cast("list[dict[str, Any]]", value))


def _max_tokens(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{where}: max_tokens: must be a whole number of at least 1")
    return value


def _prediction(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: prediction: must be text")
    return value


def _json_schema(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, dict):
        raise UsageError(f"{where}: json_schema: must be an object")
    return "" if value is None else json.dumps(value)


def _tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in cast("list[Any]", value)):
        raise UsageError(f"{where}: tools: must be a list of objects")
    return tuple(cast("list[dict[str, Any]]", value))


def _temperature(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{where}: temperature: must be a number of at least 0")
    return float(value)
