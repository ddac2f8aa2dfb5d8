"""The Ollama dialect's addresses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from outpace.server.body import read_json
from outpace.server.client import client_scope
from outpace.server.encoding import json_response
from outpace.server.errors import from_exception
from outpace.server.ollama.answer import NDJSON, Answer, error_line, message_field, response_field
from outpace.server.ollama.params import RENAMED, chat_messages, generate_messages, sampling
from outpace.server.ollama.schema import ChatRequest, Common, GenerateRequest, ShowRequest
from outpace.server.openapi import body_of
from outpace.server.served import ServedModel
from outpace.server.sse import EventStream
from outpace.text.fill_in_middle import fill_in_middle
from outpace.types import DraftHints

_VERSION = "0.12.6"
"""Of Ollama, whose dialect this is: editors ask for at least some version."""


def ollama_router(served: ServedModel) -> APIRouter:
    """The dialect's routes over `served`."""
    router = APIRouter(prefix="/api")

    @router.get("/version")
    async def version() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction] - a route
        """The version of the dialect."""
        return {"version": _VERSION}

    @router.get("/tags")
    async def tags() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """List the models: the one that is loaded, then its aliases."""
        return {"models": [_model(served, name) for name in (served.name, *served.aliases)]}

    @router.get("/ps")
    async def running() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction] - a route
        """List the models in memory."""
        size = served.llm.backend.weight_bytes
        loaded = {"expires_at": "0001-01-01T00:00:00Z", "size_vram": 0, "context_length": served.max_context}
        return {"models": [{**_model(served, served.name), **loaded, "size": size}]}

    @router.post("/show", openapi_extra=body_of(ShowRequest))
    async def show(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Describe a model."""
        body = await read_json(request, ShowRequest, served.settings)
        _resolve(served, body.model or body.name)
        return json_response(_description(served))

    @router.post("/chat", openapi_extra=body_of(ChatRequest), response_class=Response)
    async def chat(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a conversation, a line of JSON for each piece."""
        body = await read_json(request, ChatRequest, served.settings)
        messages = chat_messages(body)
        num_chars = sum(len(message["content"]) for message in messages)
        encode = lambda: served.llm.encode_chat(messages)  # noqa: E731 - the other route has another
        return await _answer(served, request, body, num_chars, encode, message_field)

    @router.post("/generate", openapi_extra=body_of(GenerateRequest), response_class=Response)
    async def generate(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction] - a route
        """Answer a prompt, complete it (`raw`) or fill in what comes before `suffix`."""
        body = await read_json(request, GenerateRequest, served.settings)
        num_chars = len(body.prompt) + len(body.suffix or "")
        return await _answer(
            served, request, body, num_chars, lambda: _encode_prompt(served, body), response_field
        )

    return router


def _encode_prompt(served: ServedModel, body: GenerateRequest) -> list[int]:
    if body.suffix:
        return fill_in_middle(served.llm.tokenizer, body.prompt, body.suffix)
    if body.raw or served.llm.chat_template is None:
        return served.llm.encode_prompt(body.prompt)
    return served.llm.encode_chat(generate_messages(body))


async def _answer(
    served: ServedModel,
    request: Request,
    body: Common,
    num_chars: int,
    encode: Callable[[], list[int]],
    field: Callable[[str], dict[str, Any]],
) -> Response:
    name = _resolve(served, body.model)
    params = sampling(body)
    try:
        prompt = await served.encode(num_chars, encode)
        generation = await served.start([prompt], params, DraftHints(client_scope(request)))
    except Exception as error:
        raise from_exception(error, RENAMED) from error
    answer = Answer(name, field)
    if body.stream is not False:
        return EventStream(answer.lines(generation), generation, error_line, NDJSON)
    async with generation.cancelled_on_disconnect(request.receive):
        return json_response(await answer.whole(generation))


def _resolve(served: ServedModel, model: str | None) -> str:
    """As `ServedModel.resolve_name`; a tag that says nothing (":latest") is left out."""
    return served.resolve_name(model.removesuffix(":latest") if model else None)


def _model(served: ServedModel, name: str) -> dict[str, Any]:
    modified = datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z")
    return {
        "name": name,
        "model": name,
        "modified_at": modified,
        "size": served.llm.backend.weight_bytes,
        "digest": "",
        "details": _details(served),
    }


def _details(served: ServedModel) -> dict[str, Any]:
    family = served.llm.spec.architecture
    return {
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": "",
    }


def _description(served: ServedModel) -> dict[str, Any]:
    spec = served.llm.spec
    info = {
        "general.architecture": spec.architecture,
        f"{spec.architecture}.context_length": served.max_context,
        f"{spec.architecture}.embedding_length": spec.hidden_size,
        f"{spec.architecture}.block_count": spec.num_layers,
        f"{spec.architecture}.attention.head_count": spec.num_heads,
        f"{spec.architecture}.attention.head_count_kv": spec.num_kv_heads,
    }
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(served),
        "model_info": info,
        "capabilities": ["completion"],
    }
