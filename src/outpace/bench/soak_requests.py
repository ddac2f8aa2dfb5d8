"""What the clients of `bench soak` ask: requests drawn by a seed, good ones in every dialect and bad ones."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from outpace.bench.dialects import DIALECTS, Dialect

__all__ = ["BadRequest", "GoodRequest", "draw_bad", "draw_good", "probes"]

_WORDS = (
    *(
        "river",
        "stone",
        "bridge",
        "window",
        "garden",
        "engine",
        "paper",
        "cloud",
        "winter",
        "market",
        "signal",
        "copper",
    ),
    *(
        "forest",
        "letter",
        "station",
        "harbour",
        "lantern",
        "basket",
        "hammer",
        "violet",
        "meadow",
        "ticket",
        "pencil",
        "anchor",
    ),
)
_SYSTEMS = 4  # beginnings in common, so that clients share prefixes
_SYSTEM_WORDS = 120
_LONGEST = 300  # words of a question
_GOES_ON = b'{"input": "a", "previous_response_id": "r"}'
_TOKENS = (1, 64)  # of an answer
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": _WORDS[:6]}, "good": {"type": "boolean"}},
    "required": ["name", "good"],
    "additionalProperties": False,
}
_GRAMMAR_TOKENS = 64  # enough for any answer of that schema


@dataclass(frozen=True, slots=True)
class GoodRequest:
    """A request that must be answered. So many choices must say how they ended."""

    name: str
    dialect: Dialect
    body: dict[str, Any]
    num_choices: int = 1


@dataclass(frozen=True, slots=True)
class BadRequest:
    """A request that must be refused with one of `statuses`."""

    name: str
    path: str
    content: bytes
    statuses: tuple[int, ...] = (400,)
    method: str = "POST"


def draw_good(draw: random.Random, model: str) -> GoodRequest:
    """A request of any dialect, streamed or not, sometimes with tools or a schema."""
    kinds = (_chat, _chat, _completions, _messages, _responses, _ollama)
    request = draw.choice(kinds)(draw, model)
    request.body["stream"] = draw.random() < 0.7
    return request


def probes(model: str) -> list[GoodRequest]:
    """Requests whose answers must be the same whatever else goes on."""
    chat = DIALECTS["/v1/chat/completions"]
    draw = random.Random(0)  # noqa: S311 - no secret
    talk = _talk(draw)
    body: dict[str, Any] = {"model": model, "messages": talk, "max_tokens": 24, "temperature": 0}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": _ANSWER}}
    tools = [{"type": "function", "function": _function(draw)}]
    return [
        GoodRequest("greedy", chat, body),
        GoodRequest("sampled", chat, {**body, "temperature": 0.8, "seed": 7}),
        GoodRequest("schema", chat, {**body, "response_format": schema}),
        GoodRequest("call", chat, {**body, "tools": tools, "tool_choice": "required"}),
    ]


def _words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(_WORDS, k=count))


def _talk(draw: random.Random) -> list[dict[str, Any]]:
    """A system prompt that others have too, and a question."""
    system = _words(random.Random(draw.randrange(_SYSTEMS)), _SYSTEM_WORDS)  # noqa: S311 - no secret
    question = _words(draw, draw.randrange(1, _LONGEST) if draw.random() < 0.3 else draw.randrange(1, 40))
    return [{"role": "system", "content": system}, {"role": "user", "content": f"{question}?"}]


def _settings(draw: random.Random, model: str) -> dict[str, Any]:
    temperature = draw.choice([0, 0.7])
    return {"model": model, "max_tokens": draw.randint(*_TOKENS), "temperature": temperature}


def _function(draw: random.Random) -> dict[str, Any]:
    return {"name": draw.choice(["look", "write", "run"]), "description": "Does it.", "parameters": _ANSWER}


def _chat(draw: random.Random, model: str) -> GoodRequest:
    body = {**_settings(draw, model), "messages": _talk(draw)}
    kind = draw.choice(["text", "text", "choices", "tools", "call", "schema"])
    count = 1
    if kind == "choices":
        count = body["n"] = draw.randrange(2, 4)
        body["logprobs"] = draw.choice([False, True])
    elif kind in {"tools", "call"}:
        body["tools"] = [{"type": "function", "function": _function(draw)}]
        body["tool_choice"] = "required" if kind == "call" else "auto"
    elif kind == "schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": _ANSWER}}
        body["max_tokens"] = _GRAMMAR_TOKENS
    dialect = DIALECTS["/v1/chat/completions"]
    return GoodRequest(f"chat {kind}", dialect, body, count)


def _completions(draw: random.Random, model: str) -> GoodRequest:
    prompts = [_words(draw, draw.randrange(1, 30)) for _ in range(draw.choice([1, 1, 3]))]
    body = {**_settings(draw, model), "prompt": prompts, "echo": draw.random() < 0.2}
    return GoodRequest("completions", DIALECTS["/v1/completions"], body, len(prompts))


def _messages(draw: random.Random, model: str) -> GoodRequest:
    system, question = _talk(draw)
    mark = {"cache_control": {"type": "ephemeral"}} if draw.random() < 0.5 else {}
    body = {**_settings(draw, model), "messages": [question]}
    body["system"] = [{"type": "text", "text": system["content"], **mark}]
    if draw.random() < 0.4:
        function = _function(draw)
        body["tools"] = [
            {"name": function["name"], "description": "Does it.", "input_schema": function["parameters"]}
        ]
        body["tool_choice"] = {"type": draw.choice(["auto", "any"])}
    return GoodRequest("messages", DIALECTS["/v1/messages"], body)


def _responses(draw: random.Random, model: str) -> GoodRequest:
    system, question = _talk(draw)
    settings = _settings(draw, model)
    settings["max_output_tokens"] = settings.pop("max_tokens")
    body = {**settings, "instructions": system["content"], "input": question["content"]}
    body["store"] = draw.random() < 0.5
    return GoodRequest("responses", DIALECTS["/v1/responses"], body)


def _ollama(draw: random.Random, model: str) -> GoodRequest:
    settings = _settings(draw, model)
    options = {"num_predict": settings["max_tokens"], "temperature": settings["temperature"]}
    return GoodRequest(
        "ollama", DIALECTS["/api/chat"], {"model": model, "messages": _talk(draw), "options": options}
    )


def draw_bad(draw: random.Random, model: str, max_body: int, max_context: int) -> BadRequest:
    """A request that no server may take: broken JSON, wrong values, too long, nowhere."""
    path = draw.choice(
        ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat", "/v1/completions"]
    )
    hello: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    good: dict[str, Any] = {"model": model, "messages": hello, "max_tokens": 4}

    def chat(name: str, **wrong: Any) -> BadRequest:
        return BadRequest(name, "/v1/chat/completions", json.dumps({**good, **wrong}).encode())

    def messages(name: str, **wrong: Any) -> BadRequest:
        return BadRequest(name, "/v1/messages", json.dumps({**good, **wrong}).encode())

    half = json.dumps(good).encode()
    long = [{"role": "user", "content": _words(draw, 2 * max_context)}]
    return draw.choice(
        [
            BadRequest("broken JSON", path, half[: draw.randrange(len(half))]),
            BadRequest("not UTF-8", path, b'{"model": "\xff\xfe"}'),
            BadRequest("deep JSON", path, b'{"messages":' + b"[" * 5000, (400,)),
            BadRequest("long body", path, b" " * (max_body + 1), (413,)),
            BadRequest("no such path", f"/v1/{draw.choice(_WORDS)}", half, (404,)),
            BadRequest("wrong method", path, b"", (405,), "GET" if path != "/v1/responses" else "DELETE"),
            chat("temperature in words", temperature="hot"),
            chat("negative max_tokens", max_tokens=-1),
            chat("no messages", messages=[]),
            chat("unknown role", messages=[{"role": "dog", "content": "woof"}]),
            chat("no such tool", tool_choice={"type": "function", "function": {"name": "none"}}),
            chat(
                "schema of a wrong type",
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "x"}},
                },
            ),
            chat("over the context", messages=long),
            messages("over the context", messages=long),
            messages("negative max_tokens", max_tokens=-1),
            BadRequest("no such response", "/v1/responses", _GOES_ON),
        ]
    )
